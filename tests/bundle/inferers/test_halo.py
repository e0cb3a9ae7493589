from contextlib import contextmanager
from functools import partial

import pytest
import torch
from torch import nn

from bundle.inferers.halo import HaloInferer, tiles
from bundle.inferers.tile_size import KEPT_SLICES
from bundle.networks.vqgan import VQGAN

WHOLE = HaloInferer(tile_size=1024)
PADDED = (84, 72, 104)
"""The shape of `volume`, padded to multiples of the stride."""


@pytest.fixture
def volume():
    """A volume whose sizes no tile and no stride divides."""
    return torch.nn.functional.interpolate(torch.randn(1, 1, 14, 12, 17), size=(83, 70, 101)) * 0.7


def identity(tile):
    return tile


class Limited:
    """The slabs of a network on a device whose memory takes no more than some slices."""

    def __init__(self, network, limit):
        self.slabs, self.limit = VQGAN.encode_in_slabs(network), limit

    def __call__(self, slab, is_last):
        if slab.shape[-3] > self.limit:
            raise torch.OutOfMemoryError("too large")
        return self.slabs(slab, is_last)


@pytest.mark.parametrize("tile_size", [32, 48, (36, 52, 20), 1024])
@pytest.mark.parametrize("halo", [0, 8])
def test_tiles_cover_the_volume_exactly_once(volume, tile_size, halo):
    # an identity as the network finds misplaced tiles, gaps and blending alike
    assert torch.equal(HaloInferer(tile_size, halo)(volume, identity), volume)


def test_cores_partition_every_cell_and_windows_stay_inside():
    shape, count = (7, 5, 9), torch.zeros(7, 5, 9, dtype=torch.int64)
    for tile in tiles(shape, (3, 5, 2), halo=4):
        count[tile.core] += 1
        for window, size in zip(tile.window, shape, strict=True):
            assert 0 <= window.start < window.stop <= size
        numbers = torch.arange(9)
        assert torch.equal(numbers[tile.window[2]][tile.crop[2]], numbers[tile.core[2]])
    assert (count == 1).all()


def assert_same_codes(indices, expected, latent, codebook):
    """At most 1 in 100,000 may differ, and only between codes whose distances agree to 1e-5.

    The law is equality; but a backend may sum a convolution in another order for another shape.
    """
    different = (indices != expected).nonzero()
    assert len(different) <= indices.numel() * 1e-5
    for batch, *cell in different.tolist():
        codes = codebook[torch.stack([indices[batch, *cell], expected[batch, *cell]])]
        one, other = (codes - latent[batch, :, *cell]).square().sum(dim=1)
        assert abs(one - other) <= 1e-5 * other


@pytest.mark.parametrize(
    ("shape", "faces"), [((131, 72, 76), (0, 0, 0, 0, 0, 1)), ((44, 105, 131), (0, 1, 0, 3, 0, 0))]
)
@pytest.mark.parametrize("tile_size", [64, 96, 128, (72, 104, 40)])
def test_indices_and_reconstruction_of_tiles_equal_those_of_the_whole(
    tiny_vqgan, monkeypatch, shape, faces, tile_size
):
    # without oneDNN, which on some processors does so
    monkeypatch.setattr(torch.backends.mkldnn, "enabled", False)
    network, inferer = tiny_vqgan(num_embeddings=1024), HaloInferer(tile_size)
    image = nn.functional.interpolate(torch.randn(1, 1, 20, 20, 20), size=shape, mode="trilinear")
    with torch.no_grad():
        indices = inferer.encode(image, network)
        assert len(indices.unique()) > 100
        latent = network.encode_latent(nn.functional.pad(image, faces, mode="replicate"))
        assert_same_codes(indices, network.quantizer.quantize(latent), latent, network.quantizer.embedding)
        assert (inferer(image, network) - WHOLE(image, network)).abs().max() <= 1e-5 * 2


@pytest.mark.parametrize("num_res_layers", [2, 3])
def test_deeper_networks_are_exact_too(tiny_vqgan, num_res_layers):
    network, image = tiny_vqgan(num_res_layers=num_res_layers), torch.randn(1, 1, 24, 20, 151) * 0.5
    with torch.no_grad():
        difference = HaloInferer((24, 24, 28))(image, network) - WHOLE(image, network)
    assert difference.abs().max() <= 1e-5 * 2


def test_one_pass_equals_the_whole_network_where_its_size_needs_no_padding(tiny_vqgan):
    network, image = tiny_vqgan(), torch.randn(1, 1, 40, 48, 32) * 0.5
    with torch.no_grad():
        torch.testing.assert_close(HaloInferer(16)(image, network), network(image), rtol=0, atol=1e-5)


def test_a_network_that_only_has_forward_is_tiled_with_twice_the_halo(tiny_vqgan, volume):
    network = tiny_vqgan()
    with torch.no_grad():
        tiled = HaloInferer(32, halo=network.halo)(volume, lambda tile: network(tile))
        torch.testing.assert_close(tiled, WHOLE(volume, network), rtol=0, atol=1e-5)


def test_a_smaller_halo_leaves_seams_and_a_network_with_group_norm_always_does(tiny_vqgan, volume):
    # the law above must be seen to bite
    network = tiny_vqgan()
    with torch.no_grad():
        assert (HaloInferer(32, halo=8)(volume, network) - WHOLE(volume, network)).abs().max() > 1e-4
        convolutions = nn.Conv3d(1, 8, 3, padding=1), nn.Conv3d(8, 1, 3, padding=1)
        normed = nn.Sequential(convolutions[0], nn.GroupNorm(4, 8), convolutions[1])
        far = HaloInferer(32, halo=24)(volume, normed) - HaloInferer(1024, halo=24)(volume, normed)
    assert far.abs().max() > 0.01


def test_faces_beyond_the_stride_are_padded_with_their_edge_values(tiny_vqgan):
    network, image = tiny_vqgan(), torch.randn(1, 1, 21, 16, 16)
    padded = torch.cat([image, image[:, :, -1:].expand(-1, -1, 3, -1, -1)], dim=2)
    with torch.no_grad():
        assert torch.equal(WHOLE(image, network), WHOLE(padded, network)[:, :, :21])


def test_decode_of_encode_is_the_reconstruction(tiny_vqgan, volume):
    network, inferer = tiny_vqgan(), HaloInferer(48)
    with torch.no_grad():
        decoded = inferer.decode(inferer.encode(volume, network), network)
        assert torch.equal(decoded[..., :83, :70, :101], inferer(volume, network))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tile_size": 4}, "`tile_size` must be a multiple of the stride 4 and at least 8, got .4, 4, 4."),
        ({"tile_size": (64, 64, 30)}, "`tile_size` must be a multiple of the stride 4"),
        ({"halo": -4}, "`halo` must be a multiple of the stride 4 and at least 0, got -4 voxels"),
        ({"halo": 6}, "`halo` must be a multiple of the stride 4"),
    ],
)
def test_wrong_tiles_are_refused_with_the_rule(tiny_vqgan, arguments, message):
    with pytest.raises(ValueError, match=message):
        HaloInferer(**arguments)(torch.zeros(1, 1, 16, 16, 16), tiny_vqgan())


def test_a_network_that_does_not_know_its_halo_needs_one():
    with pytest.raises(ValueError, match="`halo` must be given"):
        HaloInferer(16)(torch.zeros(1, 1, 16, 16, 16), identity)


@pytest.mark.parametrize(
    ("slices", "told"), [(1000, "slabs of 84 x 72 x 104"), (8, "slabs of 8 x 72 x 104"), (7, "tiles of (")]
)
def test_auto_takes_slabs_that_fit_and_else_tiles_and_gives_the_same(
    tiny_vqgan, volume, caplog, monkeypatch, slices, told
):
    network = tiny_vqgan()
    in_memory = (slices + KEPT_SLICES) * 72 * 104 * network.bytes_per_voxel
    monkeypatch.setattr("bundle.inferers.halo.budget_bytes", lambda device: in_memory)
    inferer = HaloInferer("auto")

    with torch.no_grad(), caplog.at_level("INFO"):
        torch.testing.assert_close(inferer(volume, network), WHOLE(volume, network), rtol=0, atol=1e-5)
        latent = inferer.encode_latent(volume, network)
        torch.testing.assert_close(latent, WHOLE.encode_latent(volume, network), rtol=0, atol=1e-5)

    assert f"encode: {told}" in caplog.text and f"decode: {told}" in caplog.text


@pytest.mark.parametrize(("tile_size", "max_slices"), [("auto", 84), ("auto", 20), (32, 84)])
def test_the_bar_ends_at_its_total(tiny_vqgan, volume, monkeypatch, tile_size, max_slices):
    monkeypatch.setattr("bundle.inferers.tile_size.CPU_SLAB_VOXELS", max_slices * 72 * 104)
    shown = []

    class Bar:
        def __init__(self, total, **_):
            shown.append([total, 0])

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def update(self, count):
            shown[-1][1] += count

    monkeypatch.setattr("bundle.inferers.halo.tqdm", Bar)
    network, two, inferer = tiny_vqgan(), torch.cat([volume[..., :32]] * 2), HaloInferer(tile_size)
    inferer(two, network)
    inferer.encode_latent(two, network)

    assert len(shown) == 3 and all(done == total for total, done in shown)


def test_a_halo_that_is_given_means_tiles(tiny_vqgan, volume, caplog):
    with torch.no_grad(), caplog.at_level("INFO"):
        HaloInferer("auto", halo=8).encode(volume, tiny_vqgan())

    assert "tiles of (84, 72, 104) voxels with a halo of 8" in caplog.text


def test_freed_memory_is_kept_while_the_network_runs(tiny_vqgan, volume, monkeypatch):
    network, running = tiny_vqgan(), []

    @contextmanager
    def noting(device):
        running.append(f"begin {device}")
        yield
        running.append("end")

    monkeypatch.setattr("bundle.inferers.halo.freed_memory_kept", noting)
    encode, decode = network.encode, network.decode
    network.encode = lambda image: running.append("encode") or encode(image)
    network.decode = lambda indices: running.append("decode") or decode(indices)
    HaloInferer("auto")(volume, network)
    assert running == ["begin cpu", "encode", "end", "begin cpu", "decode", "end"]


def test_a_volume_of_one_slab_is_run_in_one_pass(tiny_vqgan, volume):
    network, seen = tiny_vqgan(), []
    expected, encode = WHOLE.encode(volume, network), network.encode
    network.encode = lambda image: seen.append(image.shape[2:]) or encode(image)
    network.encode_in_slabs = lambda: pytest.fail("slabs were begun")
    assert torch.equal(HaloInferer("auto").encode(volume, network), expected)
    assert seen == [PADDED]


def test_out_of_memory_halves_slabs_and_then_takes_tiles(tiny_vqgan, volume, caplog):
    network = tiny_vqgan()
    expected, encode = WHOLE.encode(volume, network), network.encode

    def encode_parts_only(image):
        if image.shape[2:] == PADDED:
            raise torch.OutOfMemoryError("too large")
        return encode(image)

    network.encode = encode_parts_only
    for limit, last in ((24, "slabs of 20 x"), (0, "tiles of")):
        network.encode_in_slabs = partial(Limited, network, limit)
        with caplog.at_level("INFO"):
            assert torch.equal(HaloInferer("auto").encode(volume, network), expected)
        assert "encode: out of memory with slabs of 84 slices" in caplog.text
        assert f"encode: {last}" in caplog.records[-1].message


def test_out_of_memory_halves_the_tile_and_goes_on(volume, caplog):
    def needs_small_tiles(tile):
        if tile.numel() > 30**3:
            raise torch.OutOfMemoryError("too large")
        return tile

    assert torch.equal(HaloInferer(64, halo=0)(volume, needs_small_tiles), volume)
    assert "out of memory with tiles of (64, 64, 64) voxels; going on with (32, 64, 64)" in caplog.text


def test_out_of_memory_with_the_smallest_tile_and_other_errors_are_passed_on(volume):
    def never_fits(tile):
        raise torch.OutOfMemoryError("too large")

    def broken(tile):
        raise RuntimeError("something else")

    with pytest.raises(torch.OutOfMemoryError):
        HaloInferer(16, halo=0)(volume, never_fits)
    with pytest.raises(RuntimeError, match="something else"):
        HaloInferer(16, halo=0)(volume, broken)

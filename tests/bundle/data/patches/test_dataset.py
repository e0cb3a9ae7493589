import itertools
import logging

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from bundle.data.patches.dataset import PatchDataset, ResumableSampler, VolumeShare, WholeVolumeDataset
from bundle.data.volumes.fingerprint import voxel_fingerprint
from bundle.run.names import patient_hash
from bundle.run.rules import SettingsError

SHAPE = (20, 24, 16)


@pytest.fixture
def cases(save_nifti):
    """Three volumes in which every voxel tells the volume and the place."""
    places = np.arange(np.prod(SHAPE)).reshape(SHAPE).astype(np.int16)
    return [{"image": str(save_nifti(places + number)), "patient": str(number)} for number in range(3)]


@pytest.fixture
def make(cases, tmp_path):
    def make_dataset(**changes):
        return PatchDataset(**{"data": cases, "patch_size": 8, "cache_dir": tmp_path / "cache", **changes})

    return make_dataset


def test_it_tells_what_a_network_trained_on_it_has_seen_without_a_name(make, cases):
    dataset = make(data=[*cases, {"image": cases[0]["image"]}])  # MONAI Label's items need no patient

    voxels = {voxel_fingerprint(volume.read()) for volume in dataset.volumes}
    patients = {patient_hash(case["patient"]) for case in cases}
    assert dataset.trained_on() == {"patients": sorted(patients), "voxels": sorted(voxels)}
    assert len(voxels) == 3


def test_construction_reads_and_writes_nothing(make, tmp_path):
    make(data=[{"image": "gone.nii.gz"}])

    assert not (tmp_path / "cache").exists()


def test_a_sample_number_always_gives_the_same_patch(make):
    first, second = make(), make()
    order = [5, 0, 3, 0, 5, 3]

    patches = {n: first[n]["image"] for n in sorted(order)}

    assert all(torch.equal(second[n]["image"], patches[n]) for n in order)
    assert not torch.equal(patches[0], patches[3]) and not torch.equal(patches[3], patches[5])


def test_another_seed_draws_other_patches(make):
    one, two = make(seed=1), make(seed=2)

    assert [one.draw(n) for n in range(8)] != [two.draw(n) for n in range(8)]


def test_a_patch_is_cut_where_it_was_drawn(make, cases):
    dataset = make(patch_size=(8, 12, 4))

    for n in range(20):
        volume, start = dataset.draw(n)
        image = dataset[n]["image"]
        box = tuple(slice(s, s + size) for s, size in zip(start, (8, 12, 4), strict=True))
        assert image.shape == (1, 8, 12, 4) and image.dtype == torch.int16
        np.testing.assert_array_equal(image[0].numpy(), volume.read()[box])


def test_every_volume_and_every_place_is_drawn(make):
    dataset = make(patch_size=(16, 20, 12))

    drawn = {(volume.case["patient"], start) for volume, start in map(dataset.draw, range(3000))}

    assert len(drawn) == 3 * 5 * 5 * 5


@pytest.mark.parametrize("num_workers", [0, 2])
def test_batches_do_not_depend_on_the_number_of_workers(make, num_workers):
    dataset = make()
    dataset.prepare()
    loader = DataLoader(dataset, batch_sampler=ResumableSampler(2), num_workers=num_workers)

    batches = [batch["image"] for batch in itertools.islice(loader, 4)]

    expected = [torch.stack([dataset[2 * i]["image"], dataset[2 * i + 1]["image"]]) for i in range(4)]
    assert all(torch.equal(batch, patches) for batch, patches in zip(batches, expected, strict=True))


def test_the_transform_gets_hu_and_makes_the_item(make):
    dataset = make(transform=lambda item: item["image"].max())

    assert dataset[0] == make()[0]["image"].max()


def test_a_volume_smaller_than_a_patch_is_padded_and_named_once(make, cases, caplog):
    dataset = make(patch_size=(8, 28, 8), hu_min=-500)
    dataset.prepare()

    patch = dataset[0]["image"]
    dataset[1]

    assert patch[:, :, 24:].eq(-500).all() and patch[:, :, :24].ge(0).all()
    for case in cases:
        assert (
            caplog.text.count(
                f"{case['image']}: its (20, 24, 16) voxels are fewer than a patch of (8, 28, 8)"
            )
            == 1
        )


def test_the_clipped_voxels_of_all_volumes_are_logged(make, caplog):
    with caplog.at_level(logging.INFO):
        make(hu_min=10, hu_max=7000).prepare()

    # values n .. n + 7679 for volume n
    assert "27 of 23040 voxels (0.12 %) below 10 HU and 2040 (8.85 %) above 7000 HU" in caplog.text


@pytest.mark.parametrize("patch_size", [0, 6, -8, (8, 8, 10)])
def test_a_patch_that_the_network_cannot_halve_twice_is_refused(make, patch_size):
    with pytest.raises(ValueError, match="`patch_size` must be three multiples of 4, each at least 4, got"):
        make(patch_size=patch_size)


def test_a_negative_seed_is_refused(make):
    with pytest.raises(ValueError, match="`seed` must be a whole number from 0 .*, got -1"):
        make(seed=-1)


def test_no_data_are_refused_when_the_run_starts(make):
    with pytest.raises(
        ValueError, match="`data` must hold at least one volume, got none; check `dataset_dir`"
    ):
        make(data=[]).prepare()


def test_items_of_a_label_server_are_taken(make, cases):
    labelled = [{"image": case["image"], "label": "gone.nii.gz"} for case in cases]

    assert torch.equal(make(data=labelled)[0]["image"], make()[0]["image"])


def test_a_whole_volume_comes_with_spacing_and_name(cases, tmp_path):
    dataset = WholeVolumeDataset(cases, tmp_path / "cache")

    item = dataset[1]

    assert len(dataset) == 3 and item["name"] == "volume_1"
    np.testing.assert_allclose(item["spacing_mm"], (0.7, 0.8, 1.5), rtol=1e-6)
    np.testing.assert_array_equal(item["image"][0].numpy(), np.arange(np.prod(SHAPE)).reshape(SHAPE) + 1)


def test_the_transform_of_a_whole_volume_gets_hu(cases, tmp_path):
    dataset = WholeVolumeDataset(cases, tmp_path / "cache", transform=lambda item: item["image"].max())

    assert dataset[0] == np.prod(SHAPE) - 1


def test_a_resumed_sampler_goes_on_where_the_run_stopped():
    whole = list(itertools.islice(ResumableSampler(3), 10))
    resumed = ResumableSampler(3)
    resumed.start_iteration = 6

    assert list(itertools.islice(resumed, 4)) == whole[6:]


def test_the_ranks_of_an_iteration_share_the_batch_of_one_process(as_rank):
    alone = list(itertools.islice(ResumableSampler(6), 2))
    ranks = [as_rank(rank, 3, lambda: list(itertools.islice(ResumableSampler(6), 2))) for rank in range(3)]

    assert [sum(batches, []) for batches in zip(*ranks, strict=True)] == alone
    assert [rank[0] for rank in ranks] == [[0, 1], [2, 3], [4, 5]]


def test_a_batch_that_ranks_cannot_share_is_refused_with_one_that_they_can(as_rank):
    with pytest.raises(SettingsError, match="multiple of the 3 processes .* got 4; set e.g. --batch_size 6"):
        as_rank(0, 3, lambda: ResumableSampler(4))


@pytest.mark.parametrize(("volumes", "expected"), [(5, [[0, 3], [1, 4], [2]]), (1, [[0], [0], [0]])])
def test_ranks_share_volumes_and_none_is_left_without(as_rank, volumes, expected):
    assert [as_rank(rank, 3, lambda: list(VolumeShare(range(volumes)))) for rank in range(3)] == expected
    assert list(VolumeShare(range(volumes))) == list(range(volumes))


def test_the_sampler_has_no_length():
    with pytest.raises(TypeError, match="endless and has no length; give `epoch_length`"):
        len(ResumableSampler(1))


def test_an_empty_batch_is_refused():
    with pytest.raises(ValueError, match="`batch_size` must be a whole number from 1, got 0"):
        ResumableSampler(0)

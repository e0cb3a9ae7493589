"""Where patches begin: their shares, what they hold, and that a grid covers a volume."""

import logging
from collections import Counter

import numpy as np
import pytest
import torch
from monai.transforms import Compose, RandFlipd, RandRotate90d
from torch.utils.data import DataLoader

from bundle.data.patches.dataset import PatchDataset, ResumableSampler
from bundle.data.patches.placing import PatchPlacer, grid_starts
from bundle.data.store.body import body_share
from bundle.data.store.store import PatchStore

SIZE = (16, 16, 16)
N_DRAWS = 300


def scan(vessel=True, body=True):
    """A box of body in air, with a vessel of contrast in it and no bone."""
    voxels = np.full((96, 96, 64), -1000, np.int16)
    if body:
        voxels[24:72, 24:72] = 40
    if vessel:
        voxels[40:56, 40:56, 16:48] = 300
    return voxels


@pytest.fixture
def stored(save_nifti, tmp_path):
    def store(**parts):
        path = save_nifti(scan(**parts), name="p0/ct.nii.gz")
        return PatchStore(tmp_path / "cache").prepare([{"image": str(path)}], show_progress=False)[0]

    return store


def draws(volume, **ratios):
    generator, placer = np.random.default_rng(0), PatchPlacer(SIZE, **ratios)
    return [placer.draw(generator, volume) for _ in range(N_DRAWS)]


def is_on_body(volume, start):
    return body_share(volume.body_map().body, np.array(start), np.array(SIZE)) >= 0.5


def test_shares_of_body_and_vessel_are_those_of_the_ratios(stored):
    volume = stored()
    centres = {tuple(np.clip(point.astype(int) - 8, 0, (80, 80, 48))) for point in volume.body_map().contrast}

    anywhere = np.mean([is_on_body(volume, start) for start in draws(volume)])
    on_body = np.mean([is_on_body(volume, start) for start in draws(volume, foreground_ratio=0.5)])
    at_vessel = np.mean([start in centres for start in draws(volume, vessel_ratio=0.3)])

    assert 0.1 < anywhere < 0.4
    assert on_body == pytest.approx(0.5 + 0.5 * anywhere, abs=0.09)  # three standard deviations
    assert at_vessel == pytest.approx(0.3, abs=0.09)


def test_every_vessel_patch_holds_contrast_at_its_centre(stored):
    volume = stored()
    voxels = volume.read()
    for x, y, z in draws(volume, vessel_ratio=1.0):
        assert 150 <= voxels[x + 8, y + 8, z + 8] <= 600


def test_a_vessel_patch_at_the_border_of_the_volume_still_holds_contrast(save_nifti, tmp_path):
    voxels = scan()
    voxels[40:56, 40:56, :] = 300
    path = save_nifti(voxels, name="p0/ct.nii.gz")
    (volume,) = PatchStore(tmp_path / "cache").prepare([{"image": str(path)}], show_progress=False)
    starts = draws(volume, vessel_ratio=1.0)

    assert {0, 48} <= {z for _, _, z in starts}
    for x, y, z in starts:
        assert (voxels[x : x + 16, y : y + 16, z : z + 16] == 300).any()


def test_another_sampling_is_refused(make):
    with pytest.raises(ValueError, match="`patch_sampling` must be one of random, grid, got 'net'"):
        make(sampling="net")


def test_without_contrast_patches_lie_on_the_body_and_without_body_anywhere(stored):
    plain = stored(vessel=False)
    assert all(is_on_body(plain, start) for start in draws(plain, vessel_ratio=1.0))


def test_volumes_without_contrast_are_named_once_if_vessels_are_asked_for(save_nifti, tmp_path, caplog):
    paths = [save_nifti(scan(vessel=n == 1), name=f"p{n}/ct.nii.gz") for n in range(3)]
    settings = ([{"image": str(path)} for path in paths], SIZE, tmp_path / "cache")

    PatchDataset(*settings, vessel_ratio=0.3).prepare()
    (warning,) = [record.getMessage() for record in caplog.records if "vessel" in record.getMessage()]
    caplog.clear()
    PatchDataset(*settings, foreground_ratio=0.3).prepare()
    PatchDataset(*settings, vessel_ratio=0.3, sampling="grid").prepare()

    assert warning.startswith("2 of 3 volumes show no vessel filled with contrast agent")
    assert [str(path) in warning for path in paths] == [True, False, True]
    assert "contrast agent" not in caplog.text


def test_a_volume_of_air_still_gives_patches(stored):
    air = stored(vessel=False, body=False)
    assert len(set(draws(air, foreground_ratio=1.0))) > 100


@pytest.mark.parametrize("shape", [(32, 48, 16), (33, 47, 17), (20, 10, 64)])
def test_a_grid_covers_every_voxel_with_the_fewest_patches(shape):
    covered = np.zeros(shape, int)
    starts = grid_starts(shape, SIZE)
    for start in starts:
        assert all(0 <= first <= max(length - 16, 0) for first, length in zip(start, shape, strict=True))
        covered[tuple(slice(first, first + 16) for first in start)] += 1
    assert covered.min() == 1
    assert len(starts) == np.prod([-(-length // 16) for length in shape])


@pytest.fixture
def make(save_nifti, tmp_path):
    cases = [{"image": str(save_nifti(scan() + n, name=f"p{n}/ct.nii.gz"))} for n in range(2)]

    def make_dataset(**settings):
        return PatchDataset(cases, SIZE, tmp_path / "cache", seed=7, **settings)

    return make_dataset


def test_each_pass_over_the_grid_holds_every_patch_once_in_another_order(make):
    dataset = make(sampling="grid")
    n_patches = 2 * len(grid_starts((96, 96, 64), SIZE))
    passes = [
        [(volume.name, volume.path, start) for volume, start in map(dataset.draw, numbers)]
        for numbers in (range(n_patches), range(n_patches, 2 * n_patches))
    ]
    assert set(Counter(passes[0]).values()) == {1}
    assert len(passes[0]) == n_patches and sorted(passes[0]) == sorted(passes[1]) and passes[0] != passes[1]
    assert dataset.draw(3)[1] == passes[0][3][2]  # whatever was drawn before


def augmented(make):
    flips = [RandFlipd("image", prob=0.5, spatial_axis=axis) for axis in (0, 1)]
    turn = RandRotate90d("image", prob=0.5, max_k=3, spatial_axes=(0, 1))
    return make(augmentation=Compose([*flips, turn]), foreground_ratio=0.5, vessel_ratio=0.3)


def test_random_transforms_follow_the_sample_whatever_the_workers_and_where_a_run_resumes(make):
    dataset = augmented(make)
    dataset.prepare()
    batches = []
    for num_workers, start in ((0, 0), (2, 0), (0, 2)):
        sampler = ResumableSampler(2)
        sampler.start_iteration = start
        loader = iter(DataLoader(dataset, batch_sampler=sampler, num_workers=num_workers))
        batches.append([torch.as_tensor(next(loader)["image"]) for _ in range(4 - start)])
    assert all(map(torch.equal, batches[0], batches[1]))
    assert all(map(torch.equal, batches[0][2:], batches[2]))


def test_flips_and_turns_are_drawn_in_the_plane_and_are_those_of_their_fixed_twins(make):
    plain, dataset = make(foreground_ratio=0.5, vessel_ratio=0.3), augmented(make)
    n_changed = 0
    for sample in range(24):
        before, after = plain[sample]["image"], torch.as_tensor(dataset[sample]["image"])
        twins = [
            torch.rot90(before.flip(axes), turns, (1, 2))
            for axes in ((), (1,), (2,), (1, 2))
            for turns in range(4)
        ]
        assert any(torch.equal(after, twin) for twin in twins)
        n_changed += not torch.equal(after, before)
    assert n_changed > 3


def test_windows_other_than_the_usual_are_counted_while_packing(make, caplog, monkeypatch):
    dataset = make(hu_min=-1024, hu_max=600)
    with caplog.at_level(logging.INFO):
        dataset.prepare()
        boxes = []
        monkeypatch.setattr("bundle.data.store.stored_volume.read_box", lambda *box: boxes.append(box))
        dataset.volumes[0].outside_window(-1024, 600)
    assert "below -1024 HU" in caplog.text and boxes == []

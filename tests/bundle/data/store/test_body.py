"""Where the body is, and how points are spread over filled vessels."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from bundle.data.store.body import MAX_POINTS, STEP, Outside, count_in_body, find_body, map_body

DATA = Path(__file__).resolve().parents[3] / "data"


def test_a_lung_that_a_crop_cuts_through_is_body_but_air_around_a_body_is_not():
    lung = np.full((20, 20, 6), -870, np.int16)
    lung[8:12] = 40
    around = np.full((20, 20, 6), -1000, np.int16)
    around[8:12] = 40

    assert find_body(lung).all()
    assert find_body(around)[9:11, 9:11].all() and not find_body(around)[:8].any()


def test_the_foam_of_the_table_is_not_body():
    samples = np.full((30, 30, 6), -1000, np.int16)
    samples[:, :6] = -915  # from side to side
    samples[:, 6] = 100
    samples[8:22, 10:24] = 40
    assert not find_body(samples)[:, :7].any()


def test_clipped_air_and_padding_around_a_body_are_told_apart_from_the_body():
    samples = np.full((30, 30, 6), -2048, np.int16)
    samples[8:22, 8:22] = 40
    samples[10:12, 10:20] = 1500  # bone

    n_below, n_above, n_body = count_in_body(samples, -1000, 1000)
    told = Outside(4000, 120, n_below, n_above, n_body).told(5400, -1000, 1000)

    assert (n_below, n_above, n_body) == (0, 120, (14 * 14 - 4) * 6)  # an opening rounds the corners
    assert told == (
        "4000 of 5400 voxels (74.07 %) below -1000 HU and 120 (2.22 %) above 1000 HU, of the body 0.00 % and "
        "10.42 %"
    )


@pytest.mark.parametrize("part", ["training", "validation"])
def test_the_crops_of_a_contrast_enhanced_scan_have_points_on_contrast(part):
    image = nib.load(DATA / f"lidc_idri_0001_{part}.nii.gz")
    voxels = np.asanyarray(nib.as_closest_canonical(image).dataobj)
    points = map_body(voxels[::STEP, ::STEP, ::STEP], image.header.get_zooms()).contrast

    assert 1000 < len(points) <= MAX_POINTS
    assert np.all((voxels[tuple(points.T)] >= 150) & (voxels[tuple(points.T)] <= 1000))


def test_vessels_inside_the_lungs_get_up_to_a_quarter_of_the_points():
    samples = np.full((60, 50, 40), -1000, np.int16)
    samples[4:56, 4:46] = 40
    samples[8:26, 8:42, 2:38] = samples[34:52, 8:42, 2:38] = -870
    samples[27:33, 14:36, 4:36] = 350
    samples[16, 24, 8:32] = samples[42, 24, 8:32] = 300
    points = map_body(samples, (0.75, 0.75, 0.75)).contrast // STEP

    in_lung = points[(points[:, 0] < 26) | (points[:, 0] >= 34)]
    assert len(np.unique(in_lung, axis=0)) == 48
    assert len(in_lung) == 8 * 48 and len(points) == MAX_POINTS

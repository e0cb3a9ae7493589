"""What of a volume a page holds."""

import nibabel as nib
import numpy as np
import pytest

from bundle.viewing.views import (
    Place,
    box_around,
    box_slices,
    largest_errors,
    nifti_bytes,
    overview,
    views_of,
)

AFFINE = np.array([[0.7, 0, 0, -90], [0, 0.7, 0, -80], [0, 0, 2.5, -60], [0, 0, 0, 1.0]])


def volume(shape=(60, 50, 40)):
    return np.random.default_rng(0).integers(-1000, 1000, shape, np.int16)


def test_a_small_volume_is_shown_as_it_is():
    voxels = volume()
    view = overview(voxels, voxels, AFFINE, [Place("here", (1, 2, 3))])
    assert view.original is voxels and view.name == "whole volume" and view.places[0].voxel == (1, 2, 3)


def test_an_overview_holds_averages_at_their_place():
    voxels = np.zeros((60, 50, 20), np.int16)
    voxels[30:33, 21:24] = 900
    view = overview(voxels, voxels, AFFINE, [Place("here", (31, 22, 5))], max_voxels=6800)
    assert view.original.shape == (20, 16, 20) and view.recon.max() == 900
    (place,) = view.places
    assert view.original[place.voxel] == 900
    at_mm = nib.affines.apply_affine(view.affine, place.voxel)
    assert np.allclose(at_mm, nib.affines.apply_affine(AFFINE, (31, 22, 5)))


@pytest.mark.parametrize("shape", [(512, 512, 604), (512, 512, 133), (512, 512, 40), (300, 2000, 3)])
def test_an_overview_is_never_larger_than_it_may_be(shape):
    empty = np.broadcast_to(np.int16(0), shape)
    assert np.prod(overview(empty, empty, AFFINE, max_voxels=10**5).original.shape) <= 10**5


def test_a_box_keeps_voxels_places_and_millimetres():
    voxels = volume()
    places = [Place("inside", (50, 40, 30)), Place("outside", (5, 5, 5))]
    view = box_around("around", voxels, voxels, AFFINE, (50, 40, 30), places, side=24)
    (place,) = view.places
    assert view.original.shape == (24, 24, 24) and view.original[place.voxel] == voxels[50, 40, 30]
    at_mm = nib.affines.apply_affine(view.affine, place.voxel)
    assert np.allclose(at_mm, nib.affines.apply_affine(AFFINE, (50, 40, 30)))


@pytest.mark.parametrize("centre", [(0, 0, 0), (59, 49, 39), (30.4, 20.6, 3)])
def test_a_box_lies_inside_the_volume(centre):
    for part, length, size in zip(
        box_slices((60, 50, 40), centre, 48), (60, 50, 40), (48, 48, 40), strict=True
    ):
        assert 0 <= part.start < part.stop <= length and part.stop - part.start == size


def test_the_largest_errors_are_found_worst_first_and_apart():
    original = np.zeros((70, 64, 40), np.int16)
    recon = original.copy()
    recon[16:32, 32:48, 16:32] = 100
    recon[64:, 48:, 32:] = -300
    recon[48:64, 32:48, 16:32] = 200  # beside the worst one
    recon[:16, :16, :16] = 50
    places = largest_errors(original, recon, -1000, 1000)
    assert [(place.name, place.voxel) for place in places] == [
        ("large error 1: 300 HU", (69, 56, 39)),
        ("large error 2: 100 HU", (24, 40, 24)),
        ("large error 3: 50 HU", (8, 8, 8)),
    ]
    assert largest_errors(original, original, -1000, 1000) == []


def test_errors_outside_the_window_do_not_count():
    original = np.full((32, 32, 32), -1000, np.int16)
    assert largest_errors(original, original - np.int16(1000), -1000, 1000) == []


def test_views_are_an_overview_and_a_box_around_what_matters():
    original = volume()
    recon = original.copy()
    recon[8:24, 8:24, 8:24] //= 2
    found = views_of(
        original, recon, AFFINE, (-1000, 1000), [Place("invented embolus 1: 40 %", (50, 40, 30))], 24
    )
    assert [view.name for view in found] == [
        "whole volume",
        "around invented embolus 1, full resolution",
        "around large error 1, full resolution",
    ]
    assert all(view.places for view in found)


def test_a_file_begins_with_352_bytes_and_reads_back():
    voxels = volume((7, 6, 5))
    content = nifti_bytes(voxels, AFFINE)
    image = nib.Nifti1Image.from_bytes(content)
    assert len(content) == 352 + 2 * voxels.size
    assert np.array_equal(np.asanyarray(image.dataobj), voxels) and np.allclose(image.affine, AFFINE)
    assert np.array_equal(np.frombuffer(content[352:], "<i2"), voxels.ravel(order="F"))

import nibabel as nib
import numpy as np
import pytest

from bundle.data.cases.split import inference_cases
from bundle.data.volumes.phantom import make_phantom, write_phantom

SHAPE = (64, 48, 40)


def test_a_seed_makes_one_phantom():
    np.testing.assert_array_equal(make_phantom(SHAPE, seed=3), make_phantom(SHAPE, seed=3))
    assert (make_phantom(SHAPE, seed=3) != make_phantom(SHAPE, seed=4)).any()


@pytest.mark.parametrize("shape, spacing_mm", [((64, 64, 64), (1, 1, 1)), ((65, 50, 23), (1.5, 1.5, 5))])
def test_a_phantom_holds_the_contrasts_of_a_chest(shape, spacing_mm):
    hu = make_phantom(shape, spacing_mm)

    parts = {
        "air": np.mean(hu < -930),
        "lung": np.mean((hu > -930) & (hu < -790)),
        "soft tissue": np.mean((hu > -150) & (hu < 105)),
        "contrast": np.mean((hu > 250) & (hu < 450)),
        "bone": np.mean(hu > 490),
    }
    assert hu.dtype == np.int16 and hu.shape == shape
    assert all(share > 0.005 for share in parts.values()), parts
    assert hu[0, 0].max() < -900, "outside of the body"


def test_vessels_branch_into_both_lungs():
    hu = make_phantom((96, 80, 64))
    lateral = np.r_[10:28], np.r_[68:86]

    for columns in lateral:
        lung = hu[columns, 30:55, 10:54]
        assert 0.001 < np.mean((lung > 250) & (lung < 450)) < 0.2


def test_nothing_lies_on_the_wrong_side_of_the_patient(tmp_path):
    """The heart lies left and anterior, whichever way the file's axes point."""
    for name, affine in {
        "ras": np.diag([1.0, 1.2, 2.0, 1.0]),
        "lps": np.diag([-1.0, -1.2, 2.0, 1.0]),
        "permuted": np.array([[0, 0, -1.0, 9], [1.2, 0, 0, 8], [0, 2.0, 0, 7], [0, 0, 0, 1]]),
    }.items():
        write_phantom(tmp_path / f"{name}.nii.gz", SHAPE, affine)

        image = nib.load(tmp_path / f"{name}.nii.gz")
        voxels = np.asanyarray(nib.as_closest_canonical(image).dataobj)
        contrast = np.argwhere((voxels > 250) & (voxels < 450)).mean(axis=0)
        centre = (np.array(voxels.shape) - 1) / 2
        assert image.shape == SHAPE and contrast[0] < centre[0] and contrast[1] > centre[1]
        np.testing.assert_allclose(image.affine, affine, rtol=1e-6)


def test_a_written_phantom_is_a_usable_volume(tmp_path):
    write_phantom(tmp_path / "p1" / "ct.nii.gz", SHAPE, np.eye(4))

    assert [case["patient"] for case in inference_cases(tmp_path)] == ["p1"]
    assert len(list((tmp_path / "p1").iterdir())) == 1


@pytest.mark.parametrize(
    "shape, spacing_mm", [((8, 8), (1, 1, 1)), ((8, 8, 0), (1, 1, 1)), ((8, 8, 8), (1, -1, 1))]
)
def test_an_impossible_phantom_is_refused(shape, spacing_mm):
    with pytest.raises(ValueError, match="`shape` and `spacing_mm` must be three positive numbers each"):
        make_phantom(shape, spacing_mm)

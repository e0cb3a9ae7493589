import numpy as np
import pydicom
import pytest
from monai.transforms import Compose, SaveImaged

from bundle.data.cases.provenance import Provenance
from bundle.data.volumes.reading import VolumeError, read_volume
from transforms.load import LoadImageCTPAd
from transforms.save import SaveImageCTPAd
from transforms.spatial import OrientRASd, RestoreOrientationd

OBLIQUE = (0.8, 0.6, 0.0, -0.48, 0.64, 0.6)
HU = np.random.default_rng(0).integers(-1000, 1001, (5, 6, 8)).astype(np.int16)  # Z, rows, columns
SETTINGS = {"preset": "lite", "quantizer": "fsq", "num_embeddings": 64, "hu_min": -1000, "hu_max": 1000}


def save_dicom(output_dir, **arguments):
    return SaveImageCTPAd("pred", output_dir, output_format="dicom", settings=SETTINGS, **arguments)


@pytest.mark.parametrize("orientation", [(1, 0, 0, 0, 1, 0), OBLIQUE])
def test_a_prediction_goes_back_to_the_slices_it_came_from(write_dicom, tmp_path, orientation):
    folder = write_dicom(tmp_path / "data" / "p1" / "1.2.840.1", HU, orientation)
    way = Compose([LoadImageCTPAd("image"), OrientRASd("image")])
    back = RestoreOrientationd("pred", "image")
    save = save_dicom(tmp_path / "out", data_root_dir=tmp_path / "data")

    item = way({"image": str(folder)})
    item = save(back({**item, "pred": -item["image"].as_tensor()}))

    written = tmp_path / "out" / "p1" / "1.2.840.1_recon"
    assert item["pred"].meta["saved_to"] == str(written)
    assert sorted(path.name for path in written.iterdir()) == [f"000{number}.dcm" for number in range(1, 6)]
    np.testing.assert_array_equal(read_volume(written).voxels, -HU.transpose(2, 1, 0))
    np.testing.assert_array_equal(read_volume(written).affine, read_volume(folder).affine)


@pytest.mark.parametrize("names_model", [True, False])
def test_the_model_is_named_if_it_was_told(write_dicom, tmp_path, names_model):
    folder = write_dicom(tmp_path / "ct", HU)
    save = save_dicom(tmp_path / "out")
    if names_model:
        save.check([{"image": str(folder)}], lambda: Provenance("0123456789abcdef"))

    save({"pred": LoadImageCTPAd("image")({"image": folder})["image"]})

    text = pydicom.dcmread(tmp_path / "out" / "ct_recon" / "0001.dcm").DerivationDescription
    assert f"model {'0123456789ab' if names_model else 'unknown'})" in text
    assert "quantizer fsq" in text


def test_every_volume_of_which_no_dicom_can_be_made_is_named_at_once(write_dicom, save_nifti, tmp_path):
    (tmp_path / "out" / "taken_recon").mkdir(parents=True)
    (tmp_path / "out" / "taken_recon" / "mine.txt").write_text("mine")
    names = ("good", "taken")
    cases = [{"image": str(write_dicom(tmp_path / name, HU))} for name in names]
    cases.append({"image": str(save_nifti(HU))})

    with pytest.raises(VolumeError) as refused:
        save_dicom(tmp_path / "out").check(cases, Provenance)

    assert "scan.nii.gz: is not DICOM" in str(refused.value) and "good" not in str(refused.value)
    assert "taken_recon: holds something other than an earlier result" in str(refused.value)
    SaveImageCTPAd("pred", tmp_path / "out").check(cases, Provenance)  # NIfTI goes everywhere


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"output_format": "nrrd"}, "`output_format` must be one of nifti, dicom, got 'nrrd'"),
        ({"output_format": "dicom"}, "`settings` must be given with `output_format` dicom, got None"),
    ],
)
def test_a_format_that_cannot_be_written_is_refused_when_it_is_chosen(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        SaveImageCTPAd("pred", tmp_path, **arguments)


def test_a_server_that_drops_monais_save_drops_this_one_too(tmp_path):
    assert isinstance(save_dicom(tmp_path), SaveImaged)

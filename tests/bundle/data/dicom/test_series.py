import logging
import os
import struct
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from bundle.data.cases.split import inference_cases, split_cases
from bundle.data.dicom.pixels import _Decoder
from bundle.data.dicom.series import find_series
from bundle.data.volumes.formats import VolumeError, read_header
from bundle.data.volumes.reading import CTReader, read_volume
from bundle.run.names import SALT_VARIABLE, patient_hash
from transforms.load import LoadImageCTPAd
from transforms.save import SaveImageCTPAd
from transforms.spatial import OrientRASd, RestoreOrientationd

OBLIQUE = (0.8, 0.6, 0.0, -0.48, 0.64, 0.6)  # row and column cosines
HU = np.random.default_rng(0).integers(-1024, 2000, (5, 6, 8)).astype(np.int16)  # Z, rows, columns

# The writer of JPEG 2000 goes wrong on a few pixels.
LARGE_HU = np.random.default_rng(1).integers(-1024, 2000, (3, 64, 48)).astype(np.int16)


@pytest.mark.parametrize("orientation", [(1, 0, 0, 0, 1, 0), (0, 1, 0, 0, 0, -1), OBLIQUE])
def test_a_series_equals_the_nifti_that_simpleitk_makes_of_it(write_dicom, tmp_path, orientation):
    folder = write_dicom(tmp_path / "series", HU, orientation)
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder)))
    sitk.WriteImage(reader.Execute(), str(tmp_path / "oracle.nii.gz"))
    oracle = nib.load(tmp_path / "oracle.nii.gz")

    volume = read_volume(folder)

    assert volume.voxels.dtype == np.int16
    np.testing.assert_array_equal(volume.voxels, np.asarray(oracle.dataobj))
    corners = np.array(np.meshgrid(*[(0, length - 1) for length in volume.voxels.shape])).reshape(3, -1)
    there, here = (nib.affines.apply_affine(affine, corners.T) for affine in (oracle.affine, volume.affine))
    np.testing.assert_allclose(here, there, atol=1e-4)  # a NIfTI affine is float32
    np.testing.assert_allclose(volume.header.get_best_affine(), volume.affine, atol=1e-4)


def test_header_and_volume_agree_and_any_file_stands_for_its_series(write_dicom, tmp_path):
    folder = write_dicom(tmp_path / "series", HU)

    header = read_header(folder)
    one = read_volume(sorted(folder.iterdir())[3])

    assert header.shape == (8, 6, 5) == one.voxels.shape
    np.testing.assert_array_equal(header.affine, one.affine)
    np.testing.assert_array_equal(one.voxels, HU.transpose(2, 1, 0))


@pytest.mark.parametrize("compressor", ["JPEG", "JPEG2000"])
def test_losslessly_compressed_slices_are_read(write_dicom, tmp_path, compressor):
    folder = write_dicom(tmp_path / "series", LARGE_HU, compressor=compressor)

    np.testing.assert_array_equal(read_volume(folder).voxels, LARGE_HU.transpose(2, 1, 0))


def test_slices_packed_as_runs_are_read(write_dicom, tmp_path):
    folder = write_dicom(tmp_path / "series", LARGE_HU, compressor="JPEG")
    (series,) = find_series(folder)
    for path, slice_hu in zip(series.files, LARGE_HU, strict=True):
        Path(path).write_bytes(as_runs(Path(path).read_bytes(), slice_hu.astype(np.int32) + 1024))

    np.testing.assert_array_equal(read_volume(folder).voxels, LARGE_HU.transpose(2, 1, 0))


def as_runs(content: bytes, stored: np.ndarray) -> bytes:
    """A JPEG-lossless file with its pixels packed again as RLE (DICOM PS3.5 annex G), in literal runs."""
    values = stored.astype("<u2").tobytes()
    segments = [literal_runs(values[1::2]), literal_runs(values[::2])]
    offsets = [64, 64 + len(segments[0])] + [0] * 13
    frame = struct.pack("<16I", 2, *offsets) + b"".join(segments)
    frame += b"\0" * (len(frame) % 2)
    item = b"\xfe\xff\x00\xe0"
    pixels = b"\xe0\x7f\x10\x00OB\0\0\xff\xff\xff\xff" + item + bytes(4)
    pixels += item + struct.pack("<I", len(frame)) + frame + b"\xfe\xff\xdd\xe0" + bytes(4)
    head = content[: content.index(b"\xe0\x7f\x10\x00OB")]
    return head.replace(b"1.2.840.10008.1.2.4.70", b"1.2.840.10008.1.2.5\0\0\0") + pixels


def literal_runs(values: bytes) -> bytes:
    runs = [values[first : first + 128] for first in range(0, len(values), 128)]
    packed = b"".join(bytes([len(run) - 1]) + run for run in runs)
    return packed + b"\0" * (len(packed) % 2)


def test_each_slice_has_its_own_slope_and_intercept(write_dicom, tmp_path):
    scaling = [("1", "-1024"), ("2", "-1000"), ("1", "0"), ("4", "-1024"), ("1", "-512")]
    whole = (HU // 8) * 8
    folder = write_dicom(
        tmp_path / "series",
        whole,
        slice_tags=lambda z: {"0028|1053": scaling[z][0], "0028|1052": scaling[z][1]},
    )

    volume = read_volume(folder)

    assert volume.voxels.dtype == np.int16
    np.testing.assert_array_equal(volume.voxels, whole.transpose(2, 1, 0))


def test_a_slope_that_is_no_whole_number_gives_float32(write_dicom, tmp_path):
    folder = write_dicom(tmp_path / "series", HU)
    slope = b"\x28\x00\x53\x10\x02\x00\x00\x00"
    for path in folder.iterdir():
        path.write_bytes(path.read_bytes().replace(slope + b"1 ", slope + b".5"))

    volume = read_volume(folder)

    assert volume.voxels.dtype == np.float32
    np.testing.assert_array_equal(volume.voxels, (HU.transpose(2, 1, 0) + 1024) * 0.5 - 1024)


def test_a_tilted_gantry_is_carried_by_the_affine_with_one_warning(write_dicom, tmp_path, caplog):
    tilt = lambda z: {"0020|0032": f"-50\\{20 + 0.3 * z}\\{100 + 1.5 * z}"}  # noqa: E731
    folder = write_dicom(tmp_path / "series", HU, slice_tags=tilt)

    with caplog.at_level(logging.WARNING):
        read_header(folder)
        volume = read_volume(folder)

    np.testing.assert_allclose(volume.affine @ [0, 0, 4, 1], [50, -21.2, 106, 1], atol=1e-9)
    assert caplog.text.count("gantry tilt of 11.3 degrees") == 1
    assert volume.header["qform_code"] == 0 and volume.header["sform_code"] == 1
    np.testing.assert_array_equal(volume.voxels, HU.transpose(2, 1, 0))


def test_series_are_found_at_any_depth_and_named_uniquely(write_dicom, tmp_path):
    write_dicom(tmp_path / "p1" / "study" / "a", HU)
    write_dicom(tmp_path / "p1" / "study" / "b", HU, series="1.2.3.5")
    write_dicom(tmp_path / "p1" / "study" / "b", HU, series="1.2.3.6")
    (tmp_path / "p1" / "notes").write_text("no DICOM")

    found = find_series(tmp_path)

    study = tmp_path / "p1" / "study"
    assert [series.path for series in found] == [
        str(study / "a"),
        str(study / "b" / "1235003"),
        str(study / "b" / "1236003"),
    ]
    assert [len(series.files) for series in found] == [5, 5, 5]
    assert len({series.uid_hash for series in found}) == 3
    assert all(read_header(series.path).shape == (8, 6, 5) for series in found)


def test_nothing_of_the_patient_is_given_in_clear(write_dicom, tmp_path, caplog):
    write_dicom(tmp_path / "good", HU)
    write_dicom(tmp_path / "bad", HU, tags={"0028|1054": "OD"})
    reader = CTReader()

    with pytest.raises(VolumeError) as refused:
        read_volume(tmp_path / "bad")
    texts = [repr(find_series(tmp_path)), str(refused.value), caplog.text]
    texts.append(repr(reader.get_data(reader.read(tmp_path / "good"))[1]))

    assert not any(secret in text for text in texts for secret in ("DOE", "JANE", "MRN", "4711"))


def test_the_salt_changes_the_hash_of_a_patient(monkeypatch):
    public = patient_hash("MRN-4711")
    monkeypatch.setenv(SALT_VARIABLE, "of our hospital")

    assert len(public) == 16 and patient_hash("MRN-4711") not in (public, patient_hash("MRN-4712"))


def test_folders_of_one_patient_stay_on_one_side_of_the_split(write_dicom, save_nifti, tmp_path):
    for number in range(8):
        tags = {"0010|0020": f"MRN-{number % 4}"}
        write_dicom(tmp_path / f"folder_{number}" / "ct", HU, tags=tags, series=f"1.2.{number}")
    save_nifti(HU, name="folder_1/earlier.nii.gz")

    split = split_cases(tmp_path)

    sides = [{case["patient"] for case in split[name]} for name in ("training", "validation")]
    assert not sides[0] & sides[1] and len(sides[0] | sides[1]) == 4
    assert len(split["training"] + split["validation"]) == 9


def test_what_is_no_volume_is_skipped_and_what_is_damaged_is_an_error(write_dicom, tmp_path, caplog):
    write_dicom(tmp_path / "p1" / "ct", HU)
    write_dicom(
        tmp_path / "p1" / "ct", HU[:2], series="1.9", tags={"0008|0008": "ORIGINAL\\PRIMARY\\LOCALIZER"}
    )

    with caplog.at_level(logging.WARNING):
        cases = inference_cases(tmp_path)

    assert [case["image"] for case in cases] == [str(tmp_path / "p1" / "ct")]
    assert caplog.text.count("is a localizer, not a volume; it is skipped") == 1
    write_dicom(tmp_path / "p2" / "ct", HU, tags={"0028|1054": "OD"})
    with pytest.raises(ValueError, match=r"1 of 2 volumes cannot be used:\n  .*p2/ct: .* is not in HU"):
        inference_cases(tmp_path)


def test_a_series_goes_through_the_transforms_of_inference_and_comes_out_in_its_place(write_dicom, tmp_path):
    folder = write_dicom(tmp_path / "p1" / "1.2.840.1", HU, OBLIQUE)
    save = SaveImageCTPAd("image", tmp_path / "out", data_root_dir=tmp_path)

    image = LoadImageCTPAd("image")({"image": folder})
    turned = OrientRASd("image")(image)
    pred = RestoreOrientationd("pred", orig_keys="image")(turned | {"pred": turned["image"].clone()})
    save({"image": pred["pred"]})

    written = read_volume(tmp_path / "out" / "p1" / "1.2.840.1_recon.nii.gz")
    np.testing.assert_array_equal(written.voxels, HU.transpose(2, 1, 0))
    np.testing.assert_allclose(written.affine, read_volume(folder).affine, atol=1e-5)


def test_ctrl_c_at_a_terminal_does_not_reach_the_process_that_decodes(write_dicom, tmp_path, monkeypatch):
    sessions = []
    ask = _Decoder._ask

    def watched(decoder, content):
        sessions.append(os.getsid(decoder.process.pid))
        return ask(decoder, content)

    monkeypatch.setattr(_Decoder, "_ask", watched)
    read_volume(write_dicom(tmp_path / "series", LARGE_HU, compressor="JPEG"))

    assert len(set(sessions)) == 1 and len(sessions) == len(LARGE_HU) and os.getsid(0) not in sessions

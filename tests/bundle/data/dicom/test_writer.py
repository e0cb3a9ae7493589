import logging
import re

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk

from bundle.data.dicom.derived import SERIES_DESCRIPTION, SeriesWriter, derivation_text
from bundle.data.dicom.series import find_one_series, find_series
from bundle.data.volumes.reading import read_volume

OBLIQUE = (0.8, 0.6, 0.0, -0.48, 0.64, 0.6)  # row and column cosines
HU = np.random.default_rng(0).integers(-1000, 1001, (5, 6, 8)).astype(np.int16)  # Z, rows, columns
RESULT = HU[..., ::-1].transpose(2, 1, 0)  # (X, Y, Z), other voxels than the source's
SETTINGS = {"preset": "lite", "quantizer": "ema", "num_embeddings": 64, "hu_min": -1000.0, "hu_max": 1000.0}
DERIVATION = derivation_text(SETTINGS, "0123456789abcdef" * 4)
IDENTITY = {
    "0008|0020": "20240131",
    "0008|0030": "142233.5",
    "0008|0050": "ACC-17",
    "0008|0090": "HOUSE^GREGORY",
    "0010|0010": "DOE^JANE",
    "0010|0020": "MRN-4711",
    "0010|0021": "HOSPITAL",
    "0010|0030": "19511003",
    "0010|0040": "F",
    "0018|0015": "CHEST",
    "0018|5100": "FFS",
    "0020|000d": "1.2.3",
    "0020|0010": "STUDY 1",
    "0020|0052": "1.2.3.4.5.6",
}
OF_THE_SCAN = {"0008|0008": "ORIGINAL\\PRIMARY\\AXIAL", "0008|0070": "SCANNER", "0010|4000": "call her son"}


def derive(source, target, voxels=RESULT):
    """Writes `voxels` as the series derived from `source` and gives its slices by name."""
    writer = SeriesWriter(DERIVATION)
    writer.set_data_array(np.ascontiguousarray(voxels)[None])
    writer.set_metadata({"filename_or_obj": str(source), "affine": read_volume(source).affine})
    target.parent.mkdir(exist_ok=True)
    writer.write(target)
    return [pydicom.dcmread(path) for path in sorted(target.iterdir())]


def tilted(z):
    return {"0020|0032": f"-50.25\\{20 + 0.3 * z}\\{100 + 1.5 * z}"}


def from_above(z):
    return {"0020|0032": f"-50\\20\\{100 - 1.5 * z}", "0020|0013": f"{z + 1}"}


@pytest.mark.parametrize(
    "source",
    [
        {},
        {"orientation": OBLIQUE},
        {"slice_tags": tilted},
        {"slice_tags": from_above},
        {"compressor": "JPEG"},
    ],
    ids=["axial", "oblique", "tilted", "from above", "packed"],
)
def test_voxels_and_geometry_come_back_whoever_reads_them(write_dicom, tmp_path, source):
    folder = write_dicom(tmp_path / "ct", HU, **source)

    slices = derive(folder, tmp_path / "out" / "ct_recon")

    written, original = read_volume(tmp_path / "out" / "ct_recon"), read_volume(folder)
    np.testing.assert_array_equal(written.voxels, RESULT)
    np.testing.assert_array_equal(written.affine, original.affine)
    np.testing.assert_array_equal(
        np.stack([one.pixel_array for one in slices], -1), HU[..., ::-1].transpose(1, 2, 0)
    )
    for one, path in zip(slices, find_one_series(folder).files, strict=True):
        other = pydicom.dcmread(path)
        for name in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"):
            assert one.get_item(name).value.strip() == other.get_item(name).value.strip()


@pytest.mark.parametrize("orientation", [(1, 0, 0, 0, 1, 0), OBLIQUE])
def test_simpleitk_reads_the_series_onto_the_grid_of_its_source(write_dicom, tmp_path, orientation):
    folder = write_dicom(tmp_path / "ct", HU, orientation)

    derive(folder, tmp_path / "ct_recon")

    written, original = (read_by_simpleitk(path) for path in (tmp_path / "ct_recon", folder))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(written), HU[..., ::-1])
    for name in ("GetSpacing", "GetOrigin", "GetDirection"):
        np.testing.assert_allclose(getattr(written, name)(), getattr(original, name)(), atol=1e-4)


def read_by_simpleitk(folder):
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder)))
    return reader.Execute()


def test_patient_and_study_are_the_sources_and_nothing_else_is(write_dicom, tmp_path):
    folder = write_dicom(tmp_path / "ct", HU, tags=IDENTITY | OF_THE_SCAN)

    slices = derive(folder, tmp_path / "ct_recon")

    for one in slices:
        found = {tag: str(one[tag.replace("|", "")].value) for tag in IDENTITY}
        assert found == IDENTITY
        assert one.Manufacturer == "ctpa_vqgan" and "PatientComments" not in one
        assert list(one.ImageType) == ["DERIVED", "SECONDARY", "AXIAL"]


def test_series_and_instances_are_new_and_name_the_slices_they_come_from(write_dicom, tmp_path):
    folder = write_dicom(tmp_path / "ct", HU, tags={"0020|0011": "4"})

    slices = derive(folder, tmp_path / "ct_recon") + derive(folder, tmp_path / "again")

    sources = [pydicom.dcmread(path) for path in find_one_series(folder).files]
    uids = {one.SOPInstanceUID for one in slices} | {one.SeriesInstanceUID for one in slices}
    assert len(uids) == 2 * len(HU) + 2
    assert all(re.fullmatch(r"2\.25\.[1-9]\d{0,38}", uid) for uid in uids)
    assert [one.file_meta.MediaStorageSOPInstanceUID for one in slices] == [
        one.SOPInstanceUID for one in slices
    ]
    assert [one.SourceImageSequence[0].ReferencedSOPInstanceUID for one in slices] == [
        one.SOPInstanceUID for one in sources * 2
    ]
    assert {one.SeriesNumber for one in slices} == {9004}


def test_every_slice_says_that_it_is_research_and_how_it_was_made(write_dicom, tmp_path):
    slices = derive(write_dicom(tmp_path / "ct", HU), tmp_path / "ct_recon")

    for one in slices:
        assert one.SeriesDescription == "RESEARCH, AI-reconstructed" == SERIES_DESCRIPTION
        assert one.LossyImageCompression == "01" and one.BurnedInAnnotation == "NO"
        assert one.DerivationDescription == DERIVATION and len(DERIVATION) <= 1024
    for part in ("not for diagnosis", "lite", "64 codes", "171:1", "0123456789ab", "-1000 to 1000"):
        assert part in DERIVATION


@pytest.mark.parametrize(
    ("character_set", "name"),
    [
        ("ISO_IR 100", "DÖE^JÄNE".encode("latin-1")),
        ("ISO_IR 192", "DÖE^JÄ".encode()),
        ("\\ISO 2022 IR 87", b"A^\x1b$B;3\x1b(B"),
    ],
)
def test_a_name_in_another_character_set_stays_what_it_is(write_dicom, tmp_path, character_set, name):
    folder = write_dicom(tmp_path / "ct", HU, tags={"0008|0005": character_set, "0010|0010": "x" * 10})
    for path in folder.iterdir():
        path.write_bytes(path.read_bytes().replace(b"x" * 10, name.ljust(10)))

    slices = derive(folder, tmp_path / "ct_recon")

    source = pydicom.dcmread(next(folder.iterdir()))
    for one in slices:
        assert one.get_item("PatientName").value.rstrip() == name.rstrip()
        assert str(one.PatientName) == str(source.PatientName)


def test_bytes_that_no_rule_of_dicom_allows_go_through_as_they_are(write_dicom, tmp_path):
    folder = write_dicom(tmp_path / "ct", HU, tags={"0008|0020": "x" * 8, "0018|0050": "y" * 24})
    values = {b"x" * 8: b"2024-1\xe9?", b"y" * 24: b"1.234567890123456789e-1 mm"[:24]}
    for path in folder.iterdir():
        content = path.read_bytes()
        for placeholder, value in values.items():
            assert content.count(placeholder) == 1
            content = content.replace(placeholder, value)
        path.write_bytes(content)

    derive(folder, tmp_path / "ct_recon")

    for path in (tmp_path / "ct_recon").iterdir():
        assert all(value in path.read_bytes() for value in values.values())


def test_what_the_source_does_not_say_is_not_made_up(write_dicom, tmp_path):
    folder = write_dicom(tmp_path / "ct", HU)
    unknown = ("PatientName", "PatientID", "StudyDate", "StudyTime", "AccessionNumber")
    for path in folder.iterdir():
        original = pydicom.dcmread(path)
        for name in (*unknown, "StudyInstanceUID"):
            del original[name]
        original.save_as(path)

    slices = derive(folder, tmp_path / "ct_recon")

    for name in unknown:
        assert {str(one[name].value or "") for one in slices} == {""}
    assert len({one.StudyInstanceUID for one in slices}) == 1
    assert [one.InstanceNumber for one in slices] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(("number", "derived"), [("2", 9002), ("2147483000", 2147483000), ("", 9000)])
def test_the_series_number_tells_which_series_it_comes_from(write_dicom, tmp_path, number, derived):
    folder = write_dicom(tmp_path / "ct", HU, tags={"0020|0011": number})

    assert {one.SeriesNumber for one in derive(folder, tmp_path / "ct_recon")} == {derived}


def test_both_series_scroll_one_way(write_dicom, tmp_path):
    slices = derive(write_dicom(tmp_path / "ct", HU, slice_tags=from_above), tmp_path / "ct_recon")

    assert [one.InstanceNumber for one in slices] == [5, 4, 3, 2, 1]


def test_one_of_several_series_in_a_folder_gives_its_own_tags(write_dicom, tmp_path):
    for number, name in enumerate(("FIRST", "SECOND")):
        write_dicom(tmp_path / "ct", HU, tags={"0010|0010": name}, series=f"1.2.3.{number}")
    source = find_series(tmp_path / "ct")[1]

    slices = derive(source.path, tmp_path / "ct_recon")

    assert {str(one.PatientName) for one in slices} == {"SECOND"}


def test_the_log_names_nobody(write_dicom, tmp_path, caplog):
    folder = write_dicom(tmp_path / "ct", HU, tags=IDENTITY)

    with caplog.at_level(logging.DEBUG):
        derive(folder, tmp_path / "ct_recon")

    assert f"wrote {tmp_path / 'ct_recon'}, 5 slices" in caplog.text
    assert not any(value in caplog.text for value in ("DOE", "4711", "HOUSE", "ACC-17", "19511003"))

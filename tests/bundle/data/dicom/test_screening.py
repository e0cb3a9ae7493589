import numpy as np
import pydicom
import pytest

from bundle.data.dicom.header import DicomError
from bundle.data.dicom.screening import smaller_than_a_patch
from bundle.data.dicom.series import find_series
from bundle.data.volumes.formats import read_header
from bundle.data.volumes.reading import read_volume

HU = np.random.default_rng(0).integers(-1024, 2000, (8, 6, 8)).astype(np.int16)  # Z, rows, columns


def at(*depths_mm):
    """Tags that put slice z at a depth along the patient."""
    return lambda z: {"0020|0032": f"0\\0\\{depths_mm[z]}"}


def turned(z):
    return {"0020|0037": "1\\0\\0\\0\\0\\-1"} if z == 3 else {}


def other_from(first, tag):
    return lambda z: {tag: "1.2.9"} if z >= first else {}


def alternating(z):
    return {"0020|0012": str(1 + z % 2)}


def copied(z):
    return at(0, 1, 2, 3, 4, 5, 6, 6)(z) | {"0008|0018": f"1.{min(z, 6)}"}


TURNS = {
    "missing_slices": (dict(slice_tags=at(0, 1, 2, 3, 6, 7, 8, 9)), "misses 2 slices"),
    "irregular_spacing": (dict(slice_tags=at(0, 1, 2.4, 3, 4.7, 5, 6.3, 7)), "distances between slices run"),
    "two_phases": (dict(slice_tags=at(0, 1, 2, 3, 0, 1, 2, 3)), "holds two slices at 4 positions"),
    "two_phases ": (dict(slice_tags=alternating), r"phases that interleave \(by acquisition number\)"),
    "duplicate_slices": (dict(slice_tags=copied), "holds 1 slice twice"),
    "localizer": (dict(tags={"0008|0008": "ORIGINAL\\PRIMARY\\LOCALIZER"}), "is a localizer"),
    "dose_report": (dict(tags={"0008|103e": "Dose Report"}), "is a dose report"),
    "secondary_capture": (dict(tags={"0008|0016": "1.2.840.10008.5.1.4.1.1.7"}), "is a secondary capture"),
    "not_ct": (dict(tags={"0008|0060": "MR"}), "is not CT: its modality is MR"),
    "non_hu": (dict(tags={"0028|1054": "OD"}), "is not in HU"),
    "mixed_patients": (dict(slice_tags=other_from(5, "0010|0020")), "are of 2 patients or studies"),
    "mixed_patients ": (dict(slice_tags=other_from(7, "0020|000d")), "are of 2 patients or studies"),
    "mixed_orientation": (dict(slice_tags=turned), "its slices are not parallel"),
    "too_few_slices": (dict(slices=HU[:1]), "must hold two slices or more, got 1"),
}  # fmt: skip


@pytest.mark.parametrize("code", TURNS)
def test_a_series_that_is_no_ct_volume_is_refused_with_its_code(write_dicom, tmp_path, code):
    turn, message = TURNS[code]
    folder = write_dicom(tmp_path / "series", **{"slices": HU, **turn})

    (series,) = find_series(tmp_path)
    with pytest.raises(DicomError, match=f"{folder}: .*{message}") as refused:
        read_volume(folder)

    assert series.reason is not None and series.geometry is None
    assert (series.reason.code, refused.value.code) == (code.strip(), code.strip())
    if not series.is_skipped:
        assert series.reason.message == str(refused.value)


def without(tag: bytes):
    """Edits an implicit file: the element of a tag becomes one that nobody reads."""

    def edit(content: bytes) -> bytes:
        assert content.count(tag) == 1
        return content.replace(tag, tag[:2] + b"\xff\x10")

    return edit


def with_rows(rows: int):
    tag = b"\x28\x00\x10\x00\x02\x00\x00\x00"

    def edit(content: bytes) -> bytes:
        start = content.index(tag) + len(tag)
        return content[:start] + rows.to_bytes(2, "little") + content[start + 2 :]

    return edit


def with_syntax(content: bytes) -> bytes:
    return content.replace(b"1.2.840.10008.1.2\0", b"1.2.840.10008.1.9\0", 1)


EDITS = {
    "missing_rescale": (without(b"\x28\x00\x53\x10"), "has no rescale slope or intercept"),
    "missing_rescale ": (without(b"\x28\x00\x52\x10"), "has no rescale slope or intercept"),
    "no_geometry": (without(b"\x20\x00\x32\x00"), "has no usable position"),
    "truncated": (lambda content: content[:-1], "is truncated: 96 bytes of pixels are declared, it holds 95"),
    "truncated ": (lambda content: content[:600], "is truncated"),
    "lying_header": (with_rows(65535), "declares 8 x 65535 pixels"),
    "lying_header ": (with_rows(5), "declares 80 bytes of pixels and does not hold them"),
    "transfer_syntax": (with_syntax, "is packed in a way that is not supported"),
    "damaged": (lambda content: content[:128] + b"DICN" + content[132:], "has no DICOM mark"),
}


@pytest.mark.parametrize("code", EDITS)
def test_one_damaged_file_refuses_its_series_by_name(write_dicom, tmp_path, code):
    edit, message = EDITS[code]
    folder = write_dicom(tmp_path / "series", HU)
    path = sorted(folder.iterdir())[2]
    path.write_bytes(edit(path.read_bytes()))
    path = path.rename(f"{path}.dcm")

    reasons = [series.reason for series in find_series(tmp_path) if series.reason]
    with pytest.raises(DicomError, match=path.name) as refused:
        read_header(path)

    assert refused.value.code == code.strip() and message in str(refused.value)
    assert code.strip() in [reason.code for reason in reasons]


def test_acquisitions_that_follow_each_other_are_one_volume(write_dicom, tmp_path):
    folder = write_dicom(tmp_path / "series", HU, slice_tags=lambda z: {"0020|0012": str(1 + z // 4)})

    assert read_header(folder).shape == (8, 6, 8)


def test_positions_of_one_decimal_are_regular(write_dicom, tmp_path):
    depths = [round(0.625 * z, 1) for z in range(8)]
    folder = write_dicom(tmp_path / "series", HU, slice_tags=at(*depths))

    assert read_header(folder).shape == (8, 6, 8)


def test_a_low_dose_series_is_not_taken_for_a_dose_report(write_dicom, tmp_path):
    folder = write_dicom(tmp_path / "series", HU, tags={"0008|103e": "Chest low dose 1.0 B31f"})

    assert read_header(folder).shape == (8, 6, 8)


def test_a_volume_smaller_than_a_patch_is_refused_only_where_a_patch_is_given(tmp_path):
    assert smaller_than_a_patch(tmp_path, (64, 64, 64), (64, 64, 64)) is None
    refusal = smaller_than_a_patch(tmp_path, (64, 64, 63), (64, 64, 64))

    assert refusal is not None and refusal.code == "smaller_than_a_patch"
    assert refusal.message.startswith(f"{tmp_path}: its 64 x 64 x 63 voxels are fewer than a patch of")


def test_pixels_that_cannot_be_decoded_are_refused_and_the_next_series_is_read(write_dicom, tmp_path):
    bad = write_dicom(tmp_path / "bad", np.repeat(np.repeat(HU, 8, 1), 8, 2), compressor="JPEG")
    good = write_dicom(tmp_path / "good", HU)
    path = sorted(bad.iterdir())[2]
    content = path.read_bytes()
    start = content.index(b"\xff\xd8\xff")
    path.write_bytes(content[:start] + bytes(40) + content[start + 40 :])

    with pytest.raises(DicomError, match=f"{path}: its pixels are damaged and cannot be decoded") as refused:
        read_volume(bad)

    assert refused.value.code == "damaged"
    np.testing.assert_array_equal(read_volume(good).voxels, HU.transpose(2, 1, 0))


@pytest.mark.parametrize("modality", ["CT", "ct", None])
def test_a_modality_in_small_letters_or_taken_away_with_the_names_is_that_of_the_storage_class(
    write_dicom, tmp_path, modality
):
    folder = write_dicom(tmp_path / "series", HU, tags={"0008|0060": modality})
    if modality is None:  # the writer fills it in
        for path in folder.iterdir():
            dataset = pydicom.dcmread(path)
            del dataset.Modality
            dataset.save_as(path)

    np.testing.assert_array_equal(read_volume(folder).voxels, HU.transpose(2, 1, 0))


def one_position(z):
    return {"0020|0032": "0\\0\\0"}


def test_one_position_for_all_slices_is_not_called_two_phases(write_dicom, tmp_path):
    folder = write_dicom(tmp_path / "series", HU, slice_tags=one_position)

    with pytest.raises(
        DicomError, match="its 8 slices all state the same position, so their distance is unknown"
    ):
        read_header(folder)


NOTES = {
    "is a projection computed from another series": {"tags": {"0008|0008": "DERIVED\\SECONDARY\\AXIAL\\MIP"}},
    "was made by this project": {"tags": {"0008|0070": "ctpa_vqgan"}},
    "its header counts 12 slices, 8 are here": {"tags": {"0020|1002": "12"}},
    "its header counts 11 slices, 8 are here": {"tags": {"0020|1209": "11"}},
    "its header counts 5 slices, 4 are here": {
        "tags": {"0020|1002": "5"},
        "slice_tags": lambda z: {"0020|0012": str(1 + z // 4)},
    },
    "its slices are numbered from 9 on": {"slice_tags": lambda z: {"0020|0013": str(9 + z)}},
    "is in modified HU": {"tags": {"0028|1054": "HU_MOD"}},
    "was compressed with loss": {"tags": {"0028|2110": "01"}},
}


@pytest.mark.parametrize("note", NOTES)
def test_what_a_person_should_know_is_told_once(write_dicom, tmp_path, caplog, note):
    folder = write_dicom(tmp_path / "series", HU, **NOTES[note])

    read_header(folder)
    read_volume(folder)

    (series,) = find_series(tmp_path)
    assert len(series.notes) == 1 and series.notes[0].startswith(note)
    assert caplog.text.count(f"{folder}: {note}") == 1


@pytest.mark.parametrize(
    "options",
    [
        {"tags": {"0008|0008": "ORIGINAL\\PRIMARY\\AXIAL\\CT_SOM5 SPI"}},
        {"tags": {"0020|1002": "8"}},
        {"tags": {"0020|1002": "4"}, "slice_tags": lambda z: {"0020|0012": str(1 + z // 4)}},
        {"slice_tags": lambda z: {"0020|0013": str(z)}},
    ],
)
def test_an_ordinary_series_has_no_notes(write_dicom, tmp_path, options):
    folder = write_dicom(tmp_path / "series", HU, **options)
    for name in ("report.txt", "scan.xml", "image.jpg", "Thumbs.db", "VERSION"):
        (folder / name).write_text("" if name == "VERSION" else "x")

    (series,) = find_series(tmp_path)

    assert series.reason is None and series.notes == ()


def test_files_that_nobody_knows_are_named(write_dicom, tmp_path):
    folder = write_dicom(tmp_path / "series", HU)
    for number in range(5):
        (folder / f"slice_{number}").write_bytes(b"\x13" * 1000)

    (series,) = find_series(tmp_path)

    assert series.notes[0].startswith(
        "beside its slices lie 5 files that are neither DICOM nor of a known kind (slice_0, "
    )

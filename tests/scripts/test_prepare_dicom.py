"""`python -m scripts.prepare` on DICOM, and on what file systems can hold."""

import csv
import json
import os
import re

import nibabel as nib
import numpy as np
import pytest

from bundle.data.store.store import StoreError
from bundle.data.volumes.reading import read_volume
from bundle.run.names import patient_hash, printable
from scripts.prepare import main, prepare

HU = np.random.default_rng(0).integers(-1024, 2000, (8, 48, 40)).astype(np.int16)  # Z, rows, columns
LOCALIZER = {"0008|0008": "ORIGINAL\\PRIMARY\\LOCALIZER"}
SECRETS = (b"DOE", b"JANE", b"MRN-")


def rows_of(store):
    with (store / "prepare_report.csv").open(newline="", encoding="utf-8") as file:
        return {row["path"]: row for row in csv.DictReader(file)}


def at(*depths_mm):
    return lambda z: {"0020|0032": f"0\\0\\{depths_mm[z]}"}


# By folder: what is turned, and status and code of its line.
SERIES = {
    "p1/study/a": ({}, "prepared", ""),
    "p1/study/deep/er": ({"series": "1.5", "compressor": "JPEG"}, "prepared", ""),
    "p1/scout": ({"series": "1.6", "tags": LOCALIZER, "slices": HU[:2]}, "skipped", "localizer"),
    "p1/dose": ({"series": "1.7", "tags": {"0008|103e": "Dose Report"}}, "skipped", "dose_report"),
    "p1/mr": ({"series": "1.8", "tags": {"0008|0060": "MR"}}, "skipped", "not_ct"),
    "p2/gap": ({"slice_tags": at(0, 1, 2, 3, 6, 7, 8, 9)}, "refused", "missing_slices"),
    "p2/uneven": ({"slice_tags": at(0, 1, 2.4, 3, 4.7, 5, 6.3, 7)}, "refused", "irregular_spacing"),
    "p2/twice": ({"slice_tags": at(0, 1, 2, 3, 0, 1, 2, 3)}, "refused", "two_phases"),
    "p2/mixed": ({"slice_tags": lambda z: {"0020|0037": f"1\\0\\0\\0\\{z % 2}\\{z % 2 - 1}"}}, "refused",
                 "mixed_orientation"),
    "p2/unit": ({"tags": {"0028|1054": "OD"}}, "refused", "non_hu"),
    "p3/short": ({"slices": HU[:5]}, "refused", "smaller_than_a_patch"),
    "p3/tilted": ({"slice_tags": lambda z: {"0020|0032": f"0\\{0.3 * z}\\{1.5 * z}"}}, "prepared", ""),
}  # fmt: skip


@pytest.fixture(scope="module")
def prepared(write_dicom, tmp_path_factory):
    """Folder, store and exit code of one run over all kinds of series."""
    folder, store = tmp_path_factory.mktemp("data"), tmp_path_factory.mktemp("store")
    for place, (turn, *_) in SERIES.items():
        turn = {"slices": HU, "tags": {}, **turn}
        turn["tags"] = {"0010|0020": f"MRN-{place[:2]}", **turn["tags"]}
        write_dicom(folder / place, **turn)
    cut = write_dicom(folder / "p4" / "cut", HU)
    path = sorted(cut.iterdir())[2]
    path.write_bytes(path.read_bytes()[:-100])
    code = main([str(folder), "--output", str(store), "--num_workers", "0", "--patch_size", "8"])
    return folder, store, code


def test_every_series_has_its_line_with_status_and_code(prepared):
    _, store, code = prepared

    rows = rows_of(store)

    assert code == 1
    places = {re.sub(r"/\d+$", "", path): row for path, row in rows.items()}  # skipped ones by a file
    assert {place: (row["status"], row["code"]) for place, row in places.items()} == {
        **{place: (status, code) for place, (_, status, code) in SERIES.items()},
        "p4/cut": ("refused", "truncated"),
    }
    assert all(row["message"] for row in rows.values() if row["status"] != "prepared")
    assert rows["p3/tilted"]["message"].startswith("gantry tilt of 11.3 degrees: voxels stay as they are")
    assert rows["p1/study/a"]["message"] == ""


def test_the_good_ones_are_in_the_store_under_their_patients_hash(prepared):
    _, store, _ = prepared

    lists, rows = json.loads((store / "datalist.json").read_text(encoding="utf-8")), rows_of(store)

    items = [item for side in lists.values() for item in side]
    hashes = {patient_hash(f"MRN-{name}") for name in ("p1", "p3")}
    files = {f"volumes/{row['file']}" for row in rows.values() if row["file"]}
    assert {item["patient"] for item in items} == hashes and {item["image"] for item in items} == files
    for place in ("p1/study/a", "p1/study/deep/er", "p3/tilted"):
        voxels = read_volume(store / "volumes" / rows[place]["file"]).voxels
        np.testing.assert_array_equal(voxels[::-1, ::-1], HU.transpose(2, 1, 0))


def test_no_byte_of_a_store_tells_a_patient(prepared, capfd):
    folder, store, _ = prepared
    main([str(folder), "--output", str(store), "--num_workers", "0", "--patch_size", "8"])

    contents = [path.read_bytes() for path in store.rglob("*") if path.is_file()]
    contents += [stream.encode() for stream in capfd.readouterr()]

    assert len(contents) > 6
    assert not [secret for secret in SECRETS for content in contents if secret in content]


def test_names_of_any_bytes_are_prepared_and_reported(tmp_path, write_dicom):
    voxels = np.random.default_rng(1).integers(-1000, 1000, (8, 8, 8)).astype(np.int16)
    names = [b"two\nlines", b"r\r", b'"quoted", spaced', b"\xff\xfe", b"x" * 240]
    for name in names:
        folder = os.path.join(os.fsencode(tmp_path), b"DIR", name)
        os.makedirs(folder)
        nib.save(nib.Nifti1Image(voxels, np.eye(4)), os.fsdecode(os.path.join(folder, b"ct.nii")))
    series = write_dicom(tmp_path / "DIR" / "series", HU, compressor="JPEG")
    series.rename(series.with_name(os.fsdecode(b"\xe4 dicom")))  # as a path it ends SimpleITK's process

    lines = prepare(tmp_path / "DIR", tmp_path / "STORE", 0)

    assert [line.status for line in lines] == ["prepared"] * 6, lines
    told = {printable(os.fsdecode(name)) + "/ct.nii" for name in names}
    assert set(rows_of(tmp_path / "STORE")) == told | {"\\udce4 dicom"}
    assert len({line.patient for line in lines}) == 6


def test_a_slice_that_cannot_be_opened_refuses_its_series_and_no_other(tmp_path, write_dicom):
    for name in ("good", "linked"):
        write_dicom(tmp_path / "DIR" / name / "ct", HU)
    last = max((tmp_path / "DIR" / "linked" / "ct").iterdir())
    last.unlink()
    last.symlink_to(tmp_path / "gone")
    (tmp_path / "DIR" / "circle.nii").symlink_to(tmp_path / "DIR" / "circle.nii")

    lines = {line.path: line for line in prepare(tmp_path / "DIR", tmp_path / "STORE", 0)}

    found = {path: (line.status, line.code) for path, line in lines.items()}
    assert found == {
        "good/ct": ("prepared", ""),
        "linked/ct": ("refused", "unreadable"),
        "circle.nii": ("refused", "unusable"),
    }
    assert f"{last.name} cannot be read (No such file or directory)" in lines["linked/ct"].message


def test_what_may_not_be_read_is_told(tmp_path, write_dicom, caplog):
    ct = write_dicom(tmp_path / "DIR" / "p" / "ct", HU)
    min(ct.iterdir()).chmod(0)
    if os.access(min(ct.iterdir()), os.R_OK):
        pytest.skip("root may read everything")
    (tmp_path / "DIR" / "shut").mkdir(mode=0)

    lines = prepare(tmp_path / "DIR", tmp_path / "STORE", 0)

    assert [line.code for line in lines if line.code] == ["unreadable"]
    assert "shut: cannot be listed (Permission denied); what it holds is left out" in caplog.text


def test_what_is_gone_when_its_turn_comes_is_a_line_of_the_report(tmp_path, write_dicom):
    write_dicom(tmp_path / "there", HU)
    items = [{"image": name} for name in ("there", "gone/ct.nii.gz", "gone too", "x" * 300)]
    (tmp_path / "list.json").write_text(json.dumps({"training": items}), encoding="utf-8")

    lines = prepare(tmp_path / "list.json", tmp_path / "STORE", 0)

    assert [line.status for line in lines] == ["refused", "refused", "prepared", "refused"]
    assert all("no such file; check the path" in line.message for line in lines if line.status == "refused")


def test_a_store_that_cannot_be_written_is_named(tmp_path, write_dicom):
    write_dicom(tmp_path / "DIR", HU)
    (tmp_path / "file").touch()

    with pytest.raises(StoreError, match=r"file: cannot be written \(.*\); give another --output"):
        prepare(tmp_path / "DIR", tmp_path / "file", 0)

"""The layouts of public data sets: who is the patient, and which files are masks."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest

from bundle.data.cases.split import find_cases, inference_cases, split_cases
from scripts.inspect import find_paths
from scripts.prepare import prepare

SCAN = np.random.default_rng(0).integers(-1000, 1000, (6, 5, 4)).astype(np.int16)


@pytest.fixture
def save(save_nifti, tmp_path):
    """Saves a scan under each name below DIR, and returns DIR."""

    def save(*names):
        for name in names:
            save_nifti(SCAN, name=f"DIR/{name}")
        return tmp_path / "DIR"

    return save


def patients(root):
    return {Path(case["image"]).relative_to(root).as_posix(): case["patient"] for case in find_cases(root)}


LAYOUTS = {
    "LIDC": {f"LIDC-IDRI/P{n}/2000-01-0{n}/{scan}.nii": f"P{n}" for n in (1, 2) for scan in "ab"},
    "TotalSegmentator": {f"Totalsegmentator/s000{n}/ct.nii.gz": f"s000{n}" for n in range(3)},
    "one folder": {"scans/a.nii": "scans", "scans/b.nii": "scans"},
    "one patient, one scan": {"p1/2021/ct.nii": "p1"},
    "loose": {"a.nii": "a", "b.nii.gz": "b"},
    "channels": {"Task06/imagesTr/lung_001_0000.nii.gz": "lung_001", "Task06/imagesTr/lung_2.nii": "lung_2"},
    "loose below a shared folder": {"all/a.nii": "all", "all/p1/b.nii": "p1"},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_patient_is_the_folder_at_the_first_level_where_volumes_differ(save, layout):
    assert patients(save(*LAYOUTS[layout])) == LAYOUTS[layout]


def test_folders_of_dicom_series_are_a_level_too(write_dicom, tmp_path):
    for n in (1, 2):
        write_dicom(tmp_path / "all" / f"p{n}", SCAN, tags={"0010|0020": None}, series=f"1.{n}")

    assert patients(tmp_path) == {"all/p1": "p1", "all/p2": "p2"}


def test_who_is_taken_for_the_patient_below_a_shared_folder_is_told(save, caplog):
    with caplog.at_level(logging.WARNING):
        find_cases(save("P1/2021/ct.nii", "P1/2022/ct.nii"))

    assert "all 2 volumes lie in P1, so the folders inside it are taken for the patients (2)" in caplog.text


@pytest.mark.parametrize(
    ("names", "is_told"),
    [
        (("scans/a.nii", "scans/b.nii"), True),
        (("scans/a.nii",), False),
        (("a.nii", "b.nii"), False),
        (("sub-01_ses-1_ct.nii", "sub-01_ses-2_ct.nii"), False),
        (("imagesTr/a.nii", "imagesTr/b.nii"), False),
        (("p1/a.nii", "p2/b.nii"), False),
    ],
)
def test_files_that_are_taken_for_one_patient_s_by_their_folder_are_told(save, caplog, names, is_told):
    with caplog.at_level(logging.WARNING):
        find_cases(save(*names))

    told = f"all {len(names)} volumes lie in scans and are taken for one patient's; if they are of several"
    assert (told in caplog.text) == is_told and ("taken for one" in caplog.text) == is_told


@pytest.mark.parametrize("has_channel", [False, True])
def test_the_files_of_a_decathlon_list_are_patients_of_their_own(save, has_channel):
    """Lists of nnU-Net name `ct_000.nii.gz` where the file is called `ct_000_0000.nii.gz`."""
    names = [f"ct_{n:03d}" for n in range(8)]
    root = save(*(f"imagesTr/{name}{'_0000' * has_channel}.nii.gz" for name in names))
    items = [{"image": f"./imagesTr/{name}.nii.gz", "label": f"./labelsTr/{name}.nii.gz"} for name in names]
    (root / "dataset.json").write_text(json.dumps({"training": items, "test": []}), encoding="utf-8")

    split = split_cases(root / "dataset.json")

    found = {side: {case["patient"] for case in cases} for side, cases in split.items()}
    assert found["training"] | found["validation"] == set(names)
    assert not found["training"] & found["validation"]


def test_labels_of_nnu_net_are_left_out_and_its_test_images_kept_apart(save, caplog):
    names = ["imagesTr/a_0000.nii.gz", "imagesTr/b_0000.nii.gz", "imagesTs/c_0000.nii.gz"]
    root = save(*names, "labelsTr/a.nii.gz", "labelsTr/b.nii.gz")

    with caplog.at_level(logging.WARNING):
        split = split_cases(root)

    used = [Path(case["image"]).name for cases in split.values() for case in cases]
    assert sorted(used) == ["a_0000.nii.gz", "b_0000.nii.gz"]
    assert "2 files in folders called labelsTr are masks of the scans beside them" in caplog.text
    assert "the 1 volumes in imagesTs are kept for testing" in caplog.text
    assert sorted(Path(case["image"]).relative_to(root).as_posix() for case in inference_cases(root)) == names
    assert [Path(path).relative_to(root).as_posix() for path in find_paths(root)] == names
    prepare(root, root.parent / "STORE", 0)
    lists = json.loads((root.parent / "STORE" / "datalist.json").read_text(encoding="utf-8"))
    assert {name: len(items) for name, items in lists.items()} == {
        "training": 1,
        "validation": 1,
        "testing": 1,
    }


def test_the_segmentations_of_total_segmentator_are_left_out(save, caplog):
    scans = ["s0000/ct.nii.gz", "s0001/ct.nii.gz"]
    root = save(*scans, "s0000/segmentations/heart.nii.gz", "s0001/segmentations/heart.nii.gz")

    with caplog.at_level(logging.WARNING):
        assert list(patients(root)) == scans

    assert "2 files in folders called segmentations are masks" in caplog.text


def test_a_folder_of_segmentations_without_a_scan_beside_it_is_searched(save):
    assert len(find_cases(save("s0000/segmentations/heart.nii.gz"))) == 1


def test_one_patient_id_in_many_folders_is_told_and_a_datalist_sets_them_apart(write_dicom, tmp_path, caplog):
    for n in range(5):
        write_dicom(tmp_path / "DIR" / f"p{n}" / "ct", SCAN, tags={"0010|0020": "ANONYMOUS"}, series=f"1.{n}")

    with caplog.at_level(logging.WARNING):
        cases = find_cases(tmp_path / "DIR")

    assert len({case["patient"] for case in cases}) == 1
    assert "5 folders (p0, p1, p2, p3, p4) carry the same PatientID and are taken for one" in caplog.text
    item = json.loads(caplog.text.split('{"training": [')[1].split(", ...]")[0])
    assert item == {"image": "p0/ct", "patient": "p0"}
    items = [{"image": f"p{n}/ct", "patient": f"p{n}"} for n in range(5)]
    (tmp_path / "DIR" / "list.json").write_text(json.dumps({"training": items}), encoding="utf-8")
    assert {case["patient"] for case in find_cases(tmp_path / "DIR" / "list.json")} == set(
        item["patient"] for item in items
    )


def test_a_patient_with_two_of_many_folders_is_not_told(write_dicom, tmp_path, caplog):
    for n in range(5):
        tags = {"0010|0020": f"MRN-{max(n, 1)}"}
        write_dicom(tmp_path / f"p{n}" / "ct", SCAN, tags=tags, series=f"1.{n}")

    with caplog.at_level(logging.WARNING):
        find_cases(tmp_path)

    assert "PatientID" not in caplog.text

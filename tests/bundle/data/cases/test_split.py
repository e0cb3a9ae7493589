import json
import logging
from pathlib import Path

import numpy as np
import pytest

from bundle.data.cases.patients import SharedPatientsError
from bundle.data.cases.split import DatasetError, dataset_root, find_cases, inference_cases, split_cases
from bundle.run.rules import SettingsError

VOXELS = np.zeros((6, 5, 4), np.int16)


@pytest.fixture
def save_patients(save_nifti, tmp_path):
    """Saves one volume for each patient folder and returns the folder of all."""

    def save(n_patients: int, first: int = 0) -> Path:
        for number in range(first, first + n_patients):
            save_nifti(VOXELS, name=f"cohort/patient_{number:03d}/ct.nii.gz")
        return tmp_path / "cohort"

    return save


@pytest.fixture
def save_datalist(save_nifti, tmp_path):
    """Writes a datalist beside the volumes that it names."""

    def save(content) -> Path:
        for name in ("a", "b", "c"):
            save_nifti(VOXELS, name=f"images/{name}.nii.gz")
        (tmp_path / "datalist.json").write_text(content if isinstance(content, str) else json.dumps(content))
        return tmp_path / "datalist.json"

    return save


def patients(cases):
    return [case["patient"] for case in cases]


def test_the_patient_is_the_first_folder_or_the_name_of_a_loose_file(save_nifti, tmp_path):
    for name in ("p1/2021/ct.nii.gz", "p1/2022/ct.nii", "p2.v2/ct.nii", "loose.1.nii.gz", "LOUD.NII.GZ"):
        save_nifti(VOXELS, name=name) if name.islower() else (tmp_path / name).touch()

    found = {str(Path(case["image"]).relative_to(tmp_path)): case["patient"] for case in find_cases(tmp_path)}

    assert found == {
        "LOUD.NII.GZ": "LOUD",
        "loose.1.nii.gz": "loose.1",
        "p1/2021/ct.nii.gz": "p1",
        "p1/2022/ct.nii": "p1",
        "p2.v2/ct.nii": "p2.v2",
    }


def test_hidden_files_and_other_formats_are_left_out(save_nifti, tmp_path):
    save_nifti(VOXELS, name="p1/ct.nii.gz")
    for name in ("p1/._ct.nii.gz", ".trash/ct.nii.gz", "p1/notes.txt", "p1/ct.nii.gz.part"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()

    assert [Path(case["image"]).name for case in find_cases(tmp_path)] == ["ct.nii.gz"]


def test_links_are_followed_but_not_in_circles(save_nifti, tmp_path):
    save_nifti(VOXELS, name="store/ct.nii.gz")
    (tmp_path / "cohort").mkdir()
    (tmp_path / "cohort" / "p1").symlink_to(tmp_path / "store")
    (tmp_path / "store" / "circle").symlink_to(tmp_path / "cohort")

    assert patients(find_cases(tmp_path / "cohort")) == ["p1"]


def test_one_file_is_a_data_set(save_nifti):
    path = save_nifti(VOXELS, name="p7.nii.gz")

    assert inference_cases(path) == [{"image": str(path), "patient": "p7"}]
    assert dataset_root(path) == str(path.parent) and dataset_root(path.parent) == str(path.parent)


@pytest.mark.parametrize(
    "name, message",
    [
        ("", "`dataset_dir` must be given; name a folder, a .nii or .nii.gz file, a .ctpa file or a DICOM"),
        (None, "`dataset_dir` must be given"),
        ("gone", "gone: no such file or folder; check `dataset_dir`"),
        ("empty", "empty: holds no volume .a .nii or .nii.gz file, a .ctpa file or a DICOM series.; give"),
        ("notes.txt", "notes.txt: must be a folder, a .nii or .nii.gz file, a .ctpa file or"),
    ],
)
def test_what_is_no_data_set_is_named(tmp_path, name, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").touch()

    with pytest.raises(DatasetError, match=message):
        split_cases(name and tmp_path / name)


def test_patients_never_straddle_and_about_a_fifth_validates(save_patients):
    split = split_cases(save_patients(60))

    assert not set(patients(split["training"])) & set(patients(split["validation"]))
    assert 6 <= len(split["validation"]) <= 18 and len(split["training"] + split["validation"]) == 60


def test_patients_who_come_later_move_nobody(save_patients):
    before = split_cases(save_patients(30))
    after = split_cases(save_patients(30, first=30))

    for side in ("training", "validation"):
        assert set(patients(before[side])) <= set(patients(after[side]))


def test_a_subset_is_stable_and_keeps_both_sides(save_patients):
    root = save_patients(60)
    subset, larger, whole = (split_cases(root, max_patients=number) for number in (20, 30, None))

    for side in ("training", "validation"):
        assert set(patients(subset[side])) < set(patients(larger[side])) < set(patients(whole[side]))
    assert len(subset["training"] + subset["validation"]) == 20


def test_the_split_is_the_same_on_every_machine(save_patients):
    assert patients(split_cases(save_patients(12))["validation"]) == [
        "patient_003",
        "patient_005",
        "patient_008",
    ]


@pytest.mark.parametrize("max_patients", [0, -1])
def test_a_subset_of_nobody_is_refused(save_patients, max_patients):
    with pytest.raises(SettingsError, match=f"`max_patients` must be a whole number .*, got {max_patients}"):
        split_cases(save_patients(1), max_patients)


def test_a_single_patient_is_refused(save_patients):
    message = (
        "^`allow_shared_patients` is false, but patient\\(s\\) patient_000 are in training and in "
        "validation; give data of at least two patients, or train all the same with "
        "--allow_shared_patients true"
    )

    with pytest.raises(SharedPatientsError, match=message):
        split_cases(save_patients(1))


def test_a_single_patient_serves_both_sides_with_a_loud_warning_if_that_is_allowed(save_patients, caplog):
    split = split_cases(save_patients(1), allow_shared_patients=True)

    assert patients(split["training"]) == patients(split["validation"]) == ["patient_000"]
    assert "VALIDATION IS NOT INDEPENDENT: patient(s) patient_000" in caplog.text


@pytest.mark.parametrize("numbers, side", [((0, 1), "validation"), ((3, 5), "training")])
def test_a_side_that_would_be_empty_gets_one_patient(save_patients, caplog, numbers, side):
    root = [save_patients(1, number) for number in numbers][-1]
    split = split_cases(root)

    assert len(split["training"]) == len(split["validation"]) == 1
    assert f"none of 2 patients falls to {side}; {patients(split[side])[0]} is taken" in caplog.text


def test_every_unusable_file_is_named_at_once(save_patients, save_nifti):
    root = save_patients(4)
    save_nifti(np.zeros((6, 5), np.int16), name="cohort/flat.nii.gz")
    (root / "text.nii").write_text("text")

    with pytest.raises(DatasetError, match=r"2 of 6 volumes cannot be used:\n") as error:
        split_cases(root)
    assert "flat.nii.gz: must hold a 3D volume" in str(error.value)
    assert "text.nii: is not a readable NIfTI file" in str(error.value)


def test_inference_checks_every_header(save_patients):
    root = save_patients(2)
    (root / "text.nii").write_text("text")

    with pytest.raises(DatasetError, match="1 of 3 volumes cannot be used"):
        inference_cases(root)


def test_two_volumes_with_one_output_name_are_refused(save_nifti, tmp_path):
    save_nifti(VOXELS, name="p1/ct.nii")
    save_nifti(VOXELS, name="p1/ct.nii.gz")

    with pytest.raises(
        DatasetError, match=r"ct\.nii\.gz: would get the same output name as .*ct\.nii; rename one"
    ):
        inference_cases(tmp_path)


def test_shards_hold_every_volume_once_and_check_their_own_alone(save_patients):
    root = save_patients(5)
    everything = inference_cases(root)
    shards = [inference_cases(root, shard_index=index, shard_count=3) for index in range(3)]

    assert [len(shard) for shard in shards] == [2, 2, 1]
    assert sorted((case for shard in shards for case in shard), key=str) == sorted(everything, key=str)
    assert inference_cases(root, shard_index=7, shard_count=8) == []
    (root / "patient_000" / "ct.nii.gz").write_text("text")
    assert len(inference_cases(root, shard_index=1, shard_count=3)) == 2
    with pytest.raises(DatasetError, match="1 of 2 volumes cannot be used"):
        inference_cases(root, shard_index=0, shard_count=3)


@pytest.mark.parametrize(
    ("shard", "message"),
    [
        (
            (4, 4),
            "`shard_index` must be below `shard_count`, got 4 and 4; shards count from 0, so the last one",
        ),
        ((0, 0), "`shard_count` must be a whole number from 1, got 0"),
        ((-1, 4), "`shard_index` must be a whole number from 0, got -1"),
    ],
)
def test_a_shard_that_does_not_exist_is_refused(tmp_path, shard, message):
    with pytest.raises(SettingsError, match=message):
        inference_cases(tmp_path, "stop", *shard)


def test_where_volumes_may_be_skipped_no_file_refuses_the_others(save_patients, save_nifti):
    root = save_patients(2)
    save_nifti(VOXELS, name="cohort/patient_000/ct.nii")
    (root / "text.nii").write_text("text")

    cases = inference_cases(root, on_error="skip")

    assert [Path(case["image"]).name for case in cases] == ["ct.nii", "ct.nii.gz", "ct.nii.gz", "text.nii"]
    faults = [case.get("fault") for case in cases]
    assert faults[0] is faults[2] is faults[3] is None
    assert faults[1].endswith("patient_000/ct.nii; rename one")


def test_the_lists_of_a_datalist_are_taken_as_they_are(save_datalist, tmp_path):
    items = [{"image": f"images/{name}.nii.gz", "patient": name} for name in ("c", "b", "a")]
    path = save_datalist({"training": items[:2], "validation": items[2:], "name": "cohort"})

    split = split_cases(path)

    assert patients(split["training"]) == ["c", "b"] and patients(split["validation"]) == ["a"]
    assert split["validation"][0]["image"] == str(tmp_path / "images/a.nii.gz")
    assert patients(split_cases(path, max_patients=1)["validation"]) == ["a"]


def test_a_datalist_without_validation_is_split_by_patient(save_datalist):
    items = [{"image": f"images/{name}.nii.gz", "patient": name} for name in ("a", "b", "c")]

    split = split_cases(save_datalist({"training": items}))

    assert sorted(patients(split["training"] + split["validation"])) == ["a", "b", "c"]


def test_all_lists_of_a_datalist_are_reconstructed(save_datalist, caplog):
    lists = {"training": [{"image": "images/a.nii.gz"}], "validation": ["images/b.nii.gz"]}

    cases = inference_cases(save_datalist({**lists, "test": ["./images/c.nii.gz"]}))

    assert [Path(case["image"]).name for case in cases] == ["a.nii.gz", "b.nii.gz", "c.nii.gz"]


def test_a_patient_on_both_lists_of_a_datalist_is_refused_unless_that_is_allowed(save_datalist, caplog):
    lists = save_datalist({"training": ["images/a.nii.gz"], "validation": ["images/b.nii.gz"]})

    with pytest.raises(SharedPatientsError, match="patient\\(s\\) images are in training and in validation"):
        split_cases(lists)
    with caplog.at_level(logging.WARNING):
        split_cases(lists, allow_shared_patients=True)

    assert "VALIDATION IS NOT INDEPENDENT: patient(s) images" in caplog.text


@pytest.mark.parametrize(
    "content, message",
    [
        ("{", "datalist.json: cannot be read as JSON"),
        ([], "datalist.json: must hold"),
        ({"train": []}, "datalist.json: must hold"),
        ({"training": []}, "datalist.json: its list `training` is empty"),
        ({"validation": ["images/a.nii.gz"]}, "its list `training` is empty"),
        ({"training": [{"label": "a"}]}, "each item must be .* got {'label': 'a'}"),
        ({"training": [3]}, "each item must be .* got 3"),
        ({"training": ["../a.nii.gz"]}, r"points outside its own folder, to \.\./a\.nii\.gz"),
        ({"training": ["/elsewhere/a.nii.gz"]}, "/elsewhere/a.nii.gz: no such file"),
        (
            {"training": ["images/gone.nii.gz"]},
            r"1 of 1 volumes cannot be used:\n.*gone\.nii\.gz: no such file",
        ),
    ],
)
def test_a_datalist_that_is_wrong_is_explained(save_datalist, content, message):
    with pytest.raises(DatasetError, match=message):
        split_cases(save_datalist(content))


def test_the_example_datalist_holds_two_different_parts():
    split = split_cases("tests/data/datalist.json")

    assert patients(split["training"]) == ["lidc_idri_0001_training"]
    assert patients(split["validation"]) == ["lidc_idri_0001_validation"]


def test_a_datalist_that_begins_with_a_byte_order_mark_is_read(save_datalist):
    path = save_datalist({"training": [{"image": "images/a.nii.gz"}, {"image": "images/b.nii.gz"}]})
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())

    assert len(find_cases(path)) == 2

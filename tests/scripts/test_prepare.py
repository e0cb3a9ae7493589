import csv
import json
import pkgutil

import nibabel as nib
import numpy as np
import pytest

from bundle.data.cases.split import DatasetError, inference_cases, split_cases
from bundle.data.patches.dataset import PatchDataset
from bundle.data.volumes.reading import read_volume
from bundle.run.names import output_name, patient_hash
from scripts.inspect import main as inspect
from scripts.prepare import main, prepare


@pytest.fixture
def add_patient(tmp_path):
    """Saves a volume of its own as DIR/<name>/ct.nii.gz and returns its voxels."""

    def add(name, voxels=None):
        path = tmp_path / "DIR" / name / "ct.nii.gz"
        path.parent.mkdir(parents=True)
        if voxels is None:
            voxels = np.random.default_rng(len(name)).integers(-1000, 1000, (24, 20, 32)).astype(np.int16)
        nib.save(nib.Nifti1Image(voxels, np.diag([-0.7, -0.8, 1.5, 1])), path)
        return voxels

    return add


def lists_of(store):
    return json.loads((store / "datalist.json").read_text(encoding="utf-8"))


def sides(store):
    return {item["patient"]: name for name, items in lists_of(store).items() for item in items}


def test_a_store_is_trained_on_without_the_originals(add_patient, tmp_path):
    voxels = [add_patient("a" * n) for n in range(1, 5)]
    store = tmp_path / "STORE"

    assert main([str(tmp_path / "DIR"), "--output", str(store), "--num_workers", "2"]) == 0
    (tmp_path / "DIR").rename(tmp_path / "away")

    split = split_cases(store)
    cases = split["training"] + split["validation"]
    dataset = PatchDataset(cases, 8, tmp_path / "cache")
    assert {volume.read().tobytes() for volume in dataset.volumes} == {
        np.ascontiguousarray(source[::-1, ::-1]).tobytes() for source in voxels
    }
    assert dataset[0]["image"].shape == (1, 8, 8, 8) and not (tmp_path / "cache").exists()
    assert split["training"] and split["validation"]


def test_a_store_is_reconstructed_too(add_patient, tmp_path):
    voxels = add_patient("p")
    prepare(tmp_path / "DIR", tmp_path / "STORE", 0)

    (case,) = inference_cases(tmp_path / "STORE")

    np.testing.assert_array_equal(read_volume(case["image"]).voxels, voxels[::-1, ::-1])


def test_refused_volumes_are_reported_and_the_run_goes_on(add_patient, tmp_path):
    add_patient("Name_Given")
    add_patient("thin", np.zeros((24, 20, 8), np.int16))
    add_patient("holes", np.full((24, 20, 32), np.nan, np.float32))
    store = tmp_path / "STORE"

    code = main([str(tmp_path / "DIR"), "--output", str(store), "--num_workers", "0", "--patch_size", "16"])

    rows = {
        row["path"]: row
        for row in csv.DictReader((store / "prepare_report.csv").read_text(encoding="utf-8").splitlines())
    }
    assert code == 1 and len(rows) == 3
    assert rows["Name_Given/ct.nii.gz"]["shape"] == "24x20x32"
    assert rows["thin/ct.nii.gz"]["code"] == "smaller_than_a_patch"
    assert (
        "its 24 x 20 x 8 voxels are fewer than a patch of 16 x 16 x 16" in rows["thin/ct.nii.gz"]["message"]
    )
    assert rows["holes/ct.nii.gz"]["status"] == "refused"
    assert "NaN or infinite" in rows["holes/ct.nii.gz"]["message"]
    assert "Name" not in (store / "datalist.json").read_text(encoding="utf-8")
    assert [row["patient"] for row in rows.values() if "Name" in row["patient"]] == []


def test_nothing_usable_ends_with_2(add_patient, tmp_path):
    add_patient("thin", np.zeros((24, 20, 2), np.int16))

    assert main([str(tmp_path / "DIR"), "--output", str(tmp_path / "STORE"), "--num_workers", "0"]) == 2


def test_further_patients_move_nobody_and_nothing_is_packed_twice(add_patient, tmp_path):
    for n in range(1, 4):
        add_patient("a" * n)
    prepare(tmp_path / "DIR", tmp_path / "STORE", 0)
    before = sides(tmp_path / "STORE")
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "STORE" / "volumes").iterdir()}
    for n in range(4, 9):
        add_patient("a" * n)

    prepare(tmp_path / "DIR", tmp_path / "STORE", 0)

    after = sides(tmp_path / "STORE")
    assert len(after) == 8 and {patient: after[patient] for patient in before} == before
    assert {path: path.stat().st_mtime_ns for path in times} == times


def test_a_stored_volume_is_exported(add_patient, tmp_path, capsys):
    voxels = add_patient("p")
    (line,) = prepare(tmp_path / "DIR", tmp_path / "STORE", 0)

    assert (
        main(["--export", str(tmp_path / "STORE" / "volumes" / line.file), str(tmp_path / "o.nii.gz")]) == 0
    )

    back = nib.load(tmp_path / "o.nii.gz")
    np.testing.assert_array_equal(np.asanyarray(back.dataobj), voxels)
    np.testing.assert_array_equal(back.affine, nib.load(tmp_path / "DIR" / "p" / "ct.nii.gz").affine)


def test_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(DatasetError, match="gone: no such file or folder; check DIR"):
        prepare(tmp_path / "gone", tmp_path / "STORE")


def test_patients_train_and_validate_as_they_would_without_a_store(add_patient, tmp_path):
    for n in range(1, 9):
        add_patient("a" * n)
    prepare(tmp_path / "DIR", tmp_path / "store", 0)

    split, plain = (split_cases(tmp_path / name) for name in ("store", "DIR"))
    for side in ("training", "validation"):
        hashes = {patient_hash(case["patient"]) for case in plain[side]}
        assert {case["patient"] for case in split[side]} == hashes


def test_the_lists_of_a_datalist_are_kept(add_patient, tmp_path):
    for name in ("p", "q", "r"):
        add_patient(name)
    lists = {"training": ["p/ct.nii.gz"], "validation": ["q/ct.nii.gz"], "testing": ["r/ct.nii.gz"]}
    (tmp_path / "DIR" / "lists.json").write_text(json.dumps(lists), encoding="utf-8")

    prepare(tmp_path / "DIR" / "lists.json", tmp_path / "store", 0)

    kept = {side: [item["patient"] for item in items] for side, items in lists_of(tmp_path / "store").items()}
    assert kept == {side: [patient_hash(paths[0][0])] for side, paths in lists.items()}


def test_a_second_run_says_that_nothing_was_to_be_done(add_patient, tmp_path, capsys):
    for name in ("p", "q"):
        add_patient(name)
    arguments = [str(tmp_path / "DIR"), "--output", str(tmp_path / "STORE"), "--num_workers", "0"]

    told = [(main(arguments), capsys.readouterr().out.splitlines()[0].split("; see")[0]) for _ in range(2)]

    assert told == [
        (0, "2 prepared, 0 already there, 0 refused, 0 skipped"),
        (0, "0 prepared, 2 already there, 0 refused, 0 skipped"),
    ]


def test_volumes_of_a_store_have_short_names_that_stay(add_patient, tmp_path):
    for name in ("p", "q"):
        add_patient(name)
    first = prepare(tmp_path / "DIR", tmp_path / "STORE", 0)
    add_patient("a")

    second = {line.path: line.file for line in prepare(tmp_path / "DIR", tmp_path / "STORE", 0)}

    names = [output_name(case["image"], tmp_path).name for case in inference_cases(tmp_path / "STORE")]
    assert sorted(names) == ["volume_0001", "volume_0002", "volume_0003"]
    assert {line.path: line.file for line in first}.items() <= second.items()
    assert second["a/ct.nii.gz"].startswith("volume_0003-")
    assert len(list((tmp_path / "STORE" / "volumes").iterdir())) == 2 * 3  # with their counts beside them


MOMENTS = {
    "waits for the file": "bundle.data.store.store:locked",
    "has made the file": "bundle.data.store.store:stored_volume",
    "reads the file": "bundle.data.store.stored_volume:StoredVolume.outside_window",
    "is about to number the files": "bundle.data.store.store:PatchStore.number_files",
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_two_that_prepare_one_store_at_a_time_end_with_one_store(add_patient, tmp_path, monkeypatch, moment):
    """Another process begins and ends, while this one is at that point."""
    for patient in ("p", "q"):
        add_patient(patient)
    folders = tmp_path / "DIR", tmp_path / "STORE"
    function = pkgutil.resolve_name(MOMENTS[moment])
    of_the_other = []

    def interrupted(*arguments, **named):
        if not of_the_other:
            of_the_other.append(None)  # the other one is not interrupted
            of_the_other[:] = prepare(*folders, 0)
        return function(*arguments, **named)

    monkeypatch.setattr(MOMENTS[moment].replace(":", "."), interrupted)
    lines = prepare(*folders, 0)

    files = sorted(path.name for path in (tmp_path / "STORE" / "volumes").glob("*.ctpa"))
    assert [name[:12] for name in files] == ["volume_0001-", "volume_0002-"]
    assert sorted(line.file for line in lines) == sorted(line.file for line in of_the_other) == files
    assert len(inference_cases(tmp_path / "STORE")) == 2


def test_a_store_of_an_earlier_version_gets_short_names_and_is_not_packed_again(add_patient, tmp_path):
    add_patient("p")
    prepare(tmp_path / "DIR", tmp_path / "STORE", 0)
    (numbered,) = (tmp_path / "STORE" / "volumes").glob("*.ctpa")
    for path in (numbered, numbered.with_suffix(".json")):
        path.rename(path.with_name(path.name.removeprefix("volume_0001-")))

    (line,) = prepare(tmp_path / "DIR", tmp_path / "STORE", 0)

    assert (line.file, line.made) == (numbered.name, "earlier")


def test_a_store_is_inspected_and_not_prepared_again(add_patient, tmp_path, capsys):
    add_patient("p")
    prepare(tmp_path / "DIR", tmp_path / "STORE", 0)

    assert inspect([str(tmp_path / "STORE")]) == 0

    assert "volumes/volume_0001-" in capsys.readouterr().out
    with pytest.raises(DatasetError, match="STORE: holds prepared volumes, such as .* train with --data"):
        prepare(tmp_path / "STORE", tmp_path / "OTHER", 0)


def test_odd_volumes_are_shown_at_the_end(add_patient, tmp_path, capsys):
    add_patient("p")
    add_patient("odd", np.random.default_rng(0).integers(0, 3000, (24, 20, 32)).astype(np.int16))

    assert main([str(tmp_path / "DIR"), "--output", str(tmp_path / "STORE"), "--num_workers", "0"]) == 0

    out = capsys.readouterr().out
    assert "look at these before training, 1 in all:\n  odd/ct.nii.gz: its lowest value is 0, as if" in out

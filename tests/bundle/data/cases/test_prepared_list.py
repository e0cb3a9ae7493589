import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bundle.data.cases.prepared_list import Prepared, prepared_lists
from bundle.data.store.store import StoreError
from bundle.run.names import patient_hash

PATIENTS = st.sets(st.text("abcdefgh", min_size=1, max_size=4), max_size=12)


def volumes_of(patients):
    return [Prepared(f"volumes/{name}.ctpa", patient_hash(name), name) for name in sorted(patients)]


def sides(lists):
    return {item["patient"]: side for side, items in lists.items() for item in items}


@settings(max_examples=100, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(steps=st.lists(PATIENTS, min_size=2, max_size=4))
def test_patients_that_are_added_move_nobody_and_both_sides_have_somebody(tmp_path_factory, steps):
    path = tmp_path_factory.getbasetemp() / "datalist.json"
    path.unlink(missing_ok=True)
    patients, before = set(), {}
    for added in steps:
        patients |= added

        lists = prepared_lists(volumes_of(patients), path)

        path.write_text(json.dumps(lists), encoding="utf-8")
        after = sides(lists)
        assert set(after) == {patient_hash(name) for name in patients}
        assert {patient: after[patient] for patient in before} == before
        assert len(patients) < 2 or set(lists) == {"training", "validation"} and lists["training"]
        before = after


@pytest.mark.parametrize("content", ["[", "[" * 100_000, "[]", '{"training": [3]}', '{"training": [{}]}'])
def test_what_is_no_list_of_an_earlier_run_is_named(tmp_path, content):
    path = tmp_path / "datalist.json"
    path.write_text(content, encoding="utf-8")

    with pytest.raises(StoreError, match="datalist.json: is not a datalist of this program; move it away"):
        prepared_lists(volumes_of({"a"}), path)


def test_a_patient_whose_hash_an_earlier_version_hashed_again_keeps_the_side(tmp_path):
    path, known = tmp_path / "datalist.json", patient_hash("MRN-1")
    before = {"training": [], "validation": [{"image": "volumes/a.ctpa", "patient": patient_hash(known)}]}
    path.write_text(json.dumps(before), encoding="utf-8")
    volumes = [Prepared("volumes/a.ctpa", known, known), Prepared("volumes/b.ctpa", patient_hash("b"), "b")]

    assert sides(prepared_lists(volumes, path)) == {known: "validation", patient_hash("b"): "training"}

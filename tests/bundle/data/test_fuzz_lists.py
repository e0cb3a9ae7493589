"""JSON that people and programs hand in, damaged: read right or refused by name; as in test_fuzz.py."""

import json
import math
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bundle.data.cases.find import LISTS
from bundle.data.cases.patients import SharedPatientsError
from bundle.data.cases.prepared_list import Prepared, prepared_lists
from bundle.data.cases.split import DatasetError, dataset_root, find_cases, inference_cases, split_cases
from bundle.data.latents.statistics import LatentStatistics, StatisticsError, read_statistics
from bundle.data.store.store import StoreError
from bundle.data.store.window_counts import read_counts
from tests.bundle.data.fuzzing import DAMAGE, FUZZ, JSON, damaged, little_memory

DEEP = b"[" * 100_000
ODD = {
    "deep": DEEP,
    "deep list": b'{"training": ' + DEEP,
    "no UTF-8": b'{"training": ["\xff"]}',
    "byte order mark": b"\xef\xbb\xbf{}",
    "infinite": b'{"-1000 to 1000": [1e999, -1e999]}',
}
ITEMS = st.lists(
    JSON
    | st.sampled_from(["images/a.nii", "images", "images/../images/a.nii", ".", "..", "images/a.nii/b"])
    | st.fixed_dictionaries({"image": JSON | st.just("images/a.nii")}, optional={"patient": JSON}),
    max_size=3,
)
CONTENTS = JSON | st.dictionaries(st.sampled_from([*LISTS, "name"]), JSON | ITEMS, max_size=3)
# Sound text, the same with damaged bytes, and what nests without an end.
TEXTS = st.one_of(
    CONTENTS.map(lambda content: json.dumps(content).encode()),
    st.tuples(CONTENTS, DAMAGE).map(lambda drawn: damaged(json.dumps(drawn[0]).encode(), drawn[1], b"{[")),
    st.sampled_from(sorted(ODD)).map(ODD.__getitem__),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("lists")
    (root / "images").mkdir()
    nib.save(nib.Nifti1Image(np.zeros((4, 4, 4), np.int16), np.eye(4)), root / "images" / "a.nii")
    return root


@FUZZ
@given(content=TEXTS)
def test_a_datalist_is_read_or_refused(folder, content):
    path = folder / "datalist.json"
    path.write_bytes(content)

    for read in (split_cases, inference_cases, find_cases):
        try:
            with little_memory():
                found = read(path)
        except DatasetError as error:
            assert str(folder) in str(error)
        except SharedPatientsError as error:
            assert "are in training and in validation" in str(error)
        else:
            cases = [case for side in found.values() for case in side] if isinstance(found, dict) else found
            assert all(isinstance(case["patient"], str) for case in cases)
            if read is not find_cases:
                assert all(Path(case["image"]).exists() for case in cases)
            assert dataset_root(path)


@FUZZ
@given(content=TEXTS)
def test_a_datalist_of_a_store_is_read_or_refused(folder, content):
    path = folder / "earlier.json"
    path.write_bytes(content)

    try:
        lists = prepared_lists([Prepared("a.ctpa", "0" * 16, "a"), Prepared("b.ctpa", "1" * 16, "b")], path)
    except StoreError as error:
        assert str(error).startswith(str(path))
    else:
        assert sum(map(len, lists.values())) == 2


SOUND = LatentStatistics("codes", (0.5, -1.0), (1.0, 2.0), 10, 2, "0" * 64)


@FUZZ
@given(
    content=TEXTS,
    changes=st.dictionaries(st.sampled_from(sorted(vars(SOUND))), JSON | st.lists(st.floats(), max_size=2)),
    edits=DAMAGE,
    kind=st.integers(0, 3),
)
def test_statistics_are_usable_or_refused(folder, content, changes, edits, kind):
    path = folder / "statistics.json"
    SOUND.save(path)
    whole = path.read_bytes()
    changed = json.dumps(json.loads(whole) | changes).encode()
    path.write_bytes([content, changed, changed, damaged(whole, edits, changed)][kind])

    try:
        read = read_statistics(path, "codes", "0" * 64)
    except StatisticsError as error:
        assert str(error).startswith(str(path))
    else:
        latent = torch.zeros(len(read.mean), 1, 1, 1)
        assert torch.isfinite(read.normalise(latent)).all() and math.isfinite(read.restore(latent).sum())


@FUZZ
@given(content=TEXTS)
def test_counts_beside_a_volume_are_numbers_or_forgotten(folder, content):
    (folder / "volume.json").write_bytes(content)

    counts = read_counts(folder / "volume.ctpa")

    assert all(type(number) is int for pair in counts.values() for number in pair)

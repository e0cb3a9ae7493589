import json
from dataclasses import replace
from pathlib import Path

import pytest

from bundle.data.cases.provenance import (
    Provenance,
    forget_provenance,
    provenance_path,
    read_provenance,
    short_halo,
    write_provenance,
)

MADE = Provenance("ab" * 32, {"preset": "lite", "hu_min": -1000.0}, amp=True, halo=8)


@pytest.fixture
def result(tmp_path):
    path = tmp_path / "ct_recon.nii.gz"
    path.write_bytes(b"voxels")
    write_provenance(path, MADE)
    return path


def test_what_was_noted_is_read_again_of_files_and_of_folders(result, tmp_path):
    folder = tmp_path / "1.2.840_recon"
    folder.mkdir()
    (folder / "0001.dcm").touch()
    write_provenance(folder, MADE)

    assert read_provenance(result) == read_provenance(folder) == MADE
    assert [provenance_path(path).name for path in (result, folder)] == [
        "ct_recon.json",
        "1.2.840_recon.json",
    ]


@pytest.mark.parametrize(
    "change", [{"model_sha256": "cd" * 32}, {"settings": {"preset": "large"}}, {"amp": False}, {"halo": None}]
)
def test_a_result_of_another_model_or_of_other_settings_is_another(result, change):
    assert read_provenance(result) != replace(MADE, **change)


def rewrite(result, **content):
    path = provenance_path(result)
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | content), encoding="utf-8")


DAMAGES = {
    "forgotten": forget_provenance,
    "result gone": Path.unlink,
    "result truncated": lambda result: result.write_bytes(b"vox"),
    "newer format": lambda result: rewrite(result, format_version=2),
    "other fields": lambda result: rewrite(result, secret=1),
    "no JSON": lambda result: provenance_path(result).write_bytes(b"\xff\x00"),
    "a list": lambda result: provenance_path(result).write_text("[1]"),
    "deep": lambda result: provenance_path(result).write_text("[" * 100_000),
    "a folder": lambda result: (provenance_path(result).unlink(), provenance_path(result).mkdir()),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_note_that_cannot_be_trusted_says_nothing(result, damage):
    damage(result)

    assert read_provenance(result) is None


def test_every_halo_that_is_wide_enough_is_the_same():
    assert [short_halo(halo, 20) for halo in (None, 44, 20, 16, 0)] == [None, None, None, 16, 0]

"""Which pairs are taken, and what is said of those that are not."""

import numpy as np
import pytest

from bundle.data.volumes.reading import RASVolume
from bundle.evaluation.cases import (
    EvaluationCase,
    PairsError,
    RefusedVolumeError,
    cases_of_pairs,
    check_original,
    check_pair,
)

CASE = EvaluationCase("case", "patient", original=None)


def table(folder, text):
    path = folder / "pairs.csv"
    path.write_text(text, encoding="utf-8")
    return path


def scan(shape=(60, 50, 40)):
    """Smooth structure of all densities, in HU."""
    x, y, z = np.meshgrid(*(np.linspace(0, 7, n) for n in shape), indexing="ij")
    return (900 * np.sin(x) * np.cos(y) * np.sin(z + 1) - 200).astype(np.int16)


def volume(voxels, moved_mm=0.0):
    affine = np.diag([0.7, 0.7, 1.0, 1.0])
    affine[0, 3] = moved_mm
    return RASVolume(voxels, (0.7, 0.7, 1.0), affine)


def test_pairs_are_read_with_patients_and_inserted_volumes(tmp_path):
    path = table(
        tmp_path,
        "original,reconstruction,patient,inserted_original,inserted_reconstruction\n"
        "a.nii.gz,out/a.nii.gz,p1,i1.nii.gz,r1.nii.gz\n"
        "a.nii.gz,out/a.nii.gz,p1,i2.nii.gz,r2.nii.gz\n"
        "b/a.nii.gz,out/b.nii.gz,,,\n",
    )
    first, second = cases_of_pairs(path)
    assert (first.name, first.patient, len(first.inserted)) == ("a", "p1", 2)
    assert first.inserted[1] == (tmp_path / "i2.nii.gz", tmp_path / "r2.nii.gz")
    assert (second.name, second.stem, second.patient) == ("a_2", "a_2", "a")


def test_names_that_no_path_may_hold_become_harmless(tmp_path):
    (case,) = cases_of_pairs(table(tmp_path, 'original,reconstruction\n"x/..\\\x1b[2J=1.nii.gz",b.nii.gz\n'))
    assert case.name.isprintable()
    assert set(case.stem) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no line"),
        ("original,reconstruction\n", "has no line"),
        ("original,recon\na,b\n", "lacks reconstruction"),
        ("original,reconstruction\n\na.nii,b.nii\n\na.nii,\n", "line 5: `reconstruction` is empty"),
        ("original,reconstruction\na\0.nii,b.nii\n", "line 2: must hold text, got a zero byte"),
        ("original,reconstruction\na.nii,\n", "line 2: `reconstruction` is empty"),
        ("original,reconstruction,inserted_original\na,b,c\n", "line 2: .*belong together"),
    ],
)
def test_a_table_that_cannot_be_used_is_refused(tmp_path, text, message):
    with pytest.raises(PairsError, match=message):
        cases_of_pairs(table(tmp_path, text))


@pytest.mark.parametrize("mark", [",", ";", "\t"])
def test_tables_of_spreadsheets_are_read_whatever_parts_their_columns(tmp_path, mark):
    path = tmp_path / "pairs.csv"
    path.write_bytes("original,reconstruction\r\na,b\r\n".replace(",", mark).encode("utf-8-sig"))
    (case,) = cases_of_pairs(path)
    assert (case.original, case.reconstruction) == (tmp_path / "a", tmp_path / "b")


def test_patients_are_told_apart_by_their_originals_where_the_table_does_not_name_them(tmp_path):
    lines = ["1/ct.nii,a.nii,", "2/ct.nii,b.nii,", "1/ct.nii,c.nii,", "3/ct.nii,d.nii,ct"]
    cases = cases_of_pairs(table(tmp_path, "\n".join(["original,reconstruction,patient", *lines])))
    assert [case.patient for case in cases] == ["ct_2", "ct_3", "ct_2", "ct"]
    assert [case.name for case in cases] == ["ct", "ct_2", "ct_3", "ct_4"]


def test_ten_thousand_files_of_one_name_get_names_of_their_own_at_once(tmp_path, time_limit):
    lines = "".join(f"{n}/ct.nii,r/{n}.nii\n" for n in range(10_000))
    cases = cases_of_pairs(table(tmp_path, "original,reconstruction\n" + lines))
    assert cases[-1].name == "ct_10000"
    assert len({case.stem for case in cases}) == len({case.patient for case in cases}) == 10_000


def test_a_missing_table_is_one_clear_line(tmp_path):
    with pytest.raises(PairsError, match="none.csv: cannot be read as a CSV table"):
        cases_of_pairs(tmp_path / "none.csv")


def with_strays(voxels):
    """HU + 1024 as unsigned numbers: some below -1024 became the largest ones, and then int16."""
    moved = (voxels + 1024).astype(np.int16)
    moved[::3, ::2] = 32_767
    return volume(moved)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: volume(v[:-1]), "must have one shape, got .60, 50, 40. and .59, 50, 40."),
        (lambda v: volume(v, moved_mm=0.7), "their affines differ by up to 0.7 mm"),
        (lambda v: volume((v / 1000).astype(np.int16)), "must be in HU"),
        (lambda v: volume((v // 8 + 128).astype(np.int16)), "must be in HU, but it is about 0.12"),
        (lambda v: volume(v + np.int16(1024)), "must be in HU"),
        (lambda v: volume(np.zeros_like(v)), "must be in HU"),
        (lambda v: volume(v // 2), "must be in HU, but it is about 0.5"),
        (lambda v: volume((v.astype(np.int32) + 40_000).astype(np.int16)), "must be in HU"),  # ran over
        (with_strays, "must be in HU"),
    ],
)
def test_pairs_that_do_not_belong_together_are_refused(change, message):
    with pytest.raises(RefusedVolumeError, match=f"case: .*{message}"):
        check_pair(CASE, volume(scan()), change(scan()))


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("step", [-1, 1])
def test_a_shift_by_a_voxel_is_told_with_its_direction(axis, step):
    original = scan() + np.random.default_rng(0).normal(0, 30, (60, 50, 40)).astype(np.int16)
    (warning,) = check_pair(CASE, volume(original), volume(np.roll(original, step, axis)))
    expected = tuple(step * (n == axis) for n in range(3))
    assert f"looks shifted by {expected} voxels" in warning


def test_a_noisy_smooth_or_bad_reconstruction_is_taken():
    generator = np.random.default_rng(0)
    original = scan() + generator.normal(0, 30, (60, 50, 40)).astype(np.int16)
    for recon in (scan(), original, original + generator.normal(0, 200, original.shape).astype(np.int16)):
        assert check_pair(CASE, volume(original), volume(recon.astype(np.int16))) == []


def test_the_reconstruction_of_another_scan_is_told():
    (warning,) = check_pair(CASE, volume(scan()), volume(np.roll(scan(), 25, 0)))
    assert "case: the reconstruction does not look like the original (correlation" in warning


def test_slices_too_small_for_any_figure_are_refused():
    with pytest.raises(RefusedVolumeError, match="at least 7 x 7 voxels, got 6 x 50"):
        check_original(CASE, volume(scan((6, 50, 40))))

import csv
import json
import os
import re
import resource

import nibabel as nib
import numpy as np
import pytest

from bundle.data.cases.find import DatasetError
from bundle.data.cases.summary import summarise_volume
from bundle.data.volumes.phantom import write_phantom
from bundle.run.atomic import UnwritableError
from bundle.run.errors import own_message
from bundle.run.names import printable
from scripts.inspect import main

HU = np.random.default_rng(0).integers(-1000, 100, (8, 6, 10)).astype(np.int16)  # Z, rows, columns


@pytest.fixture
def dataset(write_dicom, tmp_path):
    """A usable DICOM series, one of another unit, and a NIfTI file, a quarter of it padding."""
    write_dicom(tmp_path / "data" / "p1" / "ct", HU, tags={"0018|0010": "IV"})
    write_dicom(tmp_path / "data" / "p2" / "ct", HU, tags={"0028|1054": "OD"})
    voxels = HU.transpose(2, 1, 0).copy()
    voxels[..., :2] = -2048
    (tmp_path / "data" / "p3").mkdir()
    nib.save(nib.Nifti1Image(voxels, np.diag([0.7, 0.8, 1.5, 1])), tmp_path / "data" / "p3" / "ct.nii.gz")
    return tmp_path / "data"


def test_the_table_has_a_row_for_every_volume_and_says_what_is_refused(dataset, tmp_path, capsys):
    code = main([str(dataset), "--csv", str(tmp_path / "out.csv"), "--num_workers", "1"])

    out = capsys.readouterr().out
    lines = [re.sub(" {2,}", " | ", line) for line in out.splitlines()]
    assert code == 1
    assert lines[1].startswith("p1/ct | 10 x 6 x 8 | 0.700 x 0.800 x 1.500 | LPS | -997 to 96 |")
    assert lines[1].endswith("| 0.0% | not visible, in header | yes")
    assert lines[2] == "p2/ct | - | - | - | - | - | - | no"
    assert lines[3].startswith("p3/ct.nii.gz | 10 x 6 x 8 | ") and "| 25.0% | not visible | yes" in lines[3]
    assert re.search(r"^ \| p2/ct: .* is not in HU, .* \[non_hu\]$", lines[6])
    assert lines[-1] == "2 of 3 volumes can be used as they are"
    assert not any(secret in out for secret in ("DOE", "MRN"))
    rows = list(csv.DictReader((tmp_path / "out.csv").read_text(encoding="utf-8").splitlines()))
    assert [(row["is_usable"], row["code"]) for row in rows] == [
        ("True", ""),
        ("False", "non_hu"),
        ("True", ""),
    ]


def test_reading_two_volumes_at_a_time_gives_the_same_table(dataset, capsys):
    tables = [(main([str(dataset), "--num_workers", n]), capsys.readouterr().out) for n in ("1", "2")]

    assert tables[0] == tables[1]


def test_the_exit_code_is_0_if_all_can_be_used_and_a_patch_may_be_asked_for(dataset, capsys):
    path = str(dataset / "p1" / "ct")

    assert main([path]) == 0
    assert main([path, "--patch_size", "6"]) == 0
    assert main([path, "--patch_size", "6", "6", "9"]) == 1
    out = capsys.readouterr().out
    assert "ct: its 10 x 6 x 8 voxels are fewer than a patch of 6 x 6 x 9; set a smaller" in out
    assert "[smaller_than_a_patch]" in out


def test_what_is_no_volume_by_nature_is_told_and_does_not_count(write_dicom, tmp_path, capsys):
    write_dicom(tmp_path / "ct", HU)
    write_dicom(tmp_path / "scout", HU[:2], series="1.9", tags={"0008|0008": "ORIGINAL\\PRIMARY\\LOCALIZER"})

    assert main([str(tmp_path)]) == 0

    out = capsys.readouterr().out
    assert "1 of 1 volumes can be used as they are; skipped, since they cannot be CT volumes: 1" in out
    assert re.search(r"scout/\d+: is a localizer, not a volume \[localizer\]", out)


def test_a_tilted_gantry_is_told(write_dicom, tmp_path, capsys):
    tilt = lambda z: {"0020|0032": f"-50\\{20 + 0.3 * z}\\{100 + 1.5 * z}"}  # noqa: E731
    write_dicom(tmp_path / "ct", HU, slice_tags=tilt)

    assert main([str(tmp_path)]) == 0

    assert "ct: gantry tilt of 11.3 degrees: voxels stay as they are" in capsys.readouterr().out


def test_a_name_of_any_bytes_stays_on_its_line_and_in_its_cell(tmp_path, capsys):
    names = [b"two\nlines", b"r\r", b'"quoted", and spaced', b"\xff\xfe", "häuser".encode(), b"x" * 240]
    for name in names:
        path = os.path.join(os.fsencode(tmp_path), name + b".nii")
        nib.save(nib.Nifti1Image(HU[:4, :4, :4], np.eye(4)), os.fsdecode(path))

    code = main([str(tmp_path), "--csv", str(tmp_path / "out.csv")])

    lines = capsys.readouterr().out.splitlines()
    assert code == 0 and len(lines) == 1 + len(names) + 2
    assert any(line.startswith("two\\nlines.nii ") for line in lines)
    assert any(line.startswith("\\udcff\\udcfe.nii ") for line in lines)
    with (tmp_path / "out.csv").open(newline="", encoding="utf-8") as file:
        rows = [row["path"] for row in csv.DictReader(file)]
    told = {printable(os.fsdecode(name)) for name in names}
    assert {path.removeprefix(f"{tmp_path}/").removesuffix(".nii") for path in rows} == told


def test_the_volumes_of_a_datalist_are_shown(dataset, capsys):
    names = ["p1/ct", "p2/ct"]  # p3 is not named
    lists = {"training": [{"image": names[0]}], "validation": [{"image": names[1]}]}
    (dataset / "list.json").write_text(json.dumps(lists), encoding="utf-8")

    assert main([str(dataset / "list.json")]) == 1
    out = capsys.readouterr().out
    assert [line.split()[0] for line in out.splitlines()[1:3]] == names
    assert "1 of 2 volumes can be used" in out


def test_a_table_that_cannot_be_written_is_told_before_anything_is_read(tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        main([str(tmp_path), "--csv", str(tmp_path / "none" / "out.csv")])
    assert "`csv` must be a file in a folder that exists" in capsys.readouterr().err


def test_a_table_on_a_full_disk_is_told_in_one_line_and_the_one_before_stays(tmp_path, capsys):
    nib.save(nib.Nifti1Image(HU, np.eye(4)), tmp_path / "ct.nii")
    table = tmp_path / "out.csv"
    table.write_text("before", encoding="utf-8")
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(
        resource.RLIMIT_FSIZE, (64, limit[1])
    )  # as on a full disk, a write fails in its middle
    try:
        with pytest.raises(UnwritableError) as refused:
            main([str(tmp_path), "--csv", str(table), "--num_workers", "1"])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)

    advice = "make room or give another --csv"
    assert own_message(refused.value) == f"{table}: cannot be written (File too large); {advice}"
    assert "1 of 1 volumes can be used" in capsys.readouterr().out
    assert table.read_text(encoding="utf-8") == "before"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ct.nii", "out.csv"]


def test_an_empty_folder_is_named(tmp_path):
    with pytest.raises(DatasetError, match=f"{tmp_path}: holds no volume"):
        main([str(tmp_path)])


@pytest.mark.parametrize("flips", [(1, 1, 1), (-1, -1, 1), (1, -1, -1)])
def test_filled_vessels_between_the_lungs_are_seen_in_any_orientation(flips, tmp_path):
    affine = np.diag([*np.array(flips) * 3.0, 1])
    write_phantom(tmp_path / "scan.nii", (96, 80, 96), affine)
    image = nib.load(tmp_path / "scan.nii")
    voxels = np.asanyarray(image.dataobj)
    plain = np.where((voxels > 200) & (voxels < 470), 40, voxels)  # bone is brighter
    nib.save(nib.Nifti1Image(plain, affine), tmp_path / "plain.nii")

    assert summarise_volume(tmp_path / "scan.nii").is_contrast_seen
    assert not summarise_volume(tmp_path / "plain.nii").is_contrast_seen

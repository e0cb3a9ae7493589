"""A pipe, or a link to one, where a data set or a store has files: whoever opened it would wait for ever."""

import ast
import os
import re
from pathlib import Path

import numpy as np
import pytest

from bundle.data.cases.find import DatasetError
from bundle.data.cases.split import find_cases, inference_cases
from bundle.data.dicom.series import find_one_series
from bundle.data.latents.find import encoded_cases
from bundle.data.latents.statistics import StatisticsError, read_statistics
from bundle.data.store.file import StoreError
from bundle.data.store.kept_fingerprint import kept_fingerprint
from bundle.data.store.store import PatchStore
from bundle.data.volumes.fingerprint import voxel_fingerprint
from bundle.data.volumes.formats import VolumeError, read_header
from bundle.evaluation.cases import PairsError, cases_of_pairs
from bundle.handlers.curve_table import keep_rows_until
from bundle.reports.tables import TableError, read_metrics
from bundle.run.atomic import UnwritableError, open_without_links
from bundle.run.lock import lock_folder, locked
from scripts.inspect import main as inspect
from scripts.prepare import prepare

ROOT = Path(__file__).resolve().parents[3]
WRITES = re.compile(r"os\.open\(|archive\.open\(|open_without_links|open\('[wxa]|'w\+b'")

pytestmark = pytest.mark.usefixtures("time_limit")


@pytest.fixture
def linked_pipe(tmp_path):
    """Makes a link to a pipe under a name."""
    os.mkfifo(tmp_path / "pipe")

    def link(name):
        path = tmp_path / "DIR" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(tmp_path / "pipe")
        return path

    return link


@pytest.mark.parametrize("name", ["slice", "ct.dcm", "ct.nii.gz", "ct.nii", "ct.ctpa", "datalist.json"])
def test_a_folder_of_a_link_to_a_pipe_holds_no_volume(linked_pipe, tmp_path, name):
    path = linked_pipe(name)

    for folder_or_file in (path.parent, path):
        with pytest.raises(DatasetError):
            find_cases(folder_or_file)
        with pytest.raises(DatasetError):
            inspect([str(folder_or_file)])
    with pytest.raises((VolumeError, StoreError)):
        read_header(path)


def test_slices_beside_a_link_to_a_pipe_are_read(linked_pipe, write_dicom, tmp_path):
    write_dicom(tmp_path / "DIR", np.zeros((4, 6, 8), np.int16))
    linked_pipe("slice")

    assert len(find_one_series(tmp_path / "DIR").files) == 4


def test_files_of_a_store_that_are_pipes_are_refused(linked_pipe, save_nifti, tmp_path):
    prepare(save_nifti(np.full((8, 8, 8), -1000, np.int16)), tmp_path / "STORE", 0)
    (stored,) = (tmp_path / "STORE" / "volumes").glob("*.ctpa")
    counts = stored.with_suffix(".json")
    counts.unlink()
    counts.symlink_to(tmp_path / "pipe")

    (volume,) = PatchStore(tmp_path / "cache").prepare(inference_cases(tmp_path / "STORE"))

    assert volume.outside_window(-1000, 1000)[:2] == (0, 0)
    (tmp_path / "STORE" / "datalist.json").unlink()
    (tmp_path / "STORE" / "datalist.json").symlink_to(tmp_path / "pipe")
    with pytest.raises(StoreError, match="is not a datalist of this program"):
        prepare(tmp_path / "volume_0.nii.gz", tmp_path / "STORE", 0)


def test_codes_and_statistics_that_are_pipes_are_refused(linked_pipe):
    with pytest.raises(DatasetError):
        encoded_cases(linked_pipe("ct_codes.npz"), {})
    with pytest.raises(StatisticsError):
        read_statistics(linked_pipe("statistics.json"), "latents", "")


def test_a_fingerprint_beside_a_volume_that_is_a_pipe_is_computed_again(linked_pipe, tmp_path):
    linked_pipe("volume.voxels")
    voxels = np.arange(64, dtype=np.int16).reshape(4, 4, 4)

    assert kept_fingerprint(tmp_path / "DIR" / "volume.ctpa", lambda: voxels) == voxel_fingerprint(voxels)


def test_tables_that_are_pipes_are_refused(linked_pipe):
    path = linked_pipe("metrics.csv")

    with pytest.raises(TableError, match="is a pipe"):
        read_metrics(path)
    with pytest.raises(PairsError, match="is a pipe"):
        cases_of_pairs(path)
    with pytest.raises(OSError, match="is a pipe"):
        keep_rows_until(path, 1)


def test_a_pipe_in_place_of_a_log_a_table_or_a_lock_is_neither_written_nor_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for name in (".lock", ".lock_ct"):
        os.mkfifo(tmp_path / name)

    with pytest.raises(UnwritableError, match="pipe: cannot be written"):
        open_without_links(tmp_path / "pipe", os.O_WRONLY | os.O_APPEND)
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    with pytest.raises(UnwritableError, match="it is a pipe"):
        open_without_links(tmp_path / "pipe", os.O_WRONLY | os.O_APPEND)
    os.close(reader)
    with pytest.raises(OSError, match="it is a pipe"):
        lock_folder(tmp_path)
    with pytest.raises(OSError, match="it is a pipe"), locked(tmp_path / "ct"):
        pass


def test_the_product_opens_nothing_that_could_be_a_pipe():
    """Plain ways to open a file for reading; those below are of this project's own code or of the kernel."""
    own = {"bundle/data/dicom/derived.py", "bundle/run/description.py", "bundle/run/files.py"}
    own |= {"bundle/data/dicom/gdcm_process.py", "bundle/viewing/page.py"}
    offenders = []
    for path in [*(ROOT / "bundle").rglob("*.py"), *(ROOT / "transforms").rglob("*.py")]:
        name = path.relative_to(ROOT).as_posix()
        calls = [node for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.Call)]
        for call in calls if name not in own else []:
            words = ast.unparse(call)
            is_read = ast.unparse(call.func).rpartition(".")[2] in ("read_text", "read_bytes")
            is_open = ast.unparse(call.func).rpartition(".")[2] == "open" and not WRITES.search(words)
            offenders += [f"{name}:{call.lineno} {words}"] if is_read or is_open else []

    assert offenders == []

"""A pipe, or a link to one, where a data set or a store has files: whoever opened it would wait for ever."""

import os

import numpy as np
import pytest

from bundle.data.cases.find import DatasetError
from bundle.data.cases.split import find_cases, inference_cases
from bundle.data.dicom.series import find_one_series
from bundle.data.latents.find import encoded_cases
from bundle.data.latents.statistics import StatisticsError, read_statistics
from bundle.data.store.file import StoreError
from bundle.data.store.store import PatchStore
from bundle.data.volumes.formats import VolumeError, read_header
from scripts.inspect import main as inspect
from scripts.prepare import prepare

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

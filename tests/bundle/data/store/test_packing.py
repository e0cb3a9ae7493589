import numpy as np
import pytest

from bundle.data.store.packing import pack_volume
from bundle.data.volumes.reading import VolumeError
from tests.bundle.data.store.conftest import VOXELS


def a_damaged_stream(save_nifti, write_dicom, folder):
    path = save_nifti(VOXELS, name="ct.nii.gz")
    content = path.read_bytes()
    middle = len(content) // 2
    path.write_bytes(content[:middle] + bytes(50) + content[middle + 50 :])
    return path


def a_damaged_slice(save_nifti, write_dicom, folder):
    voxels = np.repeat(np.repeat(VOXELS.transpose(2, 1, 0), 3, 1), 3, 2)
    series = write_dicom(folder / "ct", voxels, compressor="JPEG")
    path = next(series.iterdir())
    content = path.read_bytes()
    start = content.index(b"\xff\xd8\xff")
    path.write_bytes(content[:start] + bytes(40) + content[start + 40 :])
    return series


@pytest.mark.parametrize("damaged", [a_damaged_stream, a_damaged_slice])
def test_damage_that_only_reading_finds_is_told_in_the_readers_words(
    save_nifti, write_dicom, tmp_path, damaged
):
    path = damaged(save_nifti, write_dicom, tmp_path)
    store = tmp_path / "store"
    store.mkdir()

    with pytest.raises(VolumeError, match="damaged"):
        pack_volume(store / "ct.ctpa", path, -1000, 1000)
    assert list(store.iterdir()) == []

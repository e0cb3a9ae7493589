"""A file format that one module and one line in the list add, and nothing else."""

import json

import nibabel as nib
import numpy as np
import pytest

from bundle.data.cases.split import find_cases, inference_cases
from bundle.data.patches.dataset import PatchDataset
from bundle.data.volumes import formats
from bundle.data.volumes.nifti import header_of_affine
from bundle.data.volumes.reading import CTReader, read_volume
from bundle.data.volumes.writing import CTWriter
from bundle.engines.preflight import store_bytes
from bundle.run.names import output_name
from scripts.inspect import main as inspect
from scripts.prepare import prepare
from transforms.load import LoadImageCTPAd

MODULE = """
import numpy as np
from bundle.data.volumes.formats import Format, Volume, VolumeError, VolumeHeader
from bundle.data.volumes.nifti import header_of_affine

class ToyFormat(Format):
    described = "a .toy file"
    suffixes = (".toy",)
    is_writable = True

    def read_header(self, path):
        volume = self.read(path, None)
        return VolumeHeader(volume.voxels.shape, volume.affine, volume.header, ("it is a toy",))

    def read(self, path, on_slices):
        try:
            voxels = np.load(path)
        except ValueError as error:
            raise VolumeError(f"{path}: is no toy ({error})") from error
        return Volume(voxels, np.eye(4), header_of_affine(np.eye(4), voxels.shape))

    def write(self, file, path, header, voxels):
        np.save(file, voxels)
"""
HU = np.random.default_rng(0).integers(-1000, 1000, (12, 10, 8)).astype(np.int16)


@pytest.fixture
def dataset(tmp_path, monkeypatch):
    """A data set of one .toy file, with the format's module and its line."""
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "toy_format.py").write_text(MODULE, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path / "modules")
    monkeypatch.setattr(
        formats, "FORMATS", [*formats.FORMATS[:2], "toy_format.ToyFormat", formats.FORMATS[2]]
    )
    (tmp_path / "DIR" / "p1").mkdir(parents=True)
    with (tmp_path / "DIR" / "p1" / "ct.toy").open("wb") as file:
        np.save(file, HU)
    return tmp_path / "DIR"


def test_a_new_format_is_found_inspected_prepared_trained_on_reconstructed_and_written(
    dataset, tmp_path, capsys
):
    path = dataset / "p1" / "ct.toy"
    case = {"image": str(path), "patient": "p1"}

    assert find_cases(dataset) == find_cases(path.parent.parent) == inference_cases(dataset) == [case]
    (dataset / "list.json").write_text(json.dumps({"training": ["p1/ct.toy"]}), encoding="utf-8")
    assert find_cases(dataset / "list.json") == [case | {"patient": "p1"}]
    assert output_name(path, dataset).as_posix() == "p1/ct"
    assert inspect([str(dataset)]) == 0
    assert "p1/ct.toy: it is a toy" in capsys.readouterr().out
    assert store_bytes({"training": [case]}, tmp_path / "new") == path.stat().st_size
    PatchDataset([case], 8, tmp_path / "cache").prepare()
    (line,) = prepare(dataset, tmp_path / "STORE", 0)
    assert (line.status, line.message) == ("prepared", "it is a toy")
    np.testing.assert_array_equal(read_volume(tmp_path / "STORE" / "volumes" / line.file).voxels, HU)
    assert CTReader().verify_suffix(path)
    np.testing.assert_array_equal(LoadImageCTPAd("image")(case)["image"][0], HU)
    writer = CTWriter()
    writer.set_data_array(HU[None])
    writer.set_metadata({"affine": np.eye(4)})
    writer.write(tmp_path / "out.toy")
    np.testing.assert_array_equal(read_volume(tmp_path / "out.toy").voxels, HU)
    assert formats.writable_suffixes() == (".nii.gz", ".nii", ".toy")
    assert "a .toy file" in formats.described_formats()


def test_files_of_no_format_are_left_alone(tmp_path):
    nib.save(nib.Nifti1Image(HU, np.eye(4), header_of_affine(np.eye(4), HU.shape)), tmp_path / "ct.nii")
    np.save(tmp_path / "ct.toy.npy", HU)
    (tmp_path / "ct.toy").write_bytes(b"toy")

    assert [case["image"] for case in find_cases(tmp_path)] == [str(tmp_path / "ct.nii")]

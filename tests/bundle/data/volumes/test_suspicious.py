"""Data that can be read, but are hardly what they should be, are told by name."""

import logging

import numpy as np

from bundle.data.cases.split import find_cases
from bundle.data.patches.dataset import PatchDataset


def test_a_volume_without_air_is_told_for_it_may_be_a_mask(save_nifti, tmp_path, caplog):
    scan = np.full((16, 16, 16), -1000, np.int16)
    paths = [save_nifti(scan, name="p/ct.nii.gz"), save_nifti(np.abs(scan) // 1000, name="p/mask.nii.gz")]
    dataset = PatchDataset([{"image": str(path)} for path in paths], 8, tmp_path / "cache")

    with caplog.at_level(logging.WARNING):
        dataset.prepare()

    assert [record.args[0] for record in caplog.records] == [str(paths[1])]
    assert "its lowest value is 1, but a CT of the chest holds air" in caplog.text


def test_earlier_results_in_the_data_set_are_told(save_nifti, write_dicom, tmp_path, caplog):
    scan = np.zeros((8, 12, 10), np.int16)
    for name in ("p1/ct.nii.gz", "p1/out/ct_recon.nii.gz", "p2/reconstructed.nii.gz"):
        save_nifti(scan, name=f"DIR/{name}")
    write_dicom(tmp_path / "DIR" / "p3" / "series_recon", scan)

    with caplog.at_level(logging.WARNING):
        find_cases(tmp_path / "DIR")

    assert "2 of 4 volumes are called *_recon" in caplog.text
    assert f"({tmp_path / 'DIR' / 'p1' / 'out' / 'ct_recon.nii.gz'}, ...)" in caplog.text


def test_a_series_in_several_folders_is_told(write_dicom, tmp_path, caplog):
    slices = np.zeros((8, 12, 10), np.int16)
    for name, series in (("a", "1.2.3.4"), ("b", "1.2.3.4"), ("c", "1.2.3.5")):
        write_dicom(tmp_path / "DIR" / name, slices, series=series)

    with caplog.at_level(logging.WARNING):
        cases = find_cases(tmp_path / "DIR")

    assert len(cases) == 3
    assert caplog.text.count("one series lies in 2 folders") == 1
    assert f"{tmp_path / 'DIR' / 'a'}, {tmp_path / 'DIR' / 'b'};" in caplog.text

"""A datalist that lies elsewhere than its volumes."""

import json

import numpy as np

from bundle.data.cases.split import dataset_root, inference_cases
from bundle.data.volumes.phantom import write_phantom
from bundle.run.names import output_name


def test_whole_paths_in_a_datalist_may_lead_anywhere_and_their_common_folder_is_the_data_set(tmp_path):
    listed = [tmp_path / "data" / patient / "ct.nii.gz" for patient in ("p1", "p2", "p3")]
    for path in listed:
        write_phantom(path, (8, 8, 8), np.eye(4), seed=0)
    source = tmp_path / "lists" / "datalist.json"
    source.parent.mkdir()
    source.write_text(json.dumps({"training": [str(path) for path in listed]}), encoding="utf-8")

    assert [case["patient"] for case in inference_cases(source)] == ["p1", "p2", "p3"]
    root = dataset_root(source)
    assert [output_name(path, root).as_posix() for path in listed] == ["p1/ct", "p2/ct", "p3/ct"]

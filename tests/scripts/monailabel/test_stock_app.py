"""MONAI Label's own monaibundle app serves this bundle too, within the limits in docs/monailabel.md."""

import importlib.util
import json
import shutil
import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest
import yaml

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("monailabel") is None, reason="needs MONAI Label: make test-label"
)
# As docs/monailabel.md says: the configs name the network of the model. The rest makes a round of seconds.
NETWORK = {"preset": "lite", "num_embeddings": 64}
TINY = {
    "epoch_length": 2,
    "patch_size": [24, 24, 24],
    "batch_size": 2,
    "micro_batch_size": 2,
    "num_workers": 0,
}
CONF = ("--conf", "models", "ctpa_vqgan", "--conf", "zoo_source", "local", "--conf", "sam2", "false")


@pytest.fixture(scope="module")
def clone(copy_bundle):
    folder = copy_bundle("stock_app")
    for name, settings in (("inference", NETWORK), ("train", NETWORK | TINY)):
        path = folder / "configs" / f"{name}.yaml"
        config = yaml.safe_load(path.read_text(encoding="utf-8")) | settings
        path.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def server(clone, make_studies, reference, start_server):
    """Every image has a label, without which Label trains on nothing."""
    studies, apps = make_studies("stock_studies"), clone.parent / "apps"
    (studies / "labels" / "final").mkdir(parents=True)
    for image in studies.glob("*.nii.gz"):
        shutil.copy(image, studies / "labels" / "final")
    words = ["monailabel.main", "apps", "--download", "--name", "monaibundle", "--output", str(apps)]
    subprocess.run([sys.executable, "-W", "ignore", "-m", *words], check=True, timeout=120)
    (apps / "monaibundle" / "model").mkdir(exist_ok=True)
    (apps / "monaibundle" / "model" / "ctpa_vqgan").symlink_to(clone)
    return start_server(clone, apps / "monaibundle", studies, *CONF)


@pytest.mark.parametrize("case", ["oblique", "straight"])
def test_a_reconstruction_has_the_voxels_and_the_place_of_that_of_monai_bundle_run(
    server, reference, tmp_path, case
):
    answer = server.infer(case)

    assert answer.status_code == 200, answer.text
    (tmp_path / "served.nii.gz").write_bytes(answer.content)
    served, expected = nib.load(tmp_path / "served.nii.gz"), nib.load(reference / f"{case}_recon.nii.gz")
    np.testing.assert_array_equal(served.dataobj, expected.dataobj)
    assert np.ptp(expected.dataobj) > 10
    # this app writes through ITK, which makes the axes exactly perpendicular; those of `oblique` are rounded
    np.testing.assert_allclose(served.affine, expected.affine, atol=2e-3)


def test_a_training_round_runs_from_the_model_and_leaves_it(server, clone):
    before = (clone / "models" / "model.pt").read_bytes()

    answer = server.train(max_epochs=1, val_split=0.5, multi_gpu=False)

    assert answer.status_code == 200, server.log.read_text(encoding="utf-8")[-3000:]
    run = clone / "outputs" / "vqgan_patches"
    assert json.loads((run / "run.json").read_text(encoding="utf-8"))["status"] == "finished"
    assert (run / "checkpoints" / "last.pt").is_file()
    assert (clone / "models" / "model.pt").read_bytes() == before

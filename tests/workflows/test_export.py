"""What MONAI exports to TorchScript (check 8 of the model zoo) and ONNX, against the network itself."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from monai.bundle import ckpt_export, onnx_export

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = [str(ROOT / "configs" / name) for name in ("inference.yaml", "export.yaml")]
SETTINGS = {"config_file": CONFIGS, "key_in_ckpt": "model", "preset": "lite", "num_embeddings": 64}
# Not those of the export; images are 4 times as large as indices.
SIZES = [(1, 4, 4, 4), (2, 4, 5, 6), (1, 7, 3, 2)]
ELSEWHERE = """
import importlib.util, sys, torch
assert importlib.util.find_spec("bundle") is None
models = {name: torch.jit.load(name + ".ts") for name in ("network_def", "encoder_def", "decoder_def")}
inputs = torch.load("inputs.pt")
with torch.no_grad():
    outputs = {name: [model(one) for one in inputs[name]] for name, model in models.items()}
torch.save(outputs, "outputs.pt")
"""


@pytest.fixture(scope="module")
def inputs(network):
    """For every exported module what it takes, at several sizes."""
    images = [torch.rand(b, 1, 4 * x, 4 * y, 4 * z) * 2 - 1 for b, x, y, z in SIZES]
    with torch.no_grad():
        indices = [network.encode(image) for image in images]
    assert all(len(one.unique()) > 1 for one in indices)
    return {"network_def": images, "encoder_def": images, "decoder_def": indices}


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning", "ignore:`torch.jit:DeprecationWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@torch.no_grad()
def test_exported_torchscript_gives_the_same_where_the_bundle_is_not(network, inputs, checkpoint, tmp_path):
    shapes = {
        "network_def": [1, 1, 16, 16, 16],
        "encoder_def": [1, 1, 16, 16, 16],
        "decoder_def": [1, 4, 4, 4],
    }
    for name, shape in shapes.items():
        files = {"filepath": str(tmp_path / f"{name}.ts"), "ckpt_file": str(checkpoint)}
        files["meta_file"] = str(ROOT / "configs" / "metadata.json")
        ckpt_export(net_id=name, use_trace=True, input_shape=shape, **files, **SETTINGS)
    torch.save(inputs, tmp_path / "inputs.pt")

    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    words = [sys.executable, "-I", "-W", "ignore", "-c", ELSEWHERE]
    subprocess.run(words, cwd=tmp_path, env=environment, timeout=120, check=True)

    outputs = torch.load(tmp_path / "outputs.pt", weights_only=True)
    for number in range(len(SIZES)):
        indices = inputs["decoder_def"][number]
        image = network.decode(indices)
        assert torch.equal(outputs["encoder_def"][number], indices)
        torch.testing.assert_close(outputs["decoder_def"][number], image, rtol=0, atol=1e-5)
        torch.testing.assert_close(outputs["network_def"][number], image, rtol=0, atol=1e-5)


@pytest.fixture(scope="module")
def onnx_models(checkpoint, tmp_path_factory):
    """The halves as functions of tensors, run by onnxruntime."""
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name, reason='needs `pip install ".[export]"`')
    import onnxruntime

    folder = tmp_path_factory.mktemp("onnx")
    sessions = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tempfile.tempdir", str(folder))  # MONAI leaves the weights there a second time
        for name, shape, first in (("encoder_def", [2, 1, 8, 12, 16], 2), ("decoder_def", [2, 2, 3, 4], 1)):
            axes = {0: "batch", first: "x", first + 1: "y", first + 2: "z"}
            naming = {"input_names": ["input"], "output_names": ["output"], "dynamic_axes": {"input": axes}}
            files = {"filepath": str(folder / f"{name}.onnx"), "ckpt_file": str(checkpoint)}
            onnx_export(net_id=name, input_shape=shape, converter_kwargs=naming, **files, **SETTINGS)
            sessions[name] = onnxruntime.InferenceSession(files["filepath"])

    def run(name: str, tensor: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(sessions[name].run(None, {"input": tensor.float().numpy()})[0])

    return run


@pytest.mark.filterwarnings("ignore:.*dynamic_axes:UserWarning", "ignore::DeprecationWarning")
@torch.no_grad()
def test_exported_onnx_gives_the_same_at_other_sizes(onnx_models, network, inputs):
    for image, indices in zip(inputs["encoder_def"], inputs["decoder_def"], strict=True):
        encoded = onnx_models("encoder_def", image)

        distances = (
            network.encode_latent(image)[:, None] - network.code_vectors()[..., None, None, None]
        ).square()
        distances = distances.sum(dim=2)
        chosen = distances.gather(1, torch.stack([encoded, indices], dim=1))
        torch.testing.assert_close(chosen[:, 0], chosen[:, 1], rtol=0, atol=1e-5)
        assert (encoded == indices).float().mean() > 0.99
        decoded = onnx_models("decoder_def", indices)
        torch.testing.assert_close(decoded, network.decode(indices), rtol=0, atol=1e-4)

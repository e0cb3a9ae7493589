"""What docs/export.md exports to TorchScript and ONNX, against the network itself."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from monai.bundle import ckpt_export

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "export.md").read_text(encoding="utf-8")
COMMANDS = [shlex.split(line) for line in re.findall(r"^python -m monai\.bundle (.*)$", PAGE, re.MULTILINE)]
# Not those of the export; images are 4 times as large as indices.
SIZES = [(1, 4, 4, 4), (2, 4, 5, 6), (1, 7, 3, 2)]
ELSEWHERE = """
import importlib.util, sys, torch
assert importlib.util.find_spec("bundle") is None
models = {name: torch.jit.load(name + ".ts") for name in ("model", "encoder", "decoder")}
inputs = torch.load("inputs.pt")
with torch.no_grad():
    outputs = {name: [model(one) for one in inputs[name]] for name, model in models.items()}
torch.save(outputs, "outputs.pt")
"""


@pytest.fixture(scope="module")
def inputs(network):
    """For every exported file what it takes, at several sizes."""
    images = [torch.rand(b, 1, 4 * x, 4 * y, 4 * z) * 2 - 1 for b, x, y, z in SIZES]
    with torch.no_grad():
        indices = [network.encode(image) for image in images]
    assert all(len(one.unique()) > 1 for one in indices)
    return {"model": images, "encoder": images, "decoder": indices}


def export(python, command: str, checkpoint: Path, folder: Path) -> None:
    """Runs the page's commands of one kind as they stand there, with `folder` for models/."""
    commands = [words for words in COMMANDS if words[0] == command]
    assert len(commands) == 3
    files = {"--ckpt_file": str(checkpoint), "--filepath": str(folder / "model.ts")}
    for words in commands:
        own = [str(folder / word[7:]) if word.startswith("models/") else word for word in words]
        more = [part for name, value in files.items() if name not in own for part in (name, value)]
        done = python("monai.bundle", *own, *more, TMPDIR=str(folder))
        done.expect_success()


def check_torchscript(network, inputs, folder: Path) -> None:
    """The files of `folder` where the bundle cannot be imported."""
    torch.save(inputs, folder / "inputs.pt")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    words = [sys.executable, "-I", "-W", "ignore", "-c", ELSEWHERE]
    subprocess.run(words, cwd=folder, env=environment, timeout=120, check=True)

    outputs = torch.load(folder / "outputs.pt", weights_only=True)
    for number in range(len(SIZES)):
        indices = inputs["decoder"][number]
        image = network.decode(indices)
        assert torch.equal(outputs["encoder"][number], indices)
        torch.testing.assert_close(outputs["decoder"][number], image, rtol=0, atol=1e-5)
        torch.testing.assert_close(outputs["model"][number], image, rtol=0, atol=1e-5)


@torch.no_grad()
def test_torchscript_gives_the_same_at_other_sizes_where_the_bundle_is_not(
    python, network, inputs, checkpoint, tmp_path
):
    export(python, "ckpt_export", checkpoint, tmp_path)

    check_torchscript(network, inputs, tmp_path)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning", "ignore:`torch.jit:DeprecationWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@torch.no_grad()
def test_traced_torchscript_gives_the_same_too(network, inputs, checkpoint, tmp_path):
    configs = [str(ROOT / "configs" / name) for name in ("inference.yaml", "export.yaml")]
    settings = {"config_file": configs, "ckpt_path": str(checkpoint), "key_in_ckpt": "model"}
    settings["meta_file"] = str(ROOT / "configs" / "metadata.json")
    names = {"network_def": "model", "encoder_def": "encoder", "decoder_def": "decoder"}
    for net_id, name in names.items():
        shape = [1, 4, 4, 4] if name == "decoder" else [1, 1, 16, 16, 16]
        files = {"filepath": str(tmp_path / f"{name}.ts"), "ckpt_file": str(checkpoint)}
        ckpt_export(net_id=net_id, use_trace=True, input_shape=shape, **files, **settings)

    check_torchscript(network, inputs, tmp_path)


@pytest.fixture(scope="module")
def onnx_models(python, checkpoint, tmp_path_factory):
    """The exported files as functions of tensors, run by onnxruntime."""
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name, reason='needs `pip install ".[export]"`')
    import onnxruntime

    folder = tmp_path_factory.mktemp("onnx")
    (folder / "model.pt").symlink_to(checkpoint)
    export(python, "onnx_export", checkpoint, folder)
    sessions = {
        name: onnxruntime.InferenceSession(folder / f"{name}.onnx")
        for name in ("model", "encoder", "decoder")
    }

    def run(name: str, tensor: torch.Tensor) -> torch.Tensor:
        (entry,) = sessions[name].get_inputs()
        return torch.from_numpy(sessions[name].run(None, {entry.name: tensor.float().numpy()})[0])

    return run


@pytest.mark.slow
@torch.no_grad()
def test_onnx_gives_the_same_at_other_sizes(onnx_models, network, inputs):
    for image, indices in zip(inputs["encoder"], inputs["decoder"], strict=True):
        encoded = onnx_models("encoder", image)

        distances = (
            network.encode_latent(image)[:, None] - network.code_vectors()[..., None, None, None]
        ).square()
        distances = distances.sum(dim=2)
        chosen = distances.gather(1, torch.stack([encoded, indices], dim=1))
        torch.testing.assert_close(chosen[:, 0], chosen[:, 1], rtol=0, atol=1e-5)
        assert (encoded == indices).float().mean() > 0.99
        decoded = onnx_models("decoder", indices)
        torch.testing.assert_close(decoded, network.decode(indices), rtol=0, atol=1e-4)
        recon = onnx_models("model", image)
        torch.testing.assert_close(recon, network.decode(encoded), rtol=0, atol=1e-4)

"""Phantoms of three patients, and one checkpoint for all tests here."""

import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from bundle.checkpoints.file import network_settings, write_checkpoint
from bundle.data.volumes.phantom import write_phantom
from bundle.networks.vqgan import VQGAN, build_vqgan
from tests.commands import CODES, CONFIGS, ROOT, Ended, Python

ROOMS = ("bundle", "configs", "docs", "scripts", "transforms")
FILES = ("metadata.json", "README.md", "LICENSE")


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three patients, each with a volume of the same name."""
    folder = tmp_path_factory.mktemp("dataset")
    affine = np.diag([1.0, 1.0, 2.0, 1.0])
    for number in range(3):
        write_phantom(folder / f"p{number}" / "ct.nii.gz", (48, 48, 40), affine, seed=number)
    return folder


@pytest.fixture(scope="session")
def network() -> VQGAN:
    """The lite network of smoke.yaml with a small codebook that has seen one patch.

    Fresh weights give some 70 HU of contrast; the last layer is scaled to twice that, so that errors show.
    """
    torch.manual_seed(0)
    network = build_vqgan("lite", "ema", CODES).eval()
    with torch.no_grad():
        network.quantizer.initialize(network.encode_latent(torch.rand(1, 1, 24, 24, 24) * 2 - 1))
        for parameter in network.decoder.blocks[-1].parameters():
            parameter.mul_(2)
    return network


@pytest.fixture(scope="session")
def checkpoint(network: VQGAN, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An installed model of `network`."""
    path = tmp_path_factory.mktemp("model") / "model.pt"
    settings = network_settings("lite", "ema", CODES, -1000, 1000)
    write_checkpoint(path, {"model": network.state_dict(), "network": settings})
    return path


@pytest.fixture(scope="session")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The repository as a zip with one folder in it, as archives of a release are."""
    path = tmp_path_factory.mktemp("archive") / "ctpa_vqgan.zip"
    with zipfile.ZipFile(path, "w") as content:
        for name in FILES:
            content.write(ROOT / name, f"ctpa_vqgan/{name}")
        for file in (file for room in ROOMS for file in (ROOT / room).rglob("*")):
            if file.is_file() and "__pycache__" not in file.parts:
                content.write(file, f"ctpa_vqgan/{file.relative_to(ROOT).as_posix()}")
    return path


@pytest.fixture(scope="session")
def copy(archive: Path, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The archive unpacked by Python, with a model of random weights installed."""
    folder = tmp_path_factory.mktemp("in a folder with blanks")
    with zipfile.ZipFile(archive) as content:
        content.extractall(folder)
    (folder / "ctpa_vqgan" / "models").mkdir()
    shutil.copy(checkpoint, folder / "ctpa_vqgan" / "models" / "model.pt")
    return folder / "ctpa_vqgan"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """An output folder that does not exist yet."""
    return tmp_path / "out"


@pytest.fixture
def listing() -> Callable[[Path], dict[str, bytes]]:
    """Every file below a folder and what it holds."""
    return lambda folder: {
        str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


# A network of a few thousand parameters.
TINY_NETWORK = {
    "network_def": {
        "_target_": "bundle.networks.vqgan.VQGAN",
        "preset": {
            "_target_": "bundle.networks.vqgan.Preset",
            "channels": "$(4, 8)",
            "num_res_layers": 1,
            "tail_channels": 4,
        },
        "quantizer": {
            "_target_": "bundle.networks.quantizer.EMACodebook",
            "num_embeddings": 32,
            "embedding_dim": 8,
        },
    }
}
KEEP_STATE = {
    "+run": [
        "$torch.save(@training_state.state_dict(@train#trainer),"
        " f\"{@output_dir}/rank_{torch.os.environ.get('RANK', 0)}.pt\")"
    ]
}
ON_RANKS = {
    "num_embeddings": 32,
    "patch_size": [16, 16, 16],
    "batch_size": 4,
    "micro_batch_size": 1,
    "log_interval": 1,
    "max_epochs": 1,
}


@pytest.fixture(scope="session")
def start_on_ranks(python: Python, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., list[Ended]]:
    """Trains a tiny network on so many ranks; one rank is one process without a launcher.

    The parts of `overlays` are merged on the configs. Every rank leaves its state in `rank_<number>.pt`.
    """

    def start(kind: str, ranks: int, folder: Path, *overlays: dict, **settings: object) -> list[Ended]:
        files = list(CONFIGS[kind]) + (["configs/multi_gpu_train.yaml"] if ranks > 1 else [])
        for overlay in (TINY_NETWORK, KEEP_STATE, *overlays):
            files.append(str(tmp_path_factory.mktemp("overlay") / "overlay.json"))
            Path(files[-1]).write_text(json.dumps(overlay), encoding="utf-8")
        words = ["run", "--config_file", str(files)]
        for name, value in (ON_RANKS | settings | {"output_dir": folder}).items():
            words += [f"--{name}", str(value)]
        return python.on_ranks(ranks, "monai.bundle", *words)

    return start


@pytest.fixture(scope="session")
def datalist(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """A list of two small volumes to train on, and so many to validate on."""
    folder = tmp_path_factory.mktemp("datalist")
    for number in range(5):
        write_phantom(folder / f"v{number}.nii.gz", (24, 24, 20), np.diag([1.0, 1.0, 2.0, 1.0]), seed=number)

    def write(validation: int) -> Path:
        parts = {"training": range(2), "validation": range(2, 2 + validation)}
        content = {
            part: [{"image": f"v{number}.nii.gz", "patient": f"p{number}"} for number in numbers]
            for part, numbers in parts.items()
        }
        path = folder / f"{validation}.json"
        path.write_text(json.dumps(content), encoding="utf-8")
        return path

    return write

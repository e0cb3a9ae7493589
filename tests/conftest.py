"""What every test may use: seeds, a generator small enough for two cores, and DICOM series."""

import random
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from bundle.networks.quantizer import EMACodebook
from bundle.networks.vqgan import VQGAN, Preset
from tests.commands import Python


@pytest.fixture(autouse=True)
def seeds():
    """The same random numbers for every test, whatever ran before it."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture
def tiny_vqgan():
    """Makes a generator of 2 levels with a codebook that has seen data; eval mode."""

    def make(num_embeddings: int = 32, num_res_layers: int = 1) -> VQGAN:
        network = VQGAN(Preset((8, 16), num_res_layers, tail_channels=4), EMACodebook(num_embeddings, 8))
        with torch.no_grad():
            network.quantizer.initialize(network.encode_latent(torch.rand(1, 1, 32, 32, 32) * 2 - 1))
        return network.eval()

    return make


OBLIQUE = (0.8, 0.6, 0.0, -0.48, 0.64, 0.6)  # row and column cosines


@pytest.fixture(scope="session")
def write_dicom() -> Callable[..., Path]:
    """Writes slices (Z, rows, columns) in HU as a CT series into a folder, and returns the folder.

    `tags` hold for all slices, `slice_tags` may give more for slice z; None takes a tag's default away. Files
    have no suffix and names that say nothing of their order.
    """

    def write(
        folder: Path,
        slices: np.ndarray,
        orientation: Sequence[float] = (1, 0, 0, 0, 1, 0),
        spacing_mm: Sequence[float] = (0.7, 0.8, 1.5),
        tags: Mapping[str, str | None] | None = None,
        slice_tags: Callable[[int], Mapping[str, str]] = lambda z: {},
        compressor: str | None = None,
        series: str = "1.2.3.4",
    ) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        normal = np.cross(orientation[:3], orientation[3:])
        for z, voxels in enumerate(slices):
            position = np.array([-50.0, 20.0, 100.0]) + z * spacing_mm[2] * normal
            defaults = {
                "0008|0016": "1.2.840.10008.5.1.4.1.1.2",
                "0008|0018": f"{series}.{z + 1}",
                "0008|0060": "CT",
                "0010|0010": "DOE^JANE",
                "0010|0020": "MRN-4711",
                "0020|000d": "1.2.3",
                "0020|000e": series,
                "0020|0032": "\\".join(f"{number:.10g}" for number in position),
                "0020|0037": "\\".join(f"{number:.10g}" for number in orientation),
                "0028|1052": "-1024",
                "0028|1053": "1",
            }
            chosen = defaults | dict(tags or {}) | dict(slice_tags(z))
            name = f"{series.replace('.', '')}{(7 * z + 3) % 101:03d}"
            _write_slice(folder / name, voxels, spacing_mm, chosen, compressor)
        return folder

    return write


def _write_slice(path, voxels, spacing_mm, tags, compressor):
    image = sitk.GetImageFromArray(voxels[None])
    image.SetSpacing([float(length) for length in spacing_mm])
    for tag, value in tags.items():
        if value is not None:
            image.SetMetaData(tag, value)
    writer = sitk.ImageFileWriter()
    writer.SetImageIO("GDCMImageIO")
    writer.KeepOriginalImageUIDOn()
    writer.SetFileName(str(path))
    if compressor:
        writer.UseCompressionOn()
        writer.SetCompressor(compressor)
    writer.Execute(image)


@pytest.fixture
def time_limit() -> Iterator[None]:
    """Ends a test that waits for ever, such as for a pipe, after 30 seconds; of the main thread only."""

    def give_up(signum: int, frame: object) -> None:
        pytest.fail(
            "waited for 30 seconds"
        )  # no Exception, which an `except OSError` would take for an answer

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(30)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport():
    """Keeps what a test printed or logged in a form that xdist can send: file names need not be UTF-8."""
    report = (yield).get_result()
    report.sections = [
        (name, text.encode("utf-8", "backslashreplace").decode()) for name, text in report.sections
    ]


@pytest.fixture
def as_rank(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Calls something in this process as if it were one of several ranks; nothing may be exchanged."""

    def call(rank: int, size: int, work: Callable[[], Any]) -> Any:
        with monkeypatch.context() as patch:
            patch.setattr(torch.distributed, "is_initialized", lambda: True)
            patch.setattr(torch.distributed, "get_rank", lambda: rank)
            patch.setattr(torch.distributed, "get_world_size", lambda: size)
            return work()

    return call


@pytest.fixture(scope="session")
def python(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Python]:
    """Runs `python -m` in forks of one process that has imported torch and MONAI."""
    warm = Python(tmp_path_factory.mktemp("python"))
    yield warm
    warm.process.communicate()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts whole workflows first: their files take longest, and both processes should end together."""
    items.sort(key=lambda item: "workflows" not in item.path.parts)

"""A small adversarial run of the real parts; a phantom whose vessels are known, and ways to damage it."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest
import torch
from ignite.engine import Engine
from scipy import ndimage
from torch.utils.data import DataLoader, Dataset

from bundle.checkpoints.file import network_settings
from bundle.checkpoints.state import TrainingState
from bundle.data.patches.dataset import ResumableSampler
from bundle.data.volumes.phantom import LabelledPhantom, make_labelled_phantom
from bundle.data.volumes.reading import RASVolume
from bundle.emboli.chest import Chest, find_chest
from bundle.emboli.inserted import Change, find_changes
from bundle.engines.optimizers import build_optimizer
from bundle.engines.trainer import AdversarialTrainer
from bundle.handlers.gate import IterationGate
from bundle.handlers.updates import DiscriminatorUpdate, GeneratorUpdate
from bundle.losses.objective import GeneratorObjective
from bundle.networks.discriminators import build_discriminators
from bundle.networks.vqgan import VQGAN

TINY_SETTINGS = network_settings("lite", "ema", 32, -1000, 1000)


class NumberedPatches(Dataset):
    """Sample n is the same patch in every run."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __getitem__(self, number: int) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(number)
        return {"image": torch.rand(1, self.size, self.size, self.size, generator=generator) * 2 - 1}


class SmallRun:
    """A run of random patches; `handlers` makes those that are attached after the two updates.

    `weights` are those of the slice discriminator, of the volume discriminator and of feature matching.
    """

    def __init__(
        self,
        network: VQGAN,
        iterations: int,
        start: int = 1,
        pretrain: int = 0,
        batch: int = 2,
        micro: int = 2,
        size: int = 24,
        weights: tuple[float, float, float] = (1.0, 0.5, 4.0),
        max_epochs: int = 1,
        max_iterations: int | None = None,
        warmup: int | None = None,
        amp_on_cpu: bool = False,
        validator: Engine | None = None,
        device: str = "cpu",
        handlers: Callable[["SmallRun"], list] = lambda run: [],
    ) -> None:
        torch.manual_seed(0)
        self.network = network.to(device)
        self.discriminators = build_discriminators(*weights[:2], device=device)
        self._build_optimizers(warmup)
        self.sampler = ResumableSampler(batch)
        self.trainer = AdversarialTrainer(
            device=device,
            max_epochs=max_epochs,
            train_data_loader=DataLoader(NumberedPatches(size), batch_sampler=self.sampler),
            epoch_length=iterations,
            network=network,
            micro_batch_size=micro,
            max_iterations=max_iterations,
            amp_on_cpu=amp_on_cpu,
            validator=validator,
            train_handlers=[*self._updates(IterationGate(start, pretrain), *weights), *handlers(self)],
        )

    def _build_optimizers(self, warmup):
        schedule = () if warmup is None else (warmup, 0.1)
        self.optimizer = build_optimizer(self.network, 1e-4, *schedule)
        self.discriminator_optimizer = build_optimizer(self.discriminators, 1e-4, *schedule)
        self.state = TrainingState(
            self.network,
            TINY_SETTINGS,
            self.discriminators,
            {"generator": self.optimizer, "discriminator": self.discriminator_optimizer},
        )

    def _updates(self, gate, image_weight, video_weight, feature_weight):
        terms = (0.0, image_weight, video_weight, feature_weight)
        objective = GeneratorObjective(1.0, 0.25, *terms, self.discriminators)
        updates = [GeneratorUpdate(self.optimizer, objective, gate)]
        if len(self.discriminators):
            updates.append(DiscriminatorUpdate(self.discriminator_optimizer, objective, gate))
        return updates

    def run(self) -> "SmallRun":
        self.trainer.run()
        return self


@pytest.fixture
def small_run() -> type[SmallRun]:
    """The class, to be called with what the test is about."""
    return SmallRun


@pytest.fixture
def tiny_settings() -> dict:
    """`network_settings` of the generator that `small_run` trains."""
    return dict(TINY_SETTINGS)


PHANTOM_SHAPE, SPACING_MM = (150, 120, 84), (1.2, 1.2, 1.2)


class PhantomCase(NamedTuple):
    truth: LabelledPhantom
    volume: RASVolume
    chest: Chest
    changes: list[Change]


@pytest.fixture(scope="session")
def phantom() -> PhantomCase:
    truth = make_labelled_phantom(PHANTOM_SHAPE, SPACING_MM, seed=0, blood_hu=350, noise_hu=20)
    chest = find_chest(truth.hu, SPACING_MM)
    volume = RASVolume(truth.hu, SPACING_MM, np.diag([*SPACING_MM, 1]))
    return PhantomCase(truth, volume, chest, find_changes(truth.hu, SPACING_MM, chest.lumen))


@pytest.fixture(scope="session")
def blur():
    """Blurs int16 HU by so many mm in space."""

    def make(voxels: np.ndarray, sigma_mm: float) -> np.ndarray:
        sigma = [sigma_mm / edge for edge in SPACING_MM]
        return np.rint(ndimage.gaussian_filter(voxels.astype(np.float32), sigma)).astype(np.int16)

    return make


@pytest.fixture(scope="session")
def wipe(phantom):
    """Closes everything dark inside the vessels, 1 mm off their walls."""
    lumen = phantom.chest.lumen

    def make(voxels: np.ndarray) -> np.ndarray:
        wiped = voxels.copy()
        inside = wiped[lumen.box]
        closed = ndimage.grey_closing(inside, size=(7, 7, 7))
        inside[lumen.wall > 20] = closed[lumen.wall > 20]
        return wiped

    return make

"""Compares a training iteration with the ways that others would write it, on the same patches and losses.

`stock` is what MONAI's parts give as they come: `VQVAE` of the same sizes with its `EMAQuantizer`, one 3D
`PatchDiscriminator`, its hinge loss, a plain loop. (`monai.engines.AdversarialTrainer` cannot run it: `VQVAE`
returns a tuple.) `textbook` is how 3D VQ-GANs are commonly written since TATS (Ge et al. 2022,
arXiv:2204.03638): one optimizer after the other, each with a generator pass of its own and four passes
through discriminators, which run below the gate too.
"""

from __future__ import annotations

import gc
import itertools
import json
import statistics
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from monai.losses import PatchAdversarialLoss
from monai.networks.nets import VQVAE, PatchDiscriminator
from torch import Tensor, nn
from torch.optim import Adam

from bundle.engines.optimizers import ScheduledAdam
from bundle.engines.trainer import AdversarialTrainer
from bundle.handlers.gate import IterationGate
from bundle.handlers.updates import DiscriminatorUpdate, GeneratorUpdate
from bundle.losses.adversarial import hinge_discriminator_loss
from bundle.losses.objective import GeneratorObjective
from bundle.losses.perceptual import SlicePerceptualLoss
from bundle.losses.views import draw_positions, take_slices
from bundle.networks.discriminators import build_discriminators
from bundle.networks.vqgan import PRESETS, build_vqgan
from bundle.run.console import tell
from scripts.developer.benchmarks.measuring import DEVICE, has_time, timed

EMBEDDING_DIM = 8
RATE = 1e-4
BETAS = (0.5, 0.9)


class Setting(NamedTuple):
    """What is measured: `batch` cubes of `side` voxels, with `num_embeddings` codes, `rounds` times each."""

    side: int
    batch: int
    num_embeddings: int
    rounds: int


ON_GPU = Setting(side=128, batch=1, num_embeddings=16384, rounds=10)
ON_CPU = Setting(side=64, batch=2, num_embeddings=16384, rounds=3)
TINY = Setting(side=32, batch=1, num_embeddings=16, rounds=1)  # to try the program


def setting_of_device(tiny: bool) -> tuple[Setting, str]:
    """Returns what is measured on this device, and the preset."""
    if tiny:
        return TINY, "lite"
    return (ON_GPU, "default") if DEVICE.type == "cuda" else (ON_CPU, "lite")


class Terms(NamedTuple):
    """Weights of the losses of a comparison; at 0 our side leaves the network out."""

    image: float
    video: float
    features: float
    perceptual: float
    is_gate_open: bool = True


L1_ONLY = Terms(0.0, 0.0, 0.0, 0.0)
VOLUME_ONLY = Terms(0.0, 0.5, 0.0, 0.0)
ALL = Terms(1.0, 0.5, 4.0, 0.1)  # the users' guide's; time does not depend on weights above 0


class Options(NamedTuple):
    """Ways to run our iteration, as the product does it by default."""

    is_fused: bool = True  # Adam, on a GPU
    perceptual_in_bf16: bool = False
    slices_last: bool = False  # channels-last in the slice discriminator
    is_compiled: bool = False


AS_SHIPPED = Options()


def measure_peers(output: Path, tiny: bool = False) -> list[dict[str, Any]]:
    """Measures seconds and extra peak MiB of an iteration, ours and theirs in turns; medians, and a ratio."""
    setting, preset_of_device = setting_of_device(tiny)
    comparisons = {
        "stock, L1 only": (L1_ONLY, stock),
        "stock, 3D discriminator": (VOLUME_ONLY, stock),
        "textbook, below the gate": (ALL._replace(is_gate_open=False), textbook),
        "textbook, behind the gate": (ALL, textbook),
    }
    presets = dict.fromkeys((preset_of_device, "lite" if tiny else "default"))
    rows = []
    for preset, (name, (terms, peer)) in itertools.product(presets, comparisons.items()):
        if has_time():
            rows.append({"preset": preset, "against": name, **_compare(preset, setting, terms, peer)})
            tell(json.dumps(rows[-1]), flush=True)  # all of them take an hour on a slow core
    return rows


def _compare(preset: str, setting: Setting, terms: Terms, peer: Callable[..., Any]) -> dict[str, Any]:
    image = random_image(setting)
    sides = {"ours": ours(preset, setting, terms, image), "theirs": peer(preset, setting, terms, image)}
    seconds, memory = in_turns(sides, setting.rounds)
    return {
        "seconds, ours": seconds["ours"],
        "theirs": seconds["theirs"],
        "times as fast": seconds["theirs"] / seconds["ours"],
        "MiB, ours": memory["ours"],
        "MiB, theirs": memory["theirs"],
    }


def random_image(setting: Setting) -> Tensor:
    """Draws a batch (B, 1, X, Y, Z) in [-1, 1]."""
    torch.manual_seed(0)
    return torch.rand(setting.batch, 1, *(setting.side,) * 3, device=DEVICE) * 2 - 1


def in_turns(
    sides: Mapping[str, Callable[[], Any]], rounds: int
) -> tuple[dict[str, float], dict[str, float]]:
    """Runs all sides once to start them, then in turns; returns medians of seconds and of extra peak MiB."""
    for step in sides.values():
        step()  # Adam's moments, the codebook's start
    measured: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, step in sides.items():
            gc.collect()
            measured[name].append(timed(step))
    seconds = {name: statistics.median(time for time, _ in rows) for name, rows in measured.items()}
    memory = {name: statistics.median(mib for _, mib in rows) for name, rows in measured.items()}
    return seconds, memory


class HalfPerceptualLoss(SlicePerceptualLoss):
    """LPIPS in bf16, which the product has in float32."""

    def forward(self, real: Tensor, fake: Tensor) -> Tensor:
        """Returns what the parent does, from bf16 features."""
        with torch.autocast(fake.device.type, torch.bfloat16):
            return self.lpips(real.detach(), fake).float().flatten()


def ours(
    preset: str, setting: Setting, terms: Terms, image: Tensor, options: Options = AS_SHIPPED
) -> Callable[[], Any]:
    """Returns an iteration of this project's trainer."""
    network = build_vqgan(preset, "ema", setting.num_embeddings).to(DEVICE)
    discriminators = build_discriminators(terms.image, terms.video, device=DEVICE)
    if options.slices_last and "image" in discriminators:
        discriminators["image"].to(memory_format=torch.channels_last)
    kind = HalfPerceptualLoss if options.perceptual_in_bf16 else SlicePerceptualLoss
    perceptual = kind("vgg", "random").to(DEVICE) if terms.perceptual else None
    weights = (terms.perceptual, terms.image, terms.video, terms.features)
    objective = GeneratorObjective(1.0, 0.25, *weights, discriminators, perceptual)
    gate = IterationGate(0 if terms.is_gate_open else 10**6)
    parts = [network, discriminators] if len(discriminators) else [network]
    optimizers = [ScheduledAdam(part.parameters(), RATE) for part in parts]
    for group in (group for optimizer in optimizers for group in optimizer.param_groups):
        group["fused"] = group["fused"] and options.is_fused
    handlers: list[Any] = [GeneratorUpdate(optimizers[0], objective, gate)]
    handlers += [DiscriminatorUpdate(optimizer, objective, gate) for optimizer in optimizers[1:]]
    trainer = AdversarialTrainer(
        DEVICE,
        max_epochs=1,
        train_data_loader=itertools.repeat({"image": image}),
        epoch_length=1,
        network=network,
        micro_batch_size=setting.batch,
        amp=True,
        torch_compile=options.is_compiled,
        train_handlers=handlers,
    )
    return trainer.run


def stock(preset: str, setting: Setting, terms: Terms, image: Tensor) -> Callable[[], None]:
    """Returns an iteration of MONAI's parts as they come."""
    network = monai_vqvae(preset, setting.num_embeddings)
    discriminator = PatchDiscriminator(
        spatial_dims=3, num_layers_d=3, channels=64, in_channels=1, out_channels=1
    ).to(DEVICE)
    adversarial = PatchAdversarialLoss(criterion="hinge")
    optimizers = Adam(network.parameters(), RATE, BETAS), Adam(discriminator.parameters(), RATE, BETAS)

    def step() -> None:
        with _autocast():
            recon, commitment = network(image)
            loss = (recon.float() - image).abs().mean() + commitment
            if terms.video:
                loss = loss + terms.video * adversarial(discriminator(recon)[-1], True, False)
        _update(optimizers[0], loss)
        if terms.video:
            with _autocast():
                fake = adversarial(discriminator(recon.detach())[-1], False, True)
                real = adversarial(discriminator(image)[-1], True, True)
            _update(optimizers[1], terms.video * 0.5 * (fake + real))

    return step


def textbook(preset: str, setting: Setting, terms: Terms, image: Tensor) -> Callable[[], None]:
    """Returns an iteration with a generator pass per optimizer and all passes also below the gate."""
    network = monai_vqvae(preset, setting.num_embeddings)
    discriminators = nn.ModuleDict(
        {
            name: PatchDiscriminator(
                spatial_dims=dims, num_layers_d=3, channels=64, in_channels=1, out_channels=1
            )
            for name, dims in (("image", 2), ("video", 3))
        }
    ).to(DEVICE)
    perceptual = SlicePerceptualLoss("vgg", "random").to(DEVICE)
    optimizers = Adam(network.parameters(), RATE, BETAS), Adam(discriminators.parameters(), RATE, BETAS)
    factor = 1.0 if terms.is_gate_open else 0.0
    numbers = itertools.count(1)

    def passes() -> tuple[Tensor, Tensor, dict[str, list[Tensor]]]:
        recon, commitment = network(image)
        positions = draw_positions(image.shape, 0, next(numbers)).to(DEVICE)
        slices = [take_slices(volume, positions)[0] for volume in (image, recon)]
        views = {"image": slices, "video": [image, recon]}
        return recon, commitment, views

    def step() -> None:
        with _autocast():
            recon, commitment, views = passes()
            loss = (recon.float() - image).abs().mean() + commitment
            loss = loss + terms.perceptual * perceptual(*views["image"]).mean()
            for name, weight in (("image", terms.image), ("video", terms.video)):
                real, fake = (discriminators[name](view) for view in views[name])
                loss = loss - factor * weight * fake[-1].mean()
                pairs = zip(real[:-1], fake[:-1], strict=True)
                loss = loss + factor * terms.features * sum((a.detach() - b).abs().mean() for a, b in pairs)
        _update(optimizers[0], loss)
        with _autocast():
            _, _, views = passes()
            loss = torch.zeros((), device=DEVICE)
            for name, weight in (("image", terms.image), ("video", terms.video)):
                real, fake = (discriminators[name](view.detach())[-1] for view in views[name])
                loss = loss + factor * weight * hinge_discriminator_loss(real, fake)
        _update(optimizers[1], loss)

    return step


def monai_vqvae(preset: str, num_embeddings: int) -> VQVAE:
    """Builds MONAI's network with the sizes of a preset."""
    channels, units = PRESETS[preset].channels, PRESETS[preset].num_res_layers
    return VQVAE(
        spatial_dims=3,
        in_channels=1,
        out_channels=1,
        channels=channels,
        num_res_layers=units,
        num_res_channels=channels,
        downsample_parameters=((2, 4, 1, 1),) * len(channels),
        upsample_parameters=((2, 4, 1, 1, 0),) * len(channels),
        num_embeddings=num_embeddings,
        embedding_dim=EMBEDDING_DIM,
    ).to(DEVICE)


def _update(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def _autocast() -> torch.autocast:
    return torch.autocast(DEVICE.type, torch.bfloat16, enabled=DEVICE.type == "cuda")

"""Compares training recipes on the same patches, scored on CT volumes that none of them has seen.

    python -m scripts.developer.recipe_comparison --train A.nii.gz --held_out B.nii.gz --recipes base betas

Prints and appends one row per recipe, seed, mark and volume to `--output`; the last ones also with weights
averaged over training (exponentially, decay 0.99). Recipes share their seed's first weights and patches.
After `--iterations` both discriminators join for `--adversarial` more.
"""

from __future__ import annotations

import argparse
import copy
import csv
import dataclasses
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import l1_loss, smooth_l1_loss

from bundle.data.volumes.reading import read_volume
from bundle.losses.adversarial import hinge_discriminator_loss
from bundle.losses.objective import GeneratorObjective
from bundle.losses.views import discriminator_views, draw_positions
from bundle.metrics.grid import grid_score
from bundle.metrics.reconstruction import reconstruction_figures
from bundle.networks.discriminators import build_discriminators
from bundle.networks.vqgan import VQGAN, build_vqgan
from bundle.run.console import CommandParser, tell
from bundle.run.rules import STRIDE

HU = 1000
SLAB = (128, 128, 64)
AIR_HU = -950
"""Patches with a lower mean are empty, so they are drawn again."""
AVERAGE_DECAY = 0.99
# The users' guide's weights, with which docs/network.md was measured.
GAN_WEIGHTS = {"image": 1.0, "video": 0.5}
FEATURE_WEIGHT = 4.0
COLUMNS = ("recipe", "seed", "iteration", "weights", "volume", "psnr", "ssim", "grid", "l1")


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What is compared: optimizer and loss."""

    learning_rate: float = 7e-4
    betas: tuple[float, float] = (0.5, 0.9)
    warmup: int = 10
    smooth_l1: float = 0.0
    """Below this difference, in units of [-1, 1], the loss is a parabola; 0 is L1."""

    def distance(self, recon: Tensor, image: Tensor) -> Tensor:
        """Returns the loss between reconstruction and image."""
        return smooth_l1_loss(recon, image, beta=self.smooth_l1) if self.smooth_l1 else l1_loss(recon, image)


RECIPES = {
    "base": Recipe(),
    "betas": Recipe(betas=(0.9, 0.99)),
    "double rate": Recipe(learning_rate=1.4e-3),
    "half rate": Recipe(learning_rate=3.5e-4),
    "smooth": Recipe(smooth_l1=0.02),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line of this module."""
    parser = CommandParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=Path, nargs="+", required=True, help="NIfTI files")
    parser.add_argument("--held_out", type=Path, nargs="+", required=True, help="NIfTI files")
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=["base"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--iterations", type=int, default=300)
    parser.add_argument("--adversarial", type=int, default=0, help="iterations with both discriminators")
    parser.add_argument(
        "--marks", type=int, nargs="*", default=[100, 300, 1000], help="scored besides the end"
    )
    parser.add_argument("--preset", default="lite")
    parser.add_argument("--num_embeddings", type=int, default=1024)
    parser.add_argument("--patch_size", type=int, default=48)
    parser.add_argument("--batch_size", type=int, default=2)
    parser.add_argument("--bf16", action="store_true", help="train in bf16 autocast")
    parser.add_argument("--output", type=Path, default=Path("recipes.csv"))
    given = parser.parse_args(arguments)
    volumes = [torch.from_numpy(read_volume(path).voxels) for path in given.train]
    slabs = {
        path.name.split(".")[0]: _middle(torch.from_numpy(read_volume(path).voxels))
        for path in given.held_out
    }
    for seed in given.seeds:
        for name in given.recipes:
            for row in run(RECIPES[name], seed, volumes, slabs, given):
                append({"recipe": name, "seed": seed, **row}, given.output)


def run(
    recipe: Recipe, seed: int, volumes: Sequence[Tensor], slabs: dict[str, Tensor], given: Any
) -> Iterator[dict[str, Any]]:
    """Trains one network; gives a row per mark and held-out volume."""
    torch.manual_seed(seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network = build_vqgan(given.preset, "ema", given.num_embeddings).to(device).train()
    averaged = copy.deepcopy(network)
    optimizer = torch.optim.Adam(network.parameters(), lr=recipe.learning_rate, betas=recipe.betas)
    adversary = Adversary(seed, device, given.iterations)
    patches = draw_patches(volumes, seed, given.patch_size, given.batch_size)
    last = given.iterations + given.adversarial
    losses: list[float] = []
    for iteration in range(1, last + 1):
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate * rate(iteration, last, recipe.warmup)
        image = next(patches).to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=given.bf16):
            reconstruction = network.reconstruct(image)
        loss = recipe.distance(reconstruction.image, image)
        loss = loss + 0.25 * reconstruction.commitment_loss
        loss = loss + adversary.generator_loss(image, reconstruction, iteration)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        network.quantizer.update()
        adversary.step(image, reconstruction.image.detach(), iteration)
        follow(averaged, network, min(AVERAGE_DECAY, (1 + iteration) / (10 + iteration)))
        losses.append(l1_loss(reconstruction.image.detach(), image).item())
        if iteration in given.marks or iteration in (given.iterations, last):
            scored = {"trained": network, "averaged": averaged} if iteration == last else {"trained": network}
            for volume, slab in slabs.items():
                for weights, model in scored.items():
                    told = {"iteration": iteration, "weights": weights, "volume": volume}
                    yield {**told, "l1": sum(losses[-50:]) / len(losses[-50:]), **score(model, slab, device)}


def rate(iteration: int, last: int, warmup: int) -> float:
    """Returns the share of the learning rate: a linear warm-up, then a cosine to 2 %."""
    cosine = 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (iteration - 1) / last))
    return min(1.0, iteration / max(1, warmup)) * cosine


@torch.no_grad()
def follow(averaged: VQGAN, network: VQGAN, decay: float) -> None:
    """Moves averaged weights towards those of training; the codebook is an average already and is copied."""
    for slow, fast in zip(averaged.parameters(), network.parameters(), strict=True):
        slow.lerp_(fast, 1 - decay)
    for buffer, value in zip(averaged.buffers(), network.buffers(), strict=True):
        buffer.copy_(value)


class Adversary:
    """Both discriminators with their optimizer; neither is run up to the iteration `gate`."""

    def __init__(self, seed: int, device: torch.device, gate: int) -> None:
        self.seed, self.gate = seed, gate
        self.discriminators = build_discriminators(1.0, 1.0).to(device)
        self.objective = GeneratorObjective(
            l1_weight=0.0,
            commitment_weight=0.0,
            image_gan_weight=GAN_WEIGHTS["image"],
            video_gan_weight=GAN_WEIGHTS["video"],
            gan_feat_weight=FEATURE_WEIGHT,
            discriminators=self.discriminators,
        )
        self.optimizer = torch.optim.Adam(self.discriminators.parameters(), lr=2e-4, betas=(0.5, 0.9))

    def generator_loss(self, image: Tensor, reconstruction: Any, iteration: int) -> Tensor:
        """Computes adversarial and feature-matching terms; 0 below the gate."""
        if iteration <= self.gate:
            return torch.zeros((), device=image.device)
        positions = draw_positions(image.shape, self.seed, iteration)
        return self.objective(image, reconstruction, positions, 1.0)[0]

    def step(self, image: Tensor, fake: Tensor, iteration: int) -> None:
        """Takes one hinge step of both discriminators; none below the gate."""
        if iteration <= self.gate:
            return
        positions = draw_positions(image.shape, self.seed, iteration)
        self.discriminators.requires_grad_(True)
        loss = torch.zeros((), device=image.device)
        for name, discriminator in self.discriminators.items():
            weight = GAN_WEIGHTS[name]
            views = [discriminator_views(volume, positions, name) for volume in (image, fake)]
            for real_view, fake_view in zip(*views, strict=True):
                logits = discriminator(real_view)[-1], discriminator(fake_view)[-1]
                loss = loss + weight * hinge_discriminator_loss(*logits)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.discriminators.requires_grad_(False)


def draw_patches(volumes: Sequence[Tensor], seed: int, side: int, count: int) -> Iterator[Tensor]:
    """Draws batches (B, 1, side, side, side) in [-1, 1], the same for every recipe of a seed."""
    generator = torch.Generator().manual_seed(seed)

    def below(limit: int) -> int:
        return int(torch.randint(limit, (), generator=generator))

    while True:
        batch: list[Tensor] = []
        while len(batch) < count:
            volume = volumes[below(len(volumes))]
            x, y, z = (below(size - side + 1) for size in volume.shape)
            patch = volume[x : x + side, y : y + side, z : z + side].float()
            if patch.mean() > AIR_HU:
                batch.append(patch)
        yield torch.stack(batch)[:, None].clamp(-HU, HU) / HU


@torch.no_grad()
def score(network: VQGAN, slab: Tensor, device: torch.device) -> dict[str, float]:
    """Scores a slab (X, Y, Z) in HU that is run in one piece."""
    was_training = network.training
    network.eval()
    image = slab.float().clamp(-HU, HU)[None, None].to(device) / HU
    recon = network.decode(network.encode(image))[0, 0].cpu().clamp(-1, 1).mul(HU).round()
    figures = reconstruction_figures(slab, recon, -HU, HU)
    network.train(was_training)
    return {"psnr": figures.psnr, "ssim": figures.ssim, "grid": grid_score(recon)}


def append(row: dict[str, Any], path: Path) -> None:
    """Adds a row to the table and prints it."""
    is_new = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, COLUMNS)
        if is_new:
            table.writeheader()
        told = {name: round(value, 5) if isinstance(value, float) else value for name, value in row.items()}
        table.writerow(told)
    tell(" ".join(f"{name} {told[name]}" for name in COLUMNS), flush=True)


def _middle(volume: Tensor) -> Tensor:
    """Returns a slab of 128 x 128 x 64 voxels from the middle, or what there is of it."""
    spans = []
    for size, side in zip(volume.shape, SLAB, strict=True):
        side = min(side, size) // STRIDE * STRIDE
        spans.append(slice((size - side) // 2, (size - side) // 2 + side))
    return volume[tuple(spans)]


if __name__ == "__main__":
    main()

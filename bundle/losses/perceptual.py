"""LPIPS on slices, with a backbone that is a file you have, never a silent random network.

Paper: Zhang et al. 2018, arXiv:1801.03924.
"""

import logging
import urllib.error
import urllib.request
import warnings
from pathlib import Path

import lpips
import torch
import torchvision
from torch import Tensor, nn

logger = logging.getLogger(__name__)

# torchvision's own description of each backbone file: its name and where it is published
BACKBONES = {
    "vgg": torchvision.models.VGG16_Weights.IMAGENET1K_V1,
    "alex": torchvision.models.AlexNet_Weights.IMAGENET1K_V1,
    "squeeze": torchvision.models.SqueezeNet1_1_Weights.IMAGENET1K_V1,
}
DOWNLOAD_TIMEOUT_S = 20


class BackboneError(ValueError):
    """Missing or foreign backbone weights; the message names the file and what to do."""


class SlicePerceptualLoss(nn.Module):
    """LPIPS distance of slices; frozen, always in eval mode (its heads hold dropout), float32, no checkpoint.

    Args:
        network: `vgg` (14,716,160 parameters), `alex` or `squeeze`.
        weights_path: torchvision's file with the backbone's weights; None = torch's hub cache, else one
            announced download; `random` = an untrained backbone, for tests only.

    Raises:
        BackboneError: unknown network, no weights, or a file that does not hold this backbone.
    """

    def __init__(self, network: str = "vgg", weights_path: str | Path | None = None) -> None:
        super().__init__()
        if network not in BACKBONES:
            raise BackboneError(
                f"`perceptual_network` must be one of {', '.join(BACKBONES)}, got {network!r}"
            )
        path = None if str(weights_path) == "random" else find_backbone(network, weights_path)
        with warnings.catch_warnings():  # lpips still calls torchvision by its old arguments
            warnings.simplefilter("ignore", UserWarning)
            self.lpips = lpips.LPIPS(net=network, pnet_rand=True, verbose=False)
        if path is None:
            logger.warning(
                "LPIPS runs on a RANDOM %s backbone: its values mean nothing, use it for tests only", network
            )
        else:
            _load_backbone(self.lpips.net, path, network)
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> "SlicePerceptualLoss":
        """Stays in eval mode: a loss must not drop out."""
        return super().train(False)

    def forward(self, real: Tensor, fake: Tensor) -> Tensor:
        """Distances of slices (N, 1, H, W) in [-1, 1]: (N,) float32; gradients reach `fake` only."""
        with torch.autocast(fake.device.type, enabled=False):
            # LPIPS expects three channels; its scaling layer broadcasts one to three
            return self.lpips(real.detach().float(), fake.float()).flatten()


def find_backbone(network: str, weights_path: str | Path | None = None) -> Path:
    """The backbone's file: `weights_path`, else torch's hub cache, else one download with a timeout."""
    found = cached_backbone(network, weights_path)
    if found is not None:
        return found
    url = BACKBONES[network].url
    cached = _cache_path(network)
    logger.info("Downloading the LPIPS backbone %s to %s (once)", url, cached)
    try:
        _download(url, cached)
    except (urllib.error.URLError, OSError) as error:
        raise BackboneError(
            f"{cached}: LPIPS backbone weights are missing ({error}); {_advice(network)}"
        ) from error
    return cached


def cached_backbone(network: str, weights_path: str | Path | None = None) -> Path | None:
    """The backbone's file, `weights_path` or else that in torch's hub cache; None if it is not there.

    Raises:
        BackboneError: if `weights_path` is given and there is no such file.
    """
    if weights_path is not None and not Path(weights_path).is_file():
        raise BackboneError(f"{weights_path}: no such file with LPIPS backbone weights; {_advice(network)}")
    path = _cache_path(network) if weights_path is None else Path(weights_path)
    return path if path.is_file() else None


def _cache_path(network: str) -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints" / BACKBONES[network].url.rsplit("/", 1)[1]


def _advice(network: str) -> str:
    name = _cache_path(network).name
    return (
        f"get torchvision's {name} on a machine with internet and pass --perceptual_weights_path FILE, "
        "or train without it: --perceptual_weight 0"
    )


def _download(url: str, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    try:
        with urllib.request.urlopen(url, timeout=DOWNLOAD_TIMEOUT_S) as response, partial.open("wb") as file:
            while block := response.read(2**20):
                file.write(block)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _load_backbone(backbone: nn.Module, path: Path, network: str) -> None:
    """Torchvision's `features.N.*` into lpips' `sliceS.N.*`; the classifier's tensors stay out."""
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True)
        state = {key: tensors[f"features.{key.split('.', 1)[1]}"].float() for key in backbone.state_dict()}
        backbone.load_state_dict(state)
    except Exception as error:
        raise BackboneError(
            f"{path}: not torchvision's weights of the {network} backbone ({type(error).__name__}: {error}); "
            f"give {BACKBONES[network].url.rsplit('/', 1)[1]} or set --perceptual_network"
        ) from error


def build_perceptual(
    network: str, weights_path: str | Path | None, perceptual_weight: float, device: torch.device | str
) -> SlicePerceptualLoss | None:
    """LPIPS where training needs it (weight above 0) or a file for `val/lpips` was given; else None."""
    if perceptual_weight == 0 and weights_path is None:
        return None
    return SlicePerceptualLoss(network, weights_path).to(device)

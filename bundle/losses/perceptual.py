"""Computes LPIPS on slices, with a backbone from a file; a random network never goes unnoticed.

Paper: Zhang et al. 2018, arXiv:1801.03924.
"""

import hashlib
import http.client
import logging
import re
import socket
import urllib.request
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import lpips
import torch
import torchvision
from torch import Tensor, nn

from bundle.run.files import open_regular
from bundle.run.names import shown
from bundle.run.rules import check

logger = logging.getLogger(__name__)

# torchvision's own description of each backbone file: its name and where it is published
BACKBONES = {
    "vgg": torchvision.models.VGG16_Weights.IMAGENET1K_V1,
    "alex": torchvision.models.AlexNet_Weights.IMAGENET1K_V1,
    "squeeze": torchvision.models.SqueezeNet1_1_Weights.IMAGENET1K_V1,
}
DOWNLOAD_TIMEOUT_S = 20  # without a byte
REACH_TIMEOUT_S = 5
_HASH_IN_NAME = re.compile(r"-([0-9a-f]{8,})\.pth$")
_NOT_REACHED = (OSError, http.client.HTTPException)  # urllib's own errors are OSErrors


class BackboneError(ValueError):
    """Missing or foreign backbone weights; the message names the file and what to do."""


class SlicePerceptualLoss(nn.Module):
    """Computes the LPIPS distance of slices; frozen, in eval mode (its heads hold dropout), in float32.

    Checkpoints do not hold it.

    Args:
        network: `vgg` (14,716,160 parameters), `alex` or `squeeze`.
        weights_path: torchvision's file with the backbone's weights; None = torch's hub cache, else one
            announced download; `random` = an untrained backbone, for tests only.

    Raises:
        SettingsError: unknown network.
        BackboneError: no weights, or a file that does not hold this backbone.
    """

    def __init__(self, network: str = "vgg", weights_path: str | Path | None = None) -> None:
        super().__init__()
        check(perceptual_network=network)
        is_random = str(weights_path) == "random"
        tensors = {} if is_random else backbone_weights(network, weights_path)
        with warnings.catch_warnings():  # lpips still calls torchvision by its old arguments
            warnings.simplefilter("ignore", UserWarning)
            self.lpips = lpips.LPIPS(net=network, pnet_rand=True, verbose=False)
        if is_random:
            logger.warning(
                "LPIPS runs on a RANDOM %s backbone: its values mean nothing, use it for tests only", network
            )
        else:
            _fill_backbone(self.lpips.net, tensors, network, weights_path)
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> "SlicePerceptualLoss":
        """Stays in eval mode: a loss must not drop out."""
        return super().train(False)

    def forward(self, real: Tensor, fake: Tensor) -> Tensor:
        """Returns distances of slices (N, 1, H, W) in [-1, 1]: (N,) float32; gradients reach `fake` only."""
        with torch.autocast(fake.device.type, enabled=False):
            # LPIPS expects three channels; its scaling layer broadcasts one to three
            return self.lpips(real.detach().float(), fake.float()).flatten()


def backbone_weights(network: str, weights_path: str | Path | None = None) -> Mapping[str, Tensor]:
    """Loads the backbone's tensors: from `weights_path`, else torch's hub cache, else by one download.

    A download is compared with the hash in its name. It is given up when no byte comes for a while.

    Raises:
        BackboneError: if there is no such file, if it cannot be read, or if it cannot be downloaded.
    """
    path = cached_backbone(network, weights_path)
    if path is not None:
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # a foreign file may make torch raise anything
            raise _foreign(path, network, error) from error
    url = BACKBONES[network].url
    logger.info("Downloading the LPIPS backbone %s to %s (once)", url, _cache_path(network))
    try:
        with _socket_timeout(DOWNLOAD_TIMEOUT_S):
            return torch.hub.load_state_dict_from_url(
                url, map_location="cpu", progress=False, check_hash=True, weights_only=True
            )
    except (*_NOT_REACHED, RuntimeError) as error:  # torch's hub raises the last for a wrong hash
        raise _missing(network, error) from error


def reach_backbone(network: str) -> None:
    """Asks the publisher for the backbone's file without reading it.

    Raises:
        BackboneError: if there is no answer within a few seconds.
    """
    try:
        with urllib.request.urlopen(BACKBONES[network].url, timeout=REACH_TIMEOUT_S):
            pass
    except _NOT_REACHED as error:
        raise _missing(network, error) from error


@contextmanager
def _socket_timeout(seconds: float) -> Iterator[None]:
    """Sets a time limit for sockets, since torch's hub takes none."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def cached_backbone(network: str, weights_path: str | Path | None = None) -> Path | None:
    """Returns the backbone's file, `weights_path` or else that in torch's hub cache; None if it is not there.

    A file that has torchvision's name is compared with the hash in it: a download may have been cut short.

    Raises:
        BackboneError: if `weights_path` is given and there is no such file; if the hash differs.
    """
    if weights_path is not None and not Path(weights_path).is_file():
        raise BackboneError(f"{weights_path}: no such file with LPIPS backbone weights; {_advice(network)}")
    path = _cache_path(network) if weights_path is None else Path(weights_path)
    if not path.is_file():
        return None
    if path.name == _cache_path(network).name:
        _check_hash(path, network)
    return path


def _check_hash(path: Path, network: str) -> None:
    named = _HASH_IN_NAME.search(path.name)
    try:
        with open_regular(path) as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
    except OSError as error:
        raise BackboneError(f"{path}: cannot be read ({error.strerror}); {_advice(network)}") from error
    if named and not digest.startswith(named[1]):
        raise BackboneError(
            f"{path}: damaged or foreign LPIPS backbone weights (SHA-256 {digest[:8]}, its name says "
            f"{named[1]}); delete the file, then {_advice(network)}"
        )


def _cache_path(network: str) -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints" / BACKBONES[network].url.rsplit("/", 1)[1]


def _advice(network: str) -> str:
    name = _cache_path(network).name
    return (
        f"get torchvision's {name} on a machine with internet and pass --perceptual_weights_path FILE, "
        "or train without it: --perceptual_weight 0"
    )


def _missing(network: str, error: Exception) -> BackboneError:
    path = _cache_path(network)
    return BackboneError(f"{path}: LPIPS backbone weights are missing ({error}); {_advice(network)}")


def _foreign(path: str | Path | None, network: str, error: Exception) -> BackboneError:
    return BackboneError(
        f"{path or _cache_path(network)}: not torchvision's weights of the {network} backbone "
        f"({type(error).__name__}: {shown(str(error))}); give {_cache_path(network).name} or set "
        "--perceptual_network"
    )


def _fill_backbone(
    backbone: nn.Module, tensors: Mapping[str, Tensor], network: str, path: str | Path | None
) -> None:
    """Copies torchvision's `features.N.*` into lpips' `sliceS.N.*`; the classifier is left out."""
    try:
        state = {key: tensors[f"features.{key.split('.', 1)[1]}"].float() for key in backbone.state_dict()}
        backbone.load_state_dict(state)
    except Exception as error:  # a foreign file may hold anything
        raise _foreign(path, network, error) from error


def build_perceptual(
    network: str, weights_path: str | Path | None, perceptual_weight: float, device: torch.device | str
) -> SlicePerceptualLoss | None:
    """Builds LPIPS if training needs it (weight above 0) or a file for `val/lpips` was given; else None."""
    if perceptual_weight == 0 and weights_path is None:
        return None
    return SlicePerceptualLoss(network, weights_path).to(device)

"""Spectral normalisation of the discriminators' convolutions.

Paper: Miyato et al. 2018, arXiv:1802.05957, eq. 8 and algorithm 1.
"""

from torch import nn
from torch.nn.utils.parametrizations import spectral_norm


def add_spectral_norm(network: nn.Module) -> nn.Module:
    """Divides the weight of every convolution by its largest singular value.

    The estimate of that value stands still in eval mode, which the network is left in; `refine_estimates`
    moves it. So the number of forward passes, and with it the micro-batch size, changes nothing.
    """
    for module in list(network.modules()):
        if isinstance(module, nn.Conv2d | nn.Conv3d):
            spectral_norm(module)
    return network.eval()


def refine_estimates(network: nn.Module) -> None:
    """One step of power iteration of every normalised weight, after the weights have moved."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Conv3d) and hasattr(module, "parametrizations"):
            module.train()
            module.weight  # noqa: B018  (reading it in training mode is what moves the estimate)
            module.eval()

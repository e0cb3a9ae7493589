"""The standard hinge adversarial loss.

MONAI's `PatchAdversarialLoss(criterion="hinge")` applies tanh first, which saturates; this is the hinge of
Lim and Ye 2017, arXiv:1705.02894, and Miyato et al. 2018, arXiv:1802.05957.
"""

import torch
from torch import Tensor


def hinge_generator_loss(fake_logits: Tensor) -> Tensor:
    """Returns mean(-logit) over the logits of reconstructions, any shape; float32 scalar."""
    return -fake_logits.float().mean()


def hinge_discriminator_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """Returns 0.5 (mean relu(1 - real) + mean relu(1 + fake)), any shapes; float32 scalar."""
    real_loss = torch.relu(1 - real_logits.float()).mean()
    fake_loss = torch.relu(1 + fake_logits.float()).mean()
    return 0.5 * (real_loss + fake_loss)

"""The generator's halves as modules of their own, to be exported without the other half.

They take their weights from the whole generator's state dict, so that `monai.bundle ckpt_export` and
`onnx_export` find them in any checkpoint.
Dimension letters: B batch, X Y Z voxels, x y z latent cells (X = 4 x).
"""

from typing import Any

from torch import Tensor, nn

from bundle.networks.vqgan import VQGAN, take_model


class IndexEncoder(nn.Module):
    """Image to indices.

    Args:
        generator: whose encoder and quantizer these are.
    """

    def __init__(self, generator: VQGAN) -> None:
        super().__init__()
        self.encoder, self.quantizer = generator.encoder, generator.quantizer
        self.register_load_state_dict_pre_hook(take_model)
        self.register_load_state_dict_pre_hook(_leave_out("decoder."))

    def forward(self, image: Tensor) -> Tensor:
        """Image (B, 1, X, Y, Z) in [-1, 1], sizes multiples of 4 voxels, to indices (B, x, y, z), int64."""
        return self.quantizer.quantize(self.encoder(image))


class IndexDecoder(nn.Module):
    """Indices to image.

    Args:
        generator: whose quantizer and decoder these are.
    """

    def __init__(self, generator: VQGAN) -> None:
        super().__init__()
        self.quantizer, self.decoder = generator.quantizer, generator.decoder
        self.register_load_state_dict_pre_hook(take_model)
        self.register_load_state_dict_pre_hook(_leave_out("encoder."))

    def forward(self, indices: Tensor) -> Tensor:
        """Indices (B, x, y, z) to an image (B, 1, X, Y, Z) about [-1, 1].

        Any number type holds them: MONAI exports with random float32 numbers.
        """
        return self.decoder(self.quantizer.indices_to_codes(indices.long()))


def _leave_out(half: str) -> Any:
    """A hook that hides the weights of `half`; all others are still compared strictly."""

    def hook(module: nn.Module, state_dict: dict[str, Tensor], *_: Any) -> None:
        for name in [name for name in state_dict if name.startswith(half)]:
            del state_dict[name]

    return hook

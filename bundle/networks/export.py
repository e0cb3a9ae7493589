"""Offers each half of the generator as a module that can be exported alone.

Each half takes its weights from the whole generator's state dict, so that `monai.bundle ckpt_export` and
`onnx_export` work with any checkpoint.
Dimension letters: B batch, X Y Z voxels, x y z latent cells (X = 4 x).
"""

from typing import Any

from torch import Tensor, nn

from bundle.networks.vqgan import VQGAN, take_model


class IndexEncoder(nn.Module):
    """Turns an image into indices.

    Args:
        generator: its encoder and quantizer are used.
    """

    def __init__(self, generator: VQGAN) -> None:
        super().__init__()
        self.encoder, self.quantizer = generator.encoder, generator.quantizer
        self.register_load_state_dict_pre_hook(take_model)
        self.register_load_state_dict_pre_hook(_leave_out("decoder."))

    def forward(self, image: Tensor) -> Tensor:
        """Turns an image (B, 1, X, Y, Z) in [-1, 1] into indices (B, x, y, z), int64.

        X, Y and Z must be multiples of 4.
        """
        return self.quantizer.quantize(self.encoder(image))


class IndexDecoder(nn.Module):
    """Turns indices into an image.

    Args:
        generator: its quantizer and decoder are used.
    """

    def __init__(self, generator: VQGAN) -> None:
        super().__init__()
        self.quantizer, self.decoder = generator.quantizer, generator.decoder
        self.register_load_state_dict_pre_hook(take_model)
        self.register_load_state_dict_pre_hook(_leave_out("encoder."))

    def forward(self, indices: Tensor) -> Tensor:
        """Turns indices (B, x, y, z) into an image (B, 1, X, Y, Z) of about [-1, 1].

        Indices may be of any number type, since MONAI exports with random float32 numbers.
        """
        return self.decoder(self.quantizer.indices_to_codes(indices.long()))


def _leave_out(half: str) -> Any:
    """Makes a hook that hides the weights of one half; all others are still compared strictly."""

    def hook(module: nn.Module, state_dict: dict[str, Tensor], *_: Any) -> None:
        for name in [name for name in state_dict if name.startswith(half)]:
            del state_dict[name]

    return hook

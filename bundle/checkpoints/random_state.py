"""The random generators of a process as plain values, for checkpoints."""

import logging
import random
from typing import Any

import numpy as np
import torch

logger = logging.getLogger(__name__)


def random_state() -> dict[str, Any]:
    """States of the random generators of Python, NumPy, torch and CUDA, as tensors and plain numbers."""
    version, numbers, gauss = random.getstate()
    numpy = np.random.get_state(legacy=False)
    return {
        "python": {"version": version, "numbers": list(numbers), "gauss": gauss},
        "numpy": {
            "name": str(numpy["bit_generator"]),
            "keys": torch.from_numpy(numpy["state"]["key"].astype(np.int64)),
            "position": int(numpy["state"]["pos"]),
            "has_gauss": int(numpy["has_gauss"]),
            "cached": float(numpy["gauss"]),
        },
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_random_state(state: dict[str, Any]) -> None:
    """The inverse of `random_state`; those of CUDA only if there are as many GPUs as there were."""
    python, numpy = state["python"], state["numpy"]
    random.setstate((python["version"], tuple(python["numbers"]), python["gauss"]))
    keys = numpy["keys"].numpy().astype(np.uint32)
    np.random.set_state((numpy["name"], keys, numpy["position"], numpy["has_gauss"], numpy["cached"]))
    torch.set_rng_state(state["torch"])
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count == len(state["cuda"]):
        torch.cuda.set_rng_state_all(state["cuda"])
    else:
        logger.warning(
            "The checkpoint has random numbers of %d GPUs, here are %d: theirs begin anew",
            len(state["cuda"]), count,
        )  # fmt: skip

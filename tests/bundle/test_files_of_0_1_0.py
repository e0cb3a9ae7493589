"""Files of version 0.1.0 (commit 0dc08a2): a stored volume and codes are read, a checkpoint is refused.

All three are of one phantom of 40 x 36 x 33 voxels and of one generator with channels (8, 8) and 64 codes.
"""

from pathlib import Path

import numpy as np
import pytest

from bundle.checkpoints.file import CheckpointError, read_checkpoint
from bundle.data.latents.file import LatentFileError, read_latent_file
from bundle.data.store.store import PatchStore
from bundle.data.volumes.fingerprint import voxel_fingerprint

DATA = Path(__file__).resolve().parents[1] / "data"
CHECKPOINT, STORED = DATA / "checkpoint_0.1.0.pt", DATA / "store_0.1.0.ctpa"
CODES = DATA / "phantom_0.1.0_codes.npz"
SETTINGS = {"preset": "lite", "quantizer": "ema", "num_embeddings": 64, "hu_min": -1000.0, "hu_max": 1000.0}
SHAPE = (40, 36, 33)


def flipped(path: Path, target: Path, place: int) -> Path:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    target.write_bytes(content)
    return target


def test_the_checkpoint_of_the_first_generator_is_refused_and_names_the_version_that_reads_it():
    with pytest.raises(CheckpointError) as refusal:
        read_checkpoint(CHECKPOINT)

    message = str(refusal.value)
    assert message.startswith(f"{CHECKPOINT}: holds the generator of version 0.1.0") and "\n" not in message
    assert "use version 0.1.0" in message and "docs/migration.md" in message


def test_the_stored_volume_is_read_and_gets_a_fingerprint_beside_it(tmp_path):
    path = tmp_path / "volume.ctpa"
    path.write_bytes(STORED.read_bytes())

    (volume,) = PatchStore(tmp_path / "unused").prepare([{"image": str(path)}])
    voxels = volume.read()

    assert volume.shape == SHAPE and voxels.sum(dtype=np.int64) == -27330331
    assert volume.voxel_fingerprint() == voxel_fingerprint(voxels)
    assert path.with_suffix(".voxels").read_text(encoding="utf-8") == f"{voxel_fingerprint(voxels)}\n"


def test_the_codes_are_read():
    volume = read_latent_file(CODES)

    assert volume.record.shape == SHAPE and volume.record.settings == SETTINGS
    assert volume.record.name == "phantom"
    assert volume.indices.shape == (10, 9, 9) and volume.indices.sum(dtype=np.int64) == 28113
    assert volume.latents is not None and volume.latents.shape == (8, 10, 9, 9)
    assert volume.latents.sum(dtype=np.float64) == pytest.approx(-129.15483808517456)


@pytest.mark.parametrize("part", [0.1, 0.3, 0.6, 0.9])
def test_their_checksum_is_still_compared(tmp_path, part):
    place = int(CODES.stat().st_size * part)

    with pytest.raises(LatentFileError, match="is damaged or no _codes.npz"):
        read_latent_file(flipped(CODES, tmp_path / "damaged_codes.npz", place))

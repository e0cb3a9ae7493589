"""Distinguishes faults of one volume from faults of the machine, the model or the settings."""

from bundle.data.latents.file import LatentFileError
from bundle.data.store.file import StoreError
from bundle.data.volumes.formats import VolumeError
from bundle.run.errors import chain_of

VOLUME_ERRORS = (VolumeError, StoreError, LatentFileError)


def volume_fault(error: BaseException) -> str | None:
    """Says what is wrong with the volume at hand.

    Returns:
        a message that names it; None if other volumes would meet the same error, as on a full disk.
    """
    return next((str(link) for link in chain_of(error) if isinstance(link, VOLUME_ERRORS)), None)

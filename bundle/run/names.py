"""Names outputs by their inputs, files and DICOM folders alike, and patients by hashes."""

import hashlib
import os
import re
import reprlib
from pathlib import Path

import torch
from monai.config import PathLike

from bundle.data.volumes.formats import formats

# Of names that are no UTF-8, which Python holds as lone surrogates: hashed as they are, never an error.
ANY_NAME = "surrogatepass"
# Changes every patient's name and so the split: set it once, keep it secret. With the public default somebody
# who knows how a hospital numbers its patients can find a number again by trying all.
SALT_VARIABLE = "CTPA_PATIENT_SALT"
DEFAULT_SALT = "ctpa_vqgan/patient"
# A name of digits alone could be a number that a hospital gave. One hash in 1,800 has no letter and is hashed
# again.
IS_HASH = re.compile("(?=.*[a-f])[0-9a-f]{16}")
SHOWN_CHARACTERS = 60


def printable(text: str) -> str:
    """Puts a name on one line: control characters and what is not UTF-8 become backslash escapes."""
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text
    )


def shown(value: object) -> str:
    """Writes a value for a message: on one line, up to 60 characters, no control characters."""
    if type(value) in (list, tuple, dict):
        text = reprlib.repr(value)
    elif isinstance(value, str | int | float | torch.device | None):
        text = repr(value)
    else:
        text = type(value).__name__
    text = printable(text)
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}..."


def counted(number: int, thing: str) -> str:
    """Writes a number with what it counts: `1 volume`, `2 volumes`."""
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def volume_name(image: PathLike) -> str:
    """Returns the last part of a volume's path without the suffix of a known format.

    Other dots stay, since the names of DICOM folders are full of them.
    """
    name = Path(image).name
    return next((short for found in formats() if (short := found.short_name(name)) != name), name)


def of_part(path: Path, part: str) -> Path:
    """Names a file of a process that has a part of the work in a folder, such as `shard_3_of_8`."""
    return path.with_stem(f"{path.stem}_{part}") if part else path


def output_name(image: PathLike, root: PathLike = "") -> Path:
    """Returns where the result of a volume goes, without postfix and suffix, relative to the output folder.

    Args:
        image: the volume.
        root: its data set; folders below it are repeated. A volume outside of it keeps its name alone.
    """
    image = Path(image)
    is_below = bool(str(root)) and image != Path(root) and image.is_relative_to(root)
    return (image.parent.relative_to(root) if is_below else Path()) / volume_name(image)


def patient_hash(patient_id: str) -> str:
    """Names a patient without telling the PatientID: 16 hexadecimal digits of a salted SHA-256."""
    salt = os.environ.get(SALT_VARIABLE) or DEFAULT_SALT
    return hashlib.sha256(f"{salt}/{patient_id}".encode(errors=ANY_NAME)).hexdigest()[:16]


def patient_key(patient: str) -> str:
    """Returns the hash that stands for a patient where names must not travel: codes, stores, checkpoints.

    The patient of a DICOM series, and of a store, is such a hash already and stays as it is.
    """
    return patient if IS_HASH.fullmatch(patient) else patient_hash(patient)

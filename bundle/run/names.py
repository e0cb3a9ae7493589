"""Names that outputs get from their inputs, files and DICOM folders alike."""

import re
from pathlib import Path

from monai.config import PathLike

# Of names that are no UTF-8, which Python holds as lone surrogates: hashed as they are, never an error.
ANY_NAME = "surrogatepass"
ENDINGS = (".nii.gz", ".nii", ".dcm", ".dicom", ".ima")
# What follows the number of a volume in a prepared store.
STORED = re.compile(r"-[0-9a-f]{32}\.ctpa$")


def printable(text: str) -> str:
    """A name on one line of any terminal: control characters and what is no UTF-8 as backslash escapes."""
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text
    )


def volume_name(image: PathLike) -> str:
    """Last part of a volume's path without its suffix; folders keep theirs, since UIDs are full of dots."""
    name = STORED.sub("", Path(image).name)
    return next((name[: -len(end)] for end in ENDINGS if name.lower().endswith(end)), name)


def output_name(image: PathLike, root: PathLike = "") -> Path:
    """Where the result of a volume goes, without postfix and suffix, relative to the output folder.

    Args:
        image: the volume.
        root: its data set; folders below it are repeated. A volume outside of it keeps its name alone.
    """
    image = Path(image)
    is_below = bool(str(root)) and image != Path(root) and image.is_relative_to(root)
    return (image.parent.relative_to(root) if is_below else Path()) / volume_name(image)

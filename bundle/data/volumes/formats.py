"""Lists the file formats of volumes: how each is found, read and written.

A new format is a subclass of `Format` in a module of its own and a line in `FORMATS`; no other file names it.
The modules are imported when they are first needed, so that every room may import this one.
"""

import math
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import BinaryIO, NamedTuple

import nibabel as nib
import numpy as np
from monai.config import PathLike
from numpy.typing import DTypeLike

from bundle.run.files import open_regular_text

# The first format that matches a path reads it. DICOM comes last, since it has to look into the files.
FORMATS = [
    "bundle.data.volumes.nifti.NiftiFormat",
    "bundle.data.store.format.StoreFormat",
    "bundle.data.dicom.format.DicomFormat",
]

MEMINFO = Path("/proc/meminfo")
CONTAINER = Path("/sys/fs/cgroup")  # its limit may be below the memory of the machine

OnSlices = Callable[[np.ndarray, int], object]


class VolumeError(ValueError):
    """A file that cannot be used as a CT volume. The message begins with its path.

    Args:
        message: what a person reads.
        code: the reason as one word for programs: a code of `bundle.data.dicom.screening`, `mask` or
            `unusable`.
    """

    def __init__(self, message: str, code: str = "unusable") -> None:
        super().__init__(message)
        self.code = code


class VolumeHeader(NamedTuple):
    """What a header says about a volume before its voxels are read.

    Attributes:
        shape: (X, Y, Z), leading and trailing axes of 1 dropped.
        affine: (4, 4) float64, voxel to RAS millimetres.
        header: a copy of the file's nibabel header, in its own byte order and NIfTI version; for other
            formats, one made from the affine.
        notes: oddities, one sentence each.
    """

    shape: tuple[int, ...]
    affine: np.ndarray
    header: nib.Nifti1Header
    notes: tuple[str, ...] = ()


class Volume(NamedTuple):
    """One CT volume.

    Attributes:
        voxels: (X, Y, Z) in HU, slope and intercept applied; int16 where that is exact, else float32.
        affine: (4, 4) float64, voxel to RAS millimetres.
        header: see `VolumeHeader`.
    """

    voxels: np.ndarray
    affine: np.ndarray
    header: nib.Nifti1Header


class Entry(NamedTuple):
    """A volume in a folder, or something that looks like one.

    Attributes:
        path: what `read_header` and `Format.read` take.
        is_checked: whether its headers were read while it was found.
        refusal: code and message of what is wrong with it; None if nothing is known.
        is_skipped: whether it cannot be a CT volume, such as a localizer, rather than being damaged.
        patient: salted hash of the patient's ID, empty if there is none.
        series: hash of the series' ID, empty if there is none.
    """

    path: str
    is_checked: bool = False
    refusal: tuple[str, str] | None = None
    is_skipped: bool = False
    patient: str = ""
    series: str = ""


class Format(ABC):
    """A file format of volumes.

    The methods that are not abstract suit a format that stores each volume in one file, recognized by its
    suffix.

    Attributes:
        described: how messages name such a volume, with its article.
        suffixes: of its files, in lower case.
        is_writable: whether results can be written in it.
        is_prepared: whether patches can be read from the file itself, without a copy in the patch store.
        calls_on_slices: whether `read` passes on slices while it reads, so that a caller can stop it early.
    """

    described: str
    suffixes: tuple[str, ...]
    is_writable = False
    is_prepared = False
    calls_on_slices = False

    def matches(self, path: Path) -> bool:
        """Tells whether this format reads a path, missing files included."""
        return path.name.lower().endswith(self.suffixes)

    def entries(self, folder: Path, files: Iterable[Path]) -> list[Entry]:
        """Finds the volumes among files of one folder that no earlier format has taken."""
        return [Entry(str(path)) for path in files if self.matches(path)]

    def entry(self, path: Path) -> Entry:
        """Looks at one volume that a person named.

        Raises:
            VolumeError: if there is none.
        """
        return Entry(str(path))

    @abstractmethod
    def read_header(self, path: Path) -> VolumeHeader:
        """Checks a volume by its header and its length, without reading its voxels.

        Raises:
            VolumeError: if it cannot be used.
        """

    @abstractmethod
    def read(self, path: Path, on_slices: OnSlices) -> Volume:
        """Reads a volume; see `bundle.data.volumes.reading.read_volume`.

        Raises:
            VolumeError: if it cannot be used.
        """

    def write(self, file: BinaryIO, path: Path, header: nib.Nifti1Header, voxels: np.ndarray) -> None:
        """Writes a volume.

        Args:
            file: new file, open for writing.
            path: the name that it will get.
            header: holds its geometry.
            voxels: (X, Y, Z) whole HU.
        """
        raise NotImplementedError(f"{path}: {self.described} can be read but not written")

    def source_files(self, path: Path) -> list[Path]:
        """Returns the files that make up a volume."""
        return [path]

    def stored_ratio(self, path: Path) -> float:
        """Estimates how many bytes the patch store needs for each byte of a volume's files."""
        return 1.0

    def has_contrast_tag(self, path: Path) -> bool:
        """Tells whether the header names a contrast agent."""
        return False

    def short_name(self, name: str) -> str:
        """Returns a file's name without its suffix, after which results are named."""
        return next((name[: -len(end)] for end in self.suffixes if name.lower().endswith(end)), name)


def formats() -> tuple[Format, ...]:
    """Returns one object per format, in the order in which they are tried."""
    return tuple(map(_format, FORMATS))


@cache
def _format(place: str) -> Format:
    module, _, name = place.rpartition(".")
    found: Format = getattr(import_module(module), name)()
    return found


def format_of(path: Path) -> Format | None:
    """Returns the format that reads a path, None if there is none."""
    return next((candidate for candidate in formats() if candidate.matches(path)), None)


def read_header(path: PathLike) -> VolumeHeader:
    """Checks a volume by its header and its length, without reading its voxels.

    Args:
        path: file of a format in `FORMATS`; of DICOM a folder that holds one series, or any file of one.

    Returns:
        shape, affine, header, and notes of what is odd.

    Raises:
        VolumeError: if the file is missing, of no known format, truncated, 2D, of several volumes, in colour
            or complex, or if its affine is singular, NaN or infinite; of DICOM, for everything that
            `bundle.data.dicom.screening` refuses.
        StoreError: if a file of the patch store is damaged.
    """
    return required_format(path).read_header(Path(path))


def required_format(path: PathLike) -> Format:
    """Returns the format that reads a path.

    Raises:
        VolumeError: if the path is missing, or no format reads it.
    """
    found = format_of(Path(path))
    if found is None and not os.path.exists(path):  # pathlib would raise an error for a very long name
        raise VolumeError(f"{path}: no such file; check the path")
    if found is None:
        raise VolumeError(f"{path}: is not a volume; give {described_formats()}")
    return found


def free_memory_bytes() -> int | None:
    """Returns the memory that this process may take now; None where the machine does not say."""
    try:
        free = int(_fields(MEMINFO)["MemAvailable:"]) * 1024
    except (OSError, ValueError, LookupError):
        return None
    try:
        limit, used = (int(*_fields(CONTAINER / name)) for name in ("memory.max", "memory.current"))
        used -= int(_fields(CONTAINER / "memory.stat")["inactive_file"])  # given back when it is needed
    except (OSError, ValueError, LookupError):  # no container, or one without a limit
        return free
    return min(free, max(0, limit - used))


def _fields(path: Path) -> dict[str, str]:
    with open_regular_text(path, "ascii") as file:
        words = [line.split() for line in file]
    return {name: next(iter(values), "") for name, *values in words}


def require_memory(path: PathLike, shape: Sequence[int], dtype: DTypeLike) -> None:
    """Refuses a volume that does not fit into memory, before it is unpacked.

    Otherwise the system would kill this process. A packed file of a few MB may declare a thousand times as
    much.

    Args:
        path: of the volume.
        shape: of what is about to be allocated.
        dtype: of its voxels.

    Raises:
        VolumeError: if it is larger than all memory that is free.
    """
    needed, free = math.prod(map(int, shape)) * np.dtype(dtype).itemsize, free_memory_bytes()
    if free is not None and needed > free:
        raise VolumeError(
            f"{path}: {' x '.join(map(str, shape))} voxels take {needed / 1e9:,.1f} GB of memory, and only "
            f"{free / 1e9:,.1f} GB are free; end other programs, read fewer volumes at a time "
            "(--num_workers) or take a machine with more",
            "out_of_memory",
        )


def described_formats() -> str:
    """Lists the formats that can be read, for messages."""
    *most, last = (candidate.described for candidate in formats())
    return f"{', '.join(most)} or {last}"


def writable_suffixes() -> tuple[str, ...]:
    """Returns the suffixes of files in which results can be written."""
    return tuple(suffix for candidate in formats() if candidate.is_writable for suffix in candidate.suffixes)


def is_series(path: Path) -> bool:
    """Tells whether a path stands for a DICOM series: a folder, or a file that is DICOM."""
    return format_of(path) is _format(FORMATS[-1])

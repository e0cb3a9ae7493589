"""Reads and writes one encoded volume: its codes, and all that is needed to decode it without the original.

The file is a zip archive of NumPy arrays, which `numpy.load` opens too:

    record.json   geometry, network settings, fingerprint of the model; see `Record`
    indices.npy   (x, y, z) uint16, one code per 4 x 4 x 4 voxels
    latents.npy   (E, x, y, z) float16, the encoder's output before quantization; only if asked for

The archive holds a CRC of each member, which reading compares. Files of format 1 have a further checksum,
which is compared too.

Axes run to the right, anterior and superior, as in training. Dimension letters: E embedding width, X Y Z
voxels, x y z latent cells (x = X / 4, rounded up).
"""

import hashlib
import io
import json
import math
import os
import re
import struct
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import NoneType
from typing import Any

import numpy as np

from bundle.data.cases.provenance import Provenance
from bundle.data.volumes.fingerprint import is_fingerprint
from bundle.data.volumes.header_text import HEADER_CLASSES, header_from_text
from bundle.run.atomic import complete_or_absent
from bundle.run.names import shown
from bundle.run.rules import NETWORK_SETTINGS, STRIDE, settings_fault

SUFFIX = "_codes.npz"
FORMAT_VERSION = 2
# LZMA packs codes to 0.81 of their size, deflate to 0.86; for latents LZMA would take minutes
COMPRESSION = {"indices": zipfile.ZIP_LZMA, "latents": zipfile.ZIP_DEFLATED}
ZIP_EPOCH = (1980, 1, 1, 0, 0, 0)
MAX_RECORD_BYTES = 1 << 20
MAX_DICTIONARY_BYTES = 1 << 24  # twice what Python's own packer asks for
MAX_VOXELS = 1 << 32  # 27 times 512 x 512 x 604: the codes of a forged record unpack to 0.2 GB at most


class LatentFileError(ValueError):
    """A file of codes that cannot be used; the message begins with its name."""


@dataclass(frozen=True)
class Record:
    """What a file says about its volume and its model.

    Attributes:
        name: of the volume, for the decoded file.
        shape: (X, Y, Z) in voxels, RAS axes.
        affine: 4 x 4, voxels of the RAS axes to RAS mm.
        original_affine: 4 x 4, of the original file's axes.
        header: NIfTI header of the original grid, base64, without any text of the original's header.
        header_class: Nifti1Header or Nifti2Header.
        settings: `network_settings` of the model: preset, quantizer, num_embeddings, hu_min, hu_max.
        model_sha256: `fingerprint` of the model.
        patient: salted hash, see `bundle.data.cases.patients.patient_key`; empty if unknown.
        amp: whether the model computed in bf16.
        halo: see `bundle.data.cases.provenance.Provenance`.
    """

    name: str
    shape: tuple[int, int, int]
    affine: list[list[float]]
    original_affine: list[list[float]]
    header: str
    header_class: str
    settings: dict[str, Any]
    model_sha256: str
    patient: str = ""
    amp: bool = False
    halo: int | None = None

    @property
    def provenance(self) -> Provenance:
        """Returns how the codes were made."""
        return Provenance(self.model_sha256, self.settings, self.amp, self.halo)

    @property
    def cells(self) -> tuple[int, ...]:
        """Returns (x, y, z) in latent cells."""
        return tuple(math.ceil(size / STRIDE) for size in self.shape)


@dataclass(frozen=True)
class EncodedVolume:
    """One encoded volume.

    Attributes:
        record: geometry and model.
        indices: (x, y, z) uint16.
        latents: (E, x, y, z) float16; None if they were not kept.
    """

    record: Record
    indices: np.ndarray
    latents: np.ndarray | None


def write_latent_file(path: Path, volume: EncodedVolume) -> None:
    """Writes the file whole or not at all.

    Raises:
        LatentFileError: if latents are not finite in float16.
    """
    if volume.latents is not None and not np.isfinite(volume.latents).all():
        raise LatentFileError(f"{path}: its latents must be finite as float16; encode without --keep_latents")
    arrays = {"indices": _packed(volume.indices, np.uint16, 3)}
    if volume.latents is not None:
        arrays["latents"] = _packed(volume.latents, np.float16, 4)
    record = {"format_version": FORMAT_VERSION, "arrays": sorted(arrays), **asdict(volume.record)}
    with complete_or_absent(path) as unfinished, zipfile.ZipFile(unfinished, "x") as archive:
        archive.writestr(_member_info("record.json"), json.dumps(record, indent=1))
        for name, content in arrays.items():
            archive.writestr(_member_info(f"{name}.npy"), content, COMPRESSION[name])


def _member_info(name: str) -> zipfile.ZipInfo:
    """Returns a member without its time of writing, so that encoding twice gives the same bytes."""
    return zipfile.ZipInfo(name, ZIP_EPOCH)


def read_record(path: Path) -> Record:
    """Reads the record of a file, without its codes.

    Raises:
        LatentFileError: if it is missing, damaged, foreign, or of a newer format.
    """
    with _opened(path) as archive:
        return _record(path, _read_json(archive))


def holds_latents(path: Path) -> bool:
    """Tells whether a file keeps the encoder's output too.

    Raises:
        LatentFileError: see `read_record`.
    """
    with _opened(path) as archive:
        return "latents.npy" in archive.namelist()


def read_latent_file(path: Path) -> EncodedVolume:
    """Reads a file and compares its checksums.

    Raises:
        LatentFileError: if it is missing, damaged, foreign, or of a newer format.
    """
    with _opened(path) as archive:
        content = _read_json(archive)
        record = _record(path, content)
        members = sorted(archive.namelist())
        held = [name.removesuffix(".npy") for name in members if name != "record.json"]
        if held not in (["indices"], ["indices", "latents"]) or held != content.get("arrays", held):
            raise ValueError("it holds other parts than it should")
        arrays = {"indices": _member(archive, "indices", 2 * math.prod(record.cells))}
        if "latents.npy" in members:
            arrays["latents"] = _member(archive, "latents", 2 * 64 * math.prod(record.cells))
        expected = content.pop("sha256", None)
        if content["format_version"] == 1 and _checksum(content, arrays) != expected:
            raise ValueError("its checksum is wrong")
        loaded = {name: _unpacked(data) for name, data in arrays.items()}
        indices, latents = loaded["indices"], loaded.get("latents")
        if indices.dtype != np.uint16 or indices.shape != record.cells:
            raise ValueError(f"its codes are {indices.dtype} {indices.shape}")
        if indices.max(initial=0) >= int(record.settings["num_embeddings"]):
            raise ValueError("it holds codes beyond its model's")
        if latents is not None and (latents.dtype != np.float16 or latents.shape[1:] != record.cells):
            raise ValueError(f"its latents are {latents.dtype} {latents.shape}")
        if latents is not None and not np.isfinite(latents).all():
            raise ValueError("its latents hold NaN or infinite numbers")
    return EncodedVolume(record, indices, latents)


class _opened:
    """An open archive; anything that goes wrong while it is open is raised as a LatentFileError."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise LatentFileError(f"{path}: no such file; give a {SUFFIX} that configs/encode.yaml wrote")

    def __enter__(self) -> zipfile.ZipFile:
        try:
            self.archive = zipfile.ZipFile(self.path)
        except Exception as error:  # zipfile raises many kinds of errors, for damaged names too
            raise self._unusable(error) from error
        return self.archive

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        self.archive.close()
        if isinstance(error, Exception) and not isinstance(error, LatentFileError):
            raise self._unusable(error) from error

    def _unusable(self, error: Exception) -> LatentFileError:
        return LatentFileError(
            f"{self.path}: is damaged or no {SUFFIX} of this project ({error}); encode its volume again"
        )


def _read_json(archive: zipfile.ZipFile) -> dict[str, Any]:
    return json.loads(_member(archive, "record", MAX_RECORD_BYTES, ".json"))


def _member(archive: zipfile.ZipFile, name: str, max_bytes: int, suffix: str = ".npy") -> bytes:
    """Reads one member of the archive; a wrong size is noticed before anything is allocated."""
    info = archive.getinfo(name + suffix)
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA):
        raise ValueError(f"{info.filename} is packed in a foreign way")
    if info.compress_type == zipfile.ZIP_LZMA and _dictionary_bytes(archive, info) > MAX_DICTIONARY_BYTES:
        raise ValueError(f"{info.filename} asks for too much memory")
    with archive.open(info) as file:
        content = file.read(max_bytes + 4096)
        if file.read(1):
            raise ValueError(f"{name}{suffix} is larger than it can be")
    return content


def _dictionary_bytes(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> int:
    """Returns how many bytes LZMA would allocate, as the file declares (PKWARE's APPNOTE, 5.8.8)."""
    assert archive.fp is not None
    archive.fp.seek(info.header_offset + 26)
    archive.fp.seek(sum(struct.unpack("<HH", archive.fp.read(4))) + 5, os.SEEK_CUR)
    return struct.unpack("<I", archive.fp.read(4))[0]


def _record(path: Path, content: Mapping[str, Any]) -> Record:
    version = content["format_version"]
    if type(version) is not int or version < 1:
        raise ValueError(f"`format_version` must be a whole number from 1, got {shown(version)}")
    if version > FORMAT_VERSION:
        raise LatentFileError(
            f"{path}: written in format {version}, this version reads up to {FORMAT_VERSION}; "
            "update this project"
        )
    defaults: dict[str, Any] = {"patient": "", "amp": False, "halo": None}  # written by older versions
    fields = {name: {**defaults, **content}[name] for name in Record.__dataclass_fields__}
    x, y, z = (int(size) for size in fields.pop("shape"))
    affines = np.array([fields.pop("affine"), fields.pop("original_affine")], np.float64)
    is_volume = min(x, y, z) >= 1 and x * y * z <= MAX_VOXELS
    if not is_volume or affines.shape != (2, 4, 4) or not np.isfinite(affines).all():
        raise ValueError("its geometry is wrong")
    affine, original_affine = affines.tolist()
    record = Record(shape=(x, y, z), affine=affine, original_affine=original_affine, **fields)
    _check_words(record)
    return record


def _check_words(record: Record) -> None:
    name = record.name
    is_name = name not in ("", "..") and Path(name).name == name and name.isprintable()
    if not is_name or record.header_class not in HEADER_CLASSES:
        raise ValueError("its name or header is wrong")
    if not isinstance(record.settings, dict) or not re.fullmatch("[0-9a-f]{64}", str(record.model_sha256)):
        raise ValueError("what it says of its model is wrong")
    fault = settings_fault(record.settings)
    missing = [name for name in NETWORK_SETTINGS if name not in record.settings]
    if fault or missing:
        raise ValueError(fault or f"its settings must hold {', '.join(missing)}")
    if type(record.amp) is not bool or type(record.halo) not in (int, NoneType):
        raise ValueError("what it says of its model's precision is wrong")
    if record.patient and not is_fingerprint(record.patient):
        raise ValueError("what it says of its patient is wrong")
    header_from_text(record.header, record.header_class, check=False)


def _packed(array: np.ndarray, dtype: type, axes: int) -> bytes:
    if array.dtype != dtype or array.ndim != axes:
        raise ValueError(f"`array` must be {dtype.__name__} of {axes} axes, got {array.dtype} {array.shape}")
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.ascontiguousarray(array), allow_pickle=False)
    return buffer.getvalue()


def _unpacked(content: bytes) -> np.ndarray:
    """Returns the array if its header declares exactly the bytes that follow it; nothing is unpickled."""
    file = io.BytesIO(content)
    if np.lib.format.read_magic(file) != (1, 0):
        raise ValueError("an array of a foreign format")
    shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    if dtype.hasobject or dtype.itemsize * math.prod(shape) != len(content) - file.tell():
        raise ValueError(f"an array declares {dtype} {shape}, it holds {len(content):,} bytes")
    return np.lib.format.read_array(io.BytesIO(content), allow_pickle=False)


def _checksum(record: Mapping[str, Any], arrays: Mapping[str, bytes]) -> str:
    digest = hashlib.sha256(json.dumps(record, sort_keys=True).encode())
    for name in sorted(arrays):
        digest.update(name.encode() + hashlib.sha256(arrays[name]).digest())
    return digest.hexdigest()

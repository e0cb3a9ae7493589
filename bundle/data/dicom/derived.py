"""Writes a volume in HU as a DICOM series derived from the series it was made from.

The elements that name patient and study, and all geometry, are copied from the source byte by byte: a name in
Latin-1 or in Japanese stays what it is, and a position keeps its last digit.
"""

import json
import logging
import math
import os
import re
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.config import PathLike
from monai.utils import ImageMetaKey, MetaKeys, convert_to_numpy
from pydicom.charset import convert_encodings, default_encoding
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.tag import BaseTag, Tag
from pydicom.uid import UID

from bundle.data.dicom.header import (
    DicomError,
    DicomHeader,
    is_dicom,
    read_dicom_headers,
    read_raw_elements,
)
from bundle.data.dicom.parsing import IMPLICIT_LITTLE, quiet_pydicom
from bundle.data.dicom.screening import CT, OWN_MANUFACTURER
from bundle.data.dicom.volume import usable_series
from bundle.data.volumes.formats import is_series
from bundle.data.volumes.nifti import VolumeError
from bundle.data.volumes.writing import CTWriter
from bundle.run.atomic import complete_or_absent_folder

logger = logging.getLogger(__name__)

SERIES_DESCRIPTION = "RESEARCH, AI-reconstructed"
# Series 2 becomes 9002: higher than any number of a scanner, and it still shows which series it comes from.
SERIES_NUMBER_OFFSET = 9000
MAX_SERIES_NUMBER = 2**31 - 1
MAX_DESCRIPTION = 1024  # characters of a DICOM short text
VOXELS_PER_CODE, BITS_PER_VOXEL = 4**3, 16
METADATA = Path(__file__).resolve().parents[3] / "metadata.json"
GRID_TOLERANCE_MM = 1e-4
SLAB_Z = 32
SLICE_NAME = re.compile(r"\d{4,}\.dcm")

SERIES_NUMBER, INSTANCE_NUMBER = 0x00200011, 0x00200013
POSITION, ORIENTATION, PIXEL_SPACING = 0x00200032, 0x00200037, 0x00280030
STUDY_UID, FRAME_UID = 0x0020000D, 0x00200052
WINDOW_CENTER, WINDOW_WIDTH = 0x00281050, 0x00281051
BURNED_IN = 0x00280301
# Soft tissue, for a source that states no window.
DEFAULT_WINDOW = {WINDOW_CENTER: b"40", WINDOW_WIDTH: b"400"}
# DICOM wants these in every CT slice, empty if unknown.
EMPTY_IF_ABSENT = frozenset(
    (
        *(0x00080020, 0x00080030, 0x00080050, 0x00080090),  # study date and time, accession, physician
        *(0x00100010, 0x00100020, 0x00100030, 0x00100040),  # patient's name, ID, birth date, sex
        *(0x00180050, 0x00180060),  # slice thickness, KVP
        *(0x00200010, 0x00200012, 0x00201040),  # study ID, acquisition number, reference of positions
    )
)
CARRIED = EMPTY_IF_ABSENT | {
    *(0x00080005, 0x00081030, 0x00100021),  # character set, study description, issuer of the patient's ID
    *(0x00120062, 0x00120063),  # whether and how the identity was removed
    *(0x00180010, 0x00180015, 0x00185100),  # contrast agent, body part, position of the patient
    *(0x00180088, 0x00181120),  # spacing between slices, tilt of the gantry
    *(STUDY_UID, FRAME_UID, INSTANCE_NUMBER, POSITION, ORIENTATION, PIXEL_SPACING),
    *(BURNED_IN, WINDOW_CENTER, WINDOW_WIDTH, 0x00281055),  # the last: names of the windows
}
UIDS = frozenset((STUDY_UID, FRAME_UID))


def new_uid() -> str:
    """Makes a new UID: 2.25 and a random UUID as a number (DICOM PS3.5, B.2), at most 44 characters."""
    return f"2.25.{uuid.uuid4().int}"


def derivation_text(settings: Mapping[str, Any], model_fingerprint: str) -> str:
    """Describes in one paragraph how voxels were made.

    Args:
        settings: `network_settings` of the model.
        model_fingerprint: see `bundle.networks.fingerprint`.
    """
    ratio = VOXELS_PER_CODE * BITS_PER_VOXEL / math.log2(settings["num_embeddings"])
    text = (
        f"Research only, not for diagnosis. Reconstructed by {OWN_MANUFACTURER} {_version()} from codes of a "
        f"VQ-GAN (preset {settings['preset']}, quantizer {settings['quantizer']}, one of "
        f"{settings['num_embeddings']} codes per 4 x 4 x 4 voxels: lossy, about {ratio:.0f}:1; model "
        f"{model_fingerprint[:12]}); HU clipped to {settings['hu_min']:g} to {settings['hu_max']:g}."
    )
    return text.encode("ascii", "replace").decode()[:MAX_DESCRIPTION]


class DerivedHeaders:
    """Builds the headers of one new series; they hold the patient's identity, so never log them.

    Args:
        sources: headers of the source's slices, in slice order.
        derivation: how the voxels were made, ASCII.

    Raises:
        DicomError: if a source file has changed since its header was read.
    """

    def __init__(self, sources: Sequence[DicomHeader], derivation: str) -> None:
        self.sources = sources
        self.carried = [read_raw_elements(source.path, CARRIED, source.frame) for source in sources]
        self._number_slices()
        # reading takes these from the first file by name, so all new slices get the values of that file
        first = min(range(len(sources)), key=lambda number: (sources[number].path, sources[number].frame))
        self.of_series = {tag: self.carried[first][tag] for tag in (ORIENTATION, PIXEL_SPACING)}
        self.if_absent = {uid: new_uid().encode() for uid in (STUDY_UID, FRAME_UID)} | {BURNED_IN: b"NO"}
        number = read_raw_elements(sources[0].path, (SERIES_NUMBER,)).get(SERIES_NUMBER, b"")
        self.words = self._words(derivation, _series_number(number))

    def data_set(self, number: int, slice_hu: np.ndarray) -> FileDataset:
        """Returns the DICOM file of slice `number`, with an instance UID of its own.

        Args:
            number: in slice order, from 0.
            slice_hu: (rows, columns) int16.
        """
        instance = new_uid()
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = UID(CT), UID(instance)
        meta.TransferSyntaxUID = UID(IMPLICIT_LITTLE)
        elements: dict[BaseTag, DataElement | RawDataElement] = {
            Tag(tag): _raw(tag, value) for tag, value in self._elements(number).items()
        }
        file = FileDataset(BytesIO(), elements, b"\0" * 128, meta, is_implicit_VR=True, is_little_endian=True)
        # without this pydicom would decode the source's bytes and write what it made of them
        letters = file.get("SpecificCharacterSet")
        file.set_original_encoding(True, True, convert_encodings(letters) if letters else default_encoding)
        for keyword, value in self.words.items():
            setattr(file, keyword, value)
        file.SOPInstanceUID = instance
        file.SourceImageSequence = self._source(number)
        file.Rows, file.Columns = slice_hu.shape
        file.BitsAllocated, file.BitsStored, file.HighBit, file.PixelRepresentation = 16, 16, 15, 1
        file.add_new(0x7FE00010, "OW", slice_hu.astype("<i2").tobytes())
        return file

    def _elements(self, number: int) -> dict[int, bytes]:
        """Returns the elements that slice `number` takes from its source."""
        carried = self.carried[number]
        window = {} if {WINDOW_CENTER, WINDOW_WIDTH} <= set(carried) else DEFAULT_WINDOW
        return dict.fromkeys(EMPTY_IF_ABSENT, b"") | self.if_absent | carried | self.of_series | window

    def _source(self, number: int) -> list[Dataset]:
        """Returns a reference to the slice that slice `number` was made from; empty if it has no UID."""
        source, item = self.sources[number], Dataset()
        uids = {0x00081150: source.storage_class, 0x00081155: source.text("sop_instance")}
        for tag, uid in uids.items():
            item[Tag(tag)] = _raw(tag, uid.encode("latin-1"), b"\0")
        if source.n_frames > 1:
            item.ReferencedFrameNumber = source.frame + 1
        return [item] if source.text("sop_instance") else []

    def _number_slices(self) -> None:
        """Keeps the source's numbers, so that both series scroll alike, unless some lack or repeat."""
        numbers = Counter(carried.get(INSTANCE_NUMBER, b"") for carried in self.carried)
        if b"" in numbers or len(numbers) < len(self.carried):
            for number, carried in enumerate(self.carried):
                carried[INSTANCE_NUMBER] = str(number + 1).encode()

    def _words(self, derivation: str, series_number: int) -> dict[str, str | int | list[str]]:
        date, time = datetime.now().strftime("%Y%m%d %H%M%S").split()
        return {
            "ImageType": ["DERIVED", "SECONDARY", "AXIAL"],
            "InstanceCreationDate": date,
            "InstanceCreationTime": time,
            "SOPClassUID": CT,
            "ContentDate": date,
            "ContentTime": time,
            "Modality": "CT",
            # these files come from this project, not from the maker of the scanner
            "Manufacturer": OWN_MANUFACTURER,
            "SeriesDescription": SERIES_DESCRIPTION,
            "DerivationDescription": derivation,
            "SoftwareVersions": _version(),
            "SeriesInstanceUID": new_uid(),
            "SeriesNumber": series_number,
            "SamplesPerPixel": 1,
            "PhotometricInterpretation": "MONOCHROME2",
            "RescaleIntercept": "0",
            "RescaleSlope": "1",
            "RescaleType": "HU",
            "LossyImageCompression": "01",
        }


def _raw(tag: int, value: bytes, padding: bytes | None = None) -> RawDataElement:
    """Makes an element that pydicom writes as these bytes, padded to an even length."""
    filler = padding or (b"\0" if tag in UIDS else b" ")
    value += filler * (len(value) % 2)
    return RawDataElement(Tag(tag), None, len(value), value, 0, True, True)


def _series_number(source: bytes) -> int:
    text = source.decode("latin-1").strip(" \0")
    number = int(text) if text.isdecimal() and len(text) <= 10 else 0
    return number + SERIES_NUMBER_OFFSET if number + SERIES_NUMBER_OFFSET <= MAX_SERIES_NUMBER else number


def _version() -> str:
    return json.loads(METADATA.read_text(encoding="utf-8"))["version"]


class SeriesWriter(CTWriter):
    """Writes a folder of CT slices, int16 HU, that belong to the patient and the study of their source.

    The elements that name patient and study, and all geometry, equal the source's byte for byte; series,
    instances and their dates are new. Private elements and all others of the source are left out. The folder
    appears under its name only when it is complete.

    Args:
        derivation: how the voxels were made, for the DerivationDescription; ASCII, up to 1024 characters.
    """

    def __init__(self, derivation: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.derivation = derivation
        self.sources: tuple[DicomHeader, ...] = ()

    def set_metadata(self, meta_dict: Mapping | None, **options: Any) -> None:
        """Finds the source series and compares its grid with that of the voxels.

        Args:
            meta_dict: MONAI metadata; `filename_or_obj` names the source, `affine` places the voxels.
            options: of other writers, not needed here.

        Raises:
            VolumeError: if the source is no usable DICOM series, or the voxels lie on another grid.
        """
        meta = meta_dict or {}
        self.source = Path(str(meta.get(ImageMetaKey.FILENAME_OR_OBJ, "")))
        check_source(self.source)
        series, geometry = usable_series(self.source)
        affine = convert_to_numpy(torch.as_tensor(meta[MetaKeys.AFFINE], dtype=torch.float64))
        is_same = np.allclose(affine, geometry.affine, rtol=0, atol=GRID_TOLERANCE_MM)
        if self.data_obj.shape != geometry.shape or not is_same:
            raise DicomError(
                f"{self.source}: the result's {self.data_obj.shape} voxels do not lie on its grid of "
                f"{geometry.shape}; reorient it by RestoreOrientationd and nothing else"
            )
        self.sources = series.headers

    def write(self, filename: PathLike, verbose: bool = True, **kwargs: Any) -> None:
        """Writes the folder, replacing an older result of the same name.

        Args:
            filename: the folder; its parent exists.
            verbose: whether to log the path.
            kwargs: of other writers, not needed here.

        Raises:
            VolumeError: see `check_target`.
            UnwritableError: if it could not be written whole.
        """
        path = Path(filename)
        check_target(path, self.source)
        headers = DerivedHeaders(self.sources, self.derivation)
        self._write(path, headers)
        if verbose:
            logger.info("wrote %s, %d slices", path, len(self.sources))

    def _write(self, path: Path, headers: DerivedHeaders) -> None:
        with complete_or_absent_folder(path) as unfinished:
            for number, slice_hu in enumerate(_slices(self.data_obj)):
                content = BytesIO()
                with quiet_pydicom():
                    headers.data_set(number, slice_hu).save_as(content)
                (unfinished / f"{number + 1:04d}.dcm").write_bytes(content.getvalue())


def check_source(source: Path) -> None:
    """Refuses a source that is not DICOM, since no series can be derived from it.

    Raises:
        VolumeError: if it is not DICOM.
    """
    if not is_series(source):
        raise VolumeError(
            f"{source}: is not DICOM, so no DICOM series can be derived from it; give the series itself, or "
            "write NIfTI by --output_format nifti"
        )


def check_target(path: Path, source: Path) -> None:
    """Refuses to touch anything but an older result.

    Args:
        path: the folder to write.
        source: the volume that it is derived from.

    Raises:
        VolumeError: if the folder holds anything but such a result, or lies in the source's folder.
    """
    folder = source if source.is_dir() else source.parent
    if Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder)):
        raise VolumeError(
            f"{path}: lies in the folder of the input, where nothing is ever written; change `output_dir`"
        )
    if os.path.lexists(path) and not _is_result(path):
        raise VolumeError(
            f"{path}: holds something other than an earlier result and will not be overwritten; move it "
            "away, or change `output_dir`"
        )


def _is_result(path: Path) -> bool:
    """Tells whether a folder holds slices that this module wrote, and nothing else."""
    if path.is_symlink() or not path.is_dir():
        return False
    return all(
        SLICE_NAME.fullmatch(file.name)
        and not file.is_symlink()
        and file.is_file()
        and is_dicom(file)
        and read_dicom_headers(file)[0].text("description") == SERIES_DESCRIPTION
        for file in path.iterdir()
    )


def _slices(voxels: np.ndarray) -> Iterator[np.ndarray]:
    """Yields (rows, columns) int16 of each slice of (columns, rows, slices), by slabs that fit a cache."""
    for z in range(0, voxels.shape[2], SLAB_Z):
        slab = voxels[..., z : z + SLAB_Z]
        slab = slab if slab.dtype == np.int16 else np.rint(slab).astype(np.int16)
        yield from np.ascontiguousarray(slab.transpose(2, 1, 0))

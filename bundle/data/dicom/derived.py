"""The headers of a CT series that is derived from another: what is new in them, and what is the source's."""

import json
import math
import uuid
from collections import Counter
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from bundle.data.dicom.carried import (
    BURNED_IN,
    FRAME_UID,
    INSTANCE_NUMBER,
    ORIENTATION,
    PIXEL_SPACING,
    SOURCE_IMAGES,
    STUDY_UID,
    WINDOW_CENTER,
    WINDOW_WIDTH,
    read_carried,
    sequence_of_source,
)
from bundle.data.dicom.header import read_dicom_header, read_raw_elements
from bundle.data.dicom.screening import CT

SERIES_DESCRIPTION = "RESEARCH, AI-reconstructed"
# Who made these files is not who made the scanner.
MANUFACTURER = "ctpa_vqgan"
# Series 2 becomes 9002: behind all that a scanner numbers, and still telling where it comes from.
SERIES_NUMBER_OFFSET = 9000
SERIES_NUMBER = 0x00200011
MAX_SERIES_NUMBER = 2**31 - 1
MAX_DESCRIPTION = 1024  # letters of a DICOM short text
VOXELS_PER_CODE, BITS_PER_VOXEL = 4**3, 16
# Soft tissue; of a source that states no window.
DEFAULT_WINDOW = {WINDOW_CENTER: b"40", WINDOW_WIDTH: b"400"}
METADATA = Path(__file__).resolve().parents[3] / "metadata.json"


def new_uid() -> str:
    """A UID that nobody has: 2.25 and a random UUID as a number (DICOM PS3.5, B.2), at most 44 letters."""
    return f"2.25.{uuid.uuid4().int}"


def derivation_text(settings: Mapping[str, Any], model_fingerprint: str) -> str:
    """Says how voxels were made.

    Args:
        settings: `network_settings` of the model.
        model_fingerprint: see `bundle.networks.fingerprint`.
    """
    ratio = VOXELS_PER_CODE * BITS_PER_VOXEL / math.log2(settings["num_embeddings"])
    text = (
        f"Research only, not for diagnosis. Reconstructed by {MANUFACTURER} {_version()} from codes of a "
        f"VQ-GAN (preset {settings['preset']}, quantizer {settings['quantizer']}, one of "
        f"{settings['num_embeddings']} codes per 4 x 4 x 4 voxels: lossy, about {ratio:.0f}:1; model "
        f"{model_fingerprint[:12]}); HU clipped to {settings['hu_min']:g} to {settings['hu_max']:g}."
    )
    return text.encode("ascii", "replace").decode()[:MAX_DESCRIPTION]


class DerivedHeaders:
    """Headers of the slices of one new series.

    Args:
        files: of the source series, in slice order, their headers checked.
        derivation: how the voxels were made, ASCII.
    """

    def __init__(self, files: tuple[str, ...], derivation: str) -> None:
        self.sources = [read_dicom_header(Path(path)) for path in files]
        self.carried = [read_carried(Path(path)) for path in files]
        self._number_slices()
        # the reader takes these of the first file by name; so does whoever reads the new series
        first = self.carried[files.index(min(files))]
        self.of_series = {tag: first[tag] for tag in (ORIENTATION, PIXEL_SPACING)}
        self.if_absent = {uid: new_uid().encode() for uid in (STUDY_UID, FRAME_UID)} | {BURNED_IN: b"NO"}
        self.words = self._words(derivation, read_raw_elements(Path(files[0]), (SERIES_NUMBER,)))

    def words_of(self, number: int) -> dict[str, str]:
        """Words of our own for slice `number`, each under its tag as SimpleITK writes it; a new instance."""
        return self.words | {"0008|0018": new_uid()}

    def elements_of(self, number: int) -> dict[int, bytes]:
        """What slice `number` has of its source, by tag; never log it."""
        carried, source = self.carried[number], self.sources[number]
        window = {} if {WINDOW_CENTER, WINDOW_WIDTH} <= set(carried) else DEFAULT_WINDOW
        elements = self.if_absent | carried | self.of_series | window
        instance = source.text("sop_instance")
        if instance:
            elements[SOURCE_IMAGES] = sequence_of_source(source.storage_class, instance)
        return elements

    def _number_slices(self) -> None:
        """Keeps the source's numbers, so that both series scroll one way, unless they are no numbering."""
        numbers = Counter(carried.get(INSTANCE_NUMBER, b"") for carried in self.carried)
        if b"" in numbers or len(numbers) < len(self.carried):
            for number, carried in enumerate(self.carried):
                carried[INSTANCE_NUMBER] = str(number + 1).encode()

    def _words(self, derivation: str, source: Mapping[int, bytes]) -> dict[str, str]:
        date, time = datetime.now().strftime("%Y%m%d %H%M%S").split()
        return {
            "0008|0008": "DERIVED\\SECONDARY\\AXIAL",
            "0008|0012": date,
            "0008|0013": time,
            "0008|0016": CT,
            "0008|0023": date,
            "0008|0033": time,
            "0008|0060": "CT",
            "0008|0070": MANUFACTURER,
            "0008|103e": SERIES_DESCRIPTION,
            "0008|2111": derivation,
            "0018|1020": _version(),
            "0020|000e": new_uid(),
            "0020|0011": str(_series_number(source.get(SERIES_NUMBER, b""))),
            "0028|1052": "0",
            "0028|1053": "1",
            "0028|1054": "HU",
            "0028|2110": "01",
        }


def _series_number(source: bytes) -> int:
    text = source.decode("latin-1").strip(" \0")
    number = int(text) if text.isdecimal() and len(text) <= 10 else 0
    return number + SERIES_NUMBER_OFFSET if number + SERIES_NUMBER_OFFSET <= MAX_SERIES_NUMBER else number


def _version() -> str:
    return json.loads(METADATA.read_text(encoding="utf-8"))["version"]

"""Names patients by folders, keeps some of them, and chooses validation patients by salted hashes of names.

The hash of a name decides, so adding volumes later moves no patient to the other side.
"""

import hashlib
import logging
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from bundle.run.names import ANY_NAME, printable, volume_name

logger = logging.getLogger(__name__)

VALIDATION_RATIO = 0.2
# Two salts: with one, the smallest hashes that `max_patients` takes would all be validation patients.
SPLIT_SALT = "ctpa_vqgan/validation"
SUBSET_SALT = "ctpa_vqgan/max_patients"

SHOWN = 5  # patients that a message names
# Folders of the Medical Segmentation Decathlon and of nnU-Net that hold one file, or channel, per patient.
IMAGE_FOLDERS = ("imagesTr", "imagesTs")
CHANNEL = "_0000"
SUBJECT = re.compile(r"(sub-[A-Za-z0-9]+)_")  # how names begin in the Brain Imaging Data Structure

Case = dict[str, str]


class SharedPatientsError(ValueError):
    """A split with patients on both sides, so its validation proves nothing; the message names them."""


def patients_by_folder(root: Path, images: Sequence[Path]) -> list[str]:
    """Names the patient of each volume: the folder at the first level where the volumes differ.

    A file in imagesTr or imagesTs, or in `root` itself, is named by `patient_of_file`. Volumes that all lie
    in one folder are one patient's.

    Args:
        root: folder of the data set.
        images: files, or folders of DICOM series, below it.

    Returns:
        one name per volume.
    """
    folders = [_folders_of(root, image) for image in images]
    shared = os.path.commonprefix(folders)
    if len(set(folders)) == 1:
        shared = ()
    names = []
    for image, parts in zip(images, folders, strict=True):
        if not parts or parts[-1] in IMAGE_FOLDERS:
            names.append(patient_of_file(image))
        else:
            names.append(parts[min(len(shared), len(parts) - 1)])
    if shared and shared[-1] not in IMAGE_FOLDERS and len(set(names)) > 1:
        logger.warning(
            "%s: all %d volumes lie in %s, so the folders inside it are taken for the patients (%d); if they "
            'are not, give each volume a "patient" in a datalist .json',
            *(root, len(images), "/".join(shared), len(set(names))),
        )
    return names


def patient_of_file(image: Path) -> str:
    """Returns the patient's name by a file's name: all of it, or the subject of a BIDS name.

    `sub-01_ses-1_ct.nii.gz` and `sub-01_ses-2_ct.nii.gz` are scans of one patient.
    """
    name = volume_name(image).removesuffix(CHANNEL)
    subject = SUBJECT.match(name)
    return subject[1] if subject else name


def _folders_of(root: Path, image: Path) -> tuple[str, ...]:
    parts = image.absolute().relative_to(root.absolute()).parts
    return parts if os.path.isdir(image) else parts[:-1]


def keep_patients(cases: Sequence[Case], max_patients: int | None) -> list[Case]:
    """Returns the cases of the `max_patients` patients with the smallest hashes; all for None."""
    ranked = sorted({case["patient"] for case in cases}, key=lambda patient: _hash(SUBSET_SALT, patient))
    kept = set(ranked[:max_patients])
    return [case for case in cases if case["patient"] in kept]


def validation_patients(patients: set[str]) -> set[str]:
    """Returns the patients whose hash falls into the first fifth; at least one stays on either side."""
    ranked = sorted(patients, key=lambda patient: _hash(SPLIT_SALT, patient))
    limit = int(VALIDATION_RATIO * 2**256)
    validation = [patient for patient in ranked if _hash(SPLIT_SALT, patient) < limit]
    if len(ranked) == 1:
        validation = ranked
    elif not validation:
        validation = ranked[:1]
        logger.warning("none of %d patients falls to validation; %s is taken", len(ranked), validation[0])
    elif len(validation) == len(ranked):
        validation = ranked[:-1]
        logger.warning("none of %d patients falls to training; %s is taken", len(ranked), ranked[-1])
    return set(validation)


def check_independence(split: Mapping[str, Sequence[Case]], allow_shared_patients: bool = False) -> None:
    """Refuses a split with a patient on both sides, or only warns if that was asked for.

    Raises:
        SharedPatientsError: naming the patients.
    """
    training, validation = ({case["patient"] for case in split[side]} for side in ("training", "validation"))
    shared = sorted(printable(patient) for patient in training & validation)
    if not shared:
        return
    listed = ", ".join(shared[:SHOWN]) + (f" and {len(shared) - SHOWN} more" if len(shared) > SHOWN else "")
    told = f"patient(s) {listed} are in training and in validation"
    if not allow_shared_patients:
        raise SharedPatientsError(
            f"`allow_shared_patients` is false, but {told}; give data of at least two patients, or train "
            "all the same with --allow_shared_patients true: its figures say nothing about other patients"
        )
    logger.warning("VALIDATION IS NOT INDEPENDENT: %s; its figures say nothing about other patients", told)


def _hash(salt: str, patient: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{salt}/{patient}".encode(errors=ANY_NAME)).digest())

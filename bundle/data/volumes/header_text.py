"""Keeps a NIfTI header as text, for records that outlive its file."""

import base64
from typing import Any

import nibabel as nib

HEADER_CLASSES = {"Nifti1Header": nib.Nifti1Header, "Nifti2Header": nib.Nifti2Header}


def header_as_text(header: nib.Nifti1Header) -> tuple[str, str]:
    """Returns the header's bytes in base64, and the name of its class."""
    return base64.b64encode(header.binaryblock).decode(), type(header).__name__


def header_from_text(text: str, class_name: str, **options: Any) -> nib.Nifti1Header:
    """Undoes `header_as_text`; `options` are nibabel's, such as `endianness` and `check`."""
    return HEADER_CLASSES.get(class_name, nib.Nifti1Header)(base64.b64decode(text), **options)

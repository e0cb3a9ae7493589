"""Keeps what people see of inserted emboli: a box for the viewer, and small pictures of single emboli."""

from __future__ import annotations

from collections.abc import Sequence

import nibabel as nib
import numpy as np

from bundle.data.volumes.reading import RASVolume
from bundle.emboli.inserted import Change, insert
from bundle.emboli.readings import Reading
from bundle.evaluation.volume import Inserted
from bundle.reports.clot_sheet import SHOWN_CONTRAST, SHOWN_SIZE_MM, axial_patch
from bundle.viewing.views import BOX_SIDE, Place, View, box_slices

BOX_PARITY = 0
MAX_PLACES = 20


class ShownClots:
    """Cuts pictures from reconstructions with emboli while they are judged; none of them is kept.

    Args:
        original: the volume without emboli.
        changes: the emboli that are inserted.
    """

    def __init__(self, original: RASVolume, changes: Sequence[Change]) -> None:
        self.original, self.changes = original, changes
        self.patches: dict[int, np.ndarray] = {}
        self.recon: np.ndarray | None = None
        centres = np.array([c.site.centre for c in changes if c.site.parity == BOX_PARITY]).reshape(-1, 3)
        self.box = None
        if len(centres):
            near = np.abs(centres[:, None] - centres).max(axis=2) < BOX_SIDE / 2
            self.box = box_slices(original.voxels.shape, centres[near.sum(axis=1).argmax()])

    def watch(self, inserted: Inserted) -> Inserted:
        """Passes on what `inserted` yields, and keeps parts of the reconstructions at full contrast."""

        def watched(contrast: float, parity: int) -> np.ndarray | None:
            recon = inserted(contrast, parity)
            if recon is None or contrast != SHOWN_CONTRAST:
                return recon
            if parity == BOX_PARITY and self.box is not None:
                self.recon = recon[self.box].copy()
            for change in self.changes:
                if change.site.parity == parity and change.site.size_mm == SHOWN_SIZE_MM:
                    self.patches[change.site.number] = axial_patch(recon, change.site.centre)
            return recon

        return watched

    def as_arrays(self, readings: Sequence[Reading]) -> dict[str, np.ndarray]:
        """Returns the N emboli of 4 mm in the form that files keep.

        Returns:
            `clot_site` (N,) and `clot_contrast` (N,): number, and share of the contrast kept;
            `clot_original`, `clot_recon` (N, 48, 48) int16 in HU: axial patches with the embolus.
        """
        shown = [
            one for one in readings if one.contrast == SHOWN_CONTRAST and one.site.number in self.patches
        ]
        change_of = {change.site.number: change for change in self.changes}
        originals = []
        for one in shown:
            change = change_of[one.site.number]
            without = axial_patch(self.original.voxels, one.site.centre)
            added = np.zeros_like(self.original.voxels[..., :1])
            z = round(one.site.centre[2]) - change.box[2].start
            added[change.box[0], change.box[1], 0] = change.at(SHOWN_CONTRAST)[..., z]
            patch = axial_patch(added, (*one.site.centre[:2], 0), outside_hu=0)
            originals.append(without + patch)
        empty = np.empty((0, 0, 0), np.int16)
        return {
            "clot_site": np.array([one.site.number for one in shown], np.int32),
            "clot_contrast": np.array([one.clot_contrast for one in shown], np.float32),
            "clot_original": np.stack(originals) if shown else empty,
            "clot_recon": np.stack([self.patches[one.site.number] for one in shown]) if shown else empty,
        }

    def view(self, readings: Sequence[Reading]) -> View | None:
        """Returns the box with most emboli as a view, the embolus that lost most contrast first.

        None if there was no reconstruction with emboli.
        """
        if self.recon is None or self.box is None:
            return None
        start = np.array([part.start for part in self.box])
        places = []
        for one in sorted(readings, key=lambda one: one.clot_contrast):
            x, y, z = (int(at) for at in np.rint(one.site.centre).astype(int) - start)
            is_shown = (one.contrast, one.site.parity) == (SHOWN_CONTRAST, BOX_PARITY)
            shape = self.recon.shape
            if is_shown and all(0 <= at < size for at, size in zip((x, y, z), shape, strict=True)):
                name = f"embolus of {one.site.size_mm} mm, {one.clot_contrast:.0%} of its contrast kept"
                places.append(Place(name, (x, y, z)))
        inserted = insert(self.original.voxels, self.changes, SHOWN_CONTRAST, BOX_PARITY)[self.box]
        affine = self.original.affine.copy()
        affine[:3, 3] = nib.affines.apply_affine(affine, start)
        name = "inserted emboli (in both volumes), full resolution"
        return View(name, inserted, self.recon, affine, tuple(places[:MAX_PLACES]))

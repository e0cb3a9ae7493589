"""Invented emboli, looked for slab by slab."""

import pytest

from bundle.emboli import invented
from bundle.emboli.inserted import insert
from bundle.emboli.invented import find_false_emboli

SPACING_MM = (1.2, 1.2, 1.2)


@pytest.mark.parametrize("slab_mm", [5.0, 1000.0])
def test_slabs_change_nothing(phantom, monkeypatch, slab_mm):
    recon = insert(phantom.truth.hu, [c for c in phantom.changes if c.site.size_mm == 4], 1.0, 0)
    arguments = phantom.truth.hu, recon, SPACING_MM, phantom.chest.lumen
    expected = find_false_emboli(*arguments)
    monkeypatch.setattr(invented, "SLAB_MM", slab_mm)
    found = find_false_emboli(*arguments)
    assert len(expected) > 5 and [spot.voxel for spot in found] == [spot.voxel for spot in expected]
    assert [spot.strength for spot in found] == pytest.approx([s.strength for s in expected], rel=1e-6)

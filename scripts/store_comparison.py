"""Compares the patch store with other ways to keep a volume: size, writing, patches per second warm and cold.

    pip install zarr
    python -m scripts.store_comparison VOLUME.nii.gz

Every format gives the same voxels, or the script stops. Cold means that the files are out of the page cache
before every patch; a disk or a host may have a cache of its own. Without zarr its row is left out.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import blosc2
import nibabel as nib
import numpy as np

from bundle.data.store import PatchStore
from scripts.benchmark import as_table

PATCH = 128
N_PATCHES = 40
CHUNK = 64
Box = tuple[slice, ...]
Reader = Callable[[Box], np.ndarray]
Store = tuple[Path, Reader]
OURS = "this store, from the .nii.gz"


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line of this module."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("volume", type=Path)
    print(as_table(compare_stores(parser.parse_args(arguments).volume)))


def compare_stores(volume: Path, patch_size: int = PATCH, n_patches: int = N_PATCHES) -> list[dict[str, Any]]:
    """One row per format, measured in turns on the same places.

    Args:
        volume: NIfTI file of a CT.
        patch_size: voxels along each edge.
        n_patches: places, drawn at random.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        start = time.perf_counter()
        (stored,) = PatchStore(folder).prepare([{"image": str(volume)}], show_progress=False)
        seconds = {OURS: time.perf_counter() - start}
        stores: dict[str, Store] = {OURS: (stored.path, lambda place: stored.read_box(*_corners(place)))}
        voxels = stored.read()
        for name, (path, write) in _others(folder).items():
            start = time.perf_counter()
            stores[name] = path, write(voxels, path)
            seconds[name] = time.perf_counter() - start
        places = _places(voxels.shape, patch_size, n_patches)
        for name, (_, read) in stores.items():
            if any(not np.array_equal(read(place), voxels[place]) for place in places[:3]):
                raise RuntimeError(f"{name}: gives other voxels")
        rates = _rates(stores, places)
        return [
            {
                "format": name,
                "size against raw int16": sum(f.stat().st_size for f in _files(path)) / voxels.nbytes,
                "written in s": seconds[name],
                f"{patch_size}^3 patches per second, warm": rates[name][0],
                "cold": rates[name][1],
            }
            for name, (path, _) in stores.items()
        ]


def _others(folder: Path) -> dict[str, tuple[Path, Callable[[np.ndarray, Path], Reader]]]:
    """What is compared with: where it goes and what writes it from voxels in memory."""
    others: dict[str, tuple[Path, Callable[[np.ndarray, Path], Reader]]] = {
        "blosc2 (b2nd)": (folder / "volume.b2nd", _blosc2),
        ".nii, memory-mapped": (folder / "volume.nii", _nifti),
    }
    if importlib.util.find_spec("zarr"):
        others["zarr 3"] = folder / "volume.zarr", _zarr
    return others


def _rates(stores: dict[str, Store], places: Sequence[Box]) -> dict[str, tuple[float, float]]:
    """Patches per second of each store, warm and cold, from the median patch."""
    times: dict[tuple[str, bool], list[float]] = {}
    for place, cold, (name, (path, read)) in itertools.product(places, (False, True), stores.items()):
        if cold:
            _forget(path)
        else:
            read(place)
        start = time.perf_counter()
        read(place)
        times.setdefault((name, cold), []).append(time.perf_counter() - start)
    return {
        name: (1 / statistics.median(times[name, False]), 1 / statistics.median(times[name, True]))
        for name in stores
    }


def _corners(place: Box) -> tuple[list[int], list[int]]:
    return [part.start for part in place], [part.stop for part in place]


def _blosc2(voxels: np.ndarray, path: Path) -> Reader:
    """As nnU-Net keeps its data; the same codec as this store."""
    packing: Any = {"codec": blosc2.Codec.LZ4, "clevel": 1, "filters": [blosc2.Filter.BITSHUFFLE]}
    blosc2.asarray(voxels, urlpath=str(path), chunks=(CHUNK,) * 3, blocks=(CHUNK // 2,) * 3, cparams=packing)
    return lambda place: blosc2.open(str(path), mode="r")[place]


def _zarr(voxels: np.ndarray, path: Path) -> Reader:
    import zarr
    from zarr.codecs import BloscCodec

    codec = BloscCodec(cname="lz4", clevel=1, shuffle="bitshuffle", typesize=2)
    array = zarr.create_array(
        str(path), shape=voxels.shape, chunks=(CHUNK,) * 3, dtype="int16", compressors=codec
    )
    array[:] = voxels
    return lambda place: zarr.open_array(str(path), mode="r")[place]


def _nifti(voxels: np.ndarray, path: Path) -> Reader:
    nib.save(nib.Nifti1Image(voxels, np.eye(4), dtype=np.int16), path)
    return lambda place: np.ascontiguousarray(nib.Nifti1Image.from_filename(path, mmap=True).dataobj[place])


def _places(shape: Sequence[int], size: int, count: int) -> list[Box]:
    generator = np.random.default_rng(0)
    starts = [[int(generator.integers(max(1, length - size + 1))) for length in shape] for _ in range(count)]
    return [
        tuple(slice(first, min(first + size, length)) for first, length in zip(start, shape, strict=True))
        for start in starts
    ]


def _files(path: Path) -> list[Path]:
    return [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]


def _forget(path: Path) -> None:
    """Takes the files out of the page cache."""
    for file in _files(path):
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


if __name__ == "__main__":
    main()

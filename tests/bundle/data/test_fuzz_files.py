"""The project's own files, damaged and forged: read right or refused by name; as in test_fuzz.py."""

import io
import json
import os
import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from zlib_ng import zlib_ng

from bundle.data.cases.split import DatasetError
from bundle.data.latents.file import (
    EncodedVolume,
    LatentFileError,
    Record,
    _checksum,
    read_latent_file,
    read_record,
    write_latent_file,
)
from bundle.data.latents.find import encoded_cases
from bundle.data.store.export import export_volume
from bundle.data.store.file import INDEX_ENTRY, TRAILER
from bundle.data.store.store import PatchStore, StoreError
from bundle.data.store.stored_volume import stored_volume
from bundle.data.volumes.formats import VolumeError, read_header
from bundle.data.volumes.header_text import header_as_text
from bundle.data.volumes.reading import read_volume
from tests.bundle.data.fuzzing import DAMAGE, FUZZ, JSON, Sample, damaged, little_memory


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """A file of the store, its bytes, its voxels, and the bytes of another one."""
    folder = tmp_path_factory.mktemp("store")
    contents = []
    for seed in (0, 1):
        voxels = np.random.default_rng(seed).integers(-1000, 1000, (40, 12, 10)).astype(np.int16)
        nib.save(nib.Nifti1Image(voxels, np.diag([0.7, 0.8, 1.5, 1])), folder / f"{seed}.nii")
        (volume,) = PatchStore(folder).prepare([{"image": folder / f"{seed}.nii", "patient": "p"}])
        contents.append((volume.path.read_bytes(), voxels))
    return Sample(path=volume.path, content=contents[1][0], voxels=voxels, other=contents[0][0])


def read_all(path: Path) -> np.ndarray:
    """Everything that anybody reads of a file of the store."""
    with little_memory():
        volume = stored_volume(path, {"image": str(path), "patient": "p"})
        voxels = volume.read()
        volume.body_map()
        assert read_header(path).shape == volume.shape == voxels.shape
        np.testing.assert_array_equal(read_volume(path).voxels, voxels)
        export_volume(path, path.with_name("out.nii"))
    return voxels


@FUZZ
@given(edits=DAMAGE)
def test_a_damaged_file_of_the_store_is_read_right_or_refused(stored, edits):
    stored.path.write_bytes(damaged(stored.content, edits, stored.other))

    try:
        voxels = read_all(stored.path)
    except StoreError as error:
        assert str(error).startswith(str(stored.path))
    else:
        assert any(np.array_equal(voxels, whole) for whole in (stored.voxels, other_voxels(stored)))


def other_voxels(stored):
    return np.random.default_rng(0).integers(-1000, 1000, (40, 12, 10)).astype(np.int16)


def forged(content: bytes, change, entry) -> bytes:
    """The file with another record and another entry of its index, all checksums right."""
    offset, length, _, magic = TRAILER.unpack(content[-TRAILER.size :])
    record = json.loads(content[offset : offset + length])
    body, parts = content[: record["index"][0]], []

    def append(data: bytes) -> list[int]:
        parts.append(data)
        return [len(body) + sum(map(len, parts[:-1])), len(data), zlib_ng.crc32(data)]

    index = np.frombuffer(content[record["index"][0] :][: record["index"][1]], INDEX_ENTRY).copy()
    if entry:
        number, name, value = entry
        index[name][number] = value
    record["index"] = append(index.tobytes())
    change(record)
    place = append(json.dumps(record).encode())
    return body + b"".join(parts) + TRAILER.pack(*place, magic)


@FUZZ
@given(
    keys=st.lists(st.integers(0, 40), max_size=2),
    value=JSON,
    entry=st.none()
    | st.tuples(
        st.integers(0, 1),
        st.sampled_from(["offset", "length", "checksum"]),
        st.integers(0, 2**32 - 1) | st.integers(0, 40),
    ),
)
def test_a_file_of_the_store_that_lies_is_refused_or_allocates_little(stored, keys, value, entry):
    def change(record):
        for key in keys:
            owner, name = record, sorted(record)[key % len(record)]
            if name == "sections" and isinstance(record[name], dict) and key > len(record):
                owner, name = record[name]["body"], sorted(record[name]["body"])[key % 3]
            owner[name] = value

    stored.path.write_bytes(forged(stored.content, change, entry))

    try:
        read_all(stored.path)
    except (StoreError, VolumeError) as error:
        assert str(error).startswith(str(stored.path.parent))


def array_bytes(array, **changes) -> bytes:
    """A .npy; `changes` are entries of its header that lie."""
    file = io.BytesIO()
    np.lib.format.write_array(file, array, allow_pickle=True)
    if not changes:
        return file.getvalue()
    data = file.getvalue()[-array.nbytes :]
    head = np.lib.format.header_data_from_array_1_0(array) | changes
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, head)
    return file.getvalue() + data


@pytest.fixture(scope="module")
def codes(tmp_path_factory):
    """A file of codes with latents, its bytes, its content and the bytes of another one."""
    path = tmp_path_factory.mktemp("codes") / "ct_codes.npz"
    affine, contents = np.diag([0.7, 0.7, 1.5, 1.0]).tolist(), []
    given_settings = {"preset": "lite", "num_embeddings": 512}
    for seed in (0, 1):
        random = np.random.default_rng(seed)
        record = Record(
            "ct", (17, 16, 9), affine, affine, *header_as_text(nib.Nifti1Header()), given_settings, "0" * 64
        )
        indices = random.integers(0, 512, (5, 4, 3)).astype(np.uint16)
        volume = EncodedVolume(record, indices, random.normal(size=(2, 5, 4, 3)).astype(np.float16))
        write_latent_file(path, volume)
        contents.append(path.read_bytes())
    return Sample(path=path, content=contents[1], other=contents[0], volume=volume)


@FUZZ
@given(edits=DAMAGE)
def test_damaged_codes_are_read_right_or_refused(codes, edits):
    codes.path.write_bytes(damaged(codes.content, edits, codes.other))

    try:
        with little_memory():
            read = read_latent_file(codes.path)
    except LatentFileError as error:
        assert str(error).startswith(str(codes.path))
    else:
        if read.indices[0, 0, 0] == codes.volume.indices[0, 0, 0]:
            assert read.record == codes.volume.record
            np.testing.assert_array_equal(read.indices, codes.volume.indices)
            np.testing.assert_array_equal(read.latents, codes.volume.latents)


class Unpickled:
    """Ends the process if somebody unpickles it."""

    def __reduce__(self):
        return os._exit, (3,)


ARRAYS = {
    "pickle": lambda: array_bytes(np.array([Unpickled()] * 60, object).reshape(5, 4, 3)),
    "pickle, called numbers": lambda: array_bytes(np.zeros((5, 4, 3), np.uint16), descr="|O"),
    "bomb": lambda: array_bytes(np.zeros((250, 250, 250), np.uint16)),
    "lying shape": lambda: array_bytes(np.zeros((5, 4, 3), np.uint16), shape=(1 << 40, 4, 3)),
    "negative shape": lambda: array_bytes(np.zeros((5, 4, 3), np.uint16), shape=(-5, -4, 3)),
    "another shape": lambda: array_bytes(np.zeros((5, 4, 4), np.uint16)),
    "floats": lambda: array_bytes(np.zeros((5, 4, 3), np.float64)),
    "texts": lambda: array_bytes(np.zeros((5, 4, 3), "U100")),
    "records": lambda: array_bytes(np.zeros((5, 4, 3), [("a", "u1"), ("b", "u1")])),
    "nothing": lambda: b"",
}
METHODS = [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2]


@FUZZ
@given(
    changes=st.dictionaries(st.integers(0, 12), JSON, max_size=2),
    array=st.none() | st.tuples(st.sampled_from(["indices", "latents"]), st.sampled_from(sorted(ARRAYS))),
    method=st.sampled_from(METHODS),
    dictionary=st.none() | st.integers(0, 2**32 - 1),
)
def test_codes_that_lie_are_never_unpickled_and_allocate_little(codes, changes, array, method, dictionary):
    with zipfile.ZipFile(io.BytesIO(codes.content)) as archive:
        members = {name.partition(".")[0]: archive.read(name) for name in archive.namelist()}
    record = json.loads(members.pop("record"))
    record |= {sorted(record)[number % len(record)]: value for number, value in changes.items()}
    if array:
        members[array[0]] = ARRAYS[array[1]]()
    record.pop("sha256", None)
    with zipfile.ZipFile(codes.path, "w", method) as archive:
        archive.writestr("record.json", json.dumps({**record, "sha256": _checksum(record, members)}))
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    if dictionary is not None and method == zipfile.ZIP_LZMA:
        asked = b"\x5d\x00\x00\x80\x00", b"\x5d" + dictionary.to_bytes(4, "little")
        codes.path.write_bytes(codes.path.read_bytes().replace(*asked))

    try:
        with little_memory():
            volume = read_latent_file(codes.path)
            assert read_record(codes.path) == volume.record
            encoded_cases(codes.path.parent, {"preset": "lite", "num_embeddings": 512})
    except (LatentFileError, DatasetError) as error:
        assert str(error).startswith(str(codes.path.parent))
    else:
        assert volume.indices.dtype == np.uint16 and volume.indices.shape == volume.record.cells

import io
import json
import time
import zipfile

import nibabel as nib
import numpy as np
import pytest

from bundle.data.cases.find import DatasetError
from bundle.data.latents.file import (
    EncodedVolume,
    LatentFileError,
    Record,
    read_latent_file,
    read_record,
    write_latent_file,
)
from bundle.data.latents.find import encoded_cases
from bundle.data.volumes.header_text import header_as_text

SETTINGS = {"preset": "lite", "quantizer": "ema", "num_embeddings": 512, "hu_min": -1000.0, "hu_max": 1000.0}


def volume(latents: bool = True) -> EncodedVolume:
    generator = np.random.default_rng(0)
    header, header_class = header_as_text(nib.Nifti1Header())
    affine = np.diag([0.7, 0.7, 1.5, 1.0]).tolist()
    record = Record("ct", (17, 16, 9), affine, affine, header, header_class, SETTINGS, "0" * 64)
    indices = generator.integers(0, 512, (5, 4, 3)).astype(np.uint16)
    return EncodedVolume(
        record, indices, generator.normal(size=(8, 5, 4, 3)).astype(np.float16) if latents else None
    )


@pytest.fixture
def path(tmp_path):
    return tmp_path / "ct_codes.npz"


@pytest.mark.parametrize("latents", [True, False])
def test_what_is_written_is_read(path, latents):
    written = volume(latents)
    write_latent_file(path, written)
    read = read_latent_file(path)
    assert read.record == read_record(path) == written.record
    np.testing.assert_array_equal(read.indices, written.indices)
    assert (read.latents is None) == (not latents)
    if latents:
        np.testing.assert_array_equal(read.latents, written.latents)


def test_encoding_twice_gives_the_same_bytes_whatever_the_time(path, monkeypatch):
    write_latent_file(path, volume())
    first = path.read_bytes()
    monkeypatch.setattr(time, "time", lambda: 1.7e9)
    monkeypatch.setattr(time, "localtime", lambda *_: time.gmtime(1.7e9))

    write_latent_file(path, volume())

    assert path.read_bytes() == first


def test_what_a_killed_encoding_left_is_no_file_of_codes(path):
    written = volume()
    write_latent_file(path, written)
    path.with_name(f".unfinished_0123abcd_{path.name}").write_bytes(b"PK")

    assert encoded_cases(path.parent, written.record.settings) == [{"image": str(path)}]


def test_numpy_alone_opens_it(path):
    write_latent_file(path, volume())
    with np.load(path) as archive:
        np.testing.assert_array_equal(archive["indices"], volume().indices)


def test_every_flipped_byte_and_every_cut_is_noticed_or_harmless(path):
    write_latent_file(path, volume())
    sound = path.read_bytes()
    noticed = 0
    for position in range(0, len(sound), 7):
        for damaged in (sound[:position], _flipped(sound, position)):
            path.write_bytes(damaged)
            try:
                read = read_latent_file(path)
            except LatentFileError as error:
                assert str(path) in str(error)
                noticed += 1
            else:  # a byte of the archive's own bookkeeping, such as a date
                np.testing.assert_array_equal(read.indices, volume().indices)
                np.testing.assert_array_equal(read.latents, volume().latents)
                assert read.record == volume().record
    assert noticed > len(sound) // 7


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 99}, "written in format 99, this version reads up to 2; update"),
        ({"name": "../elsewhere"}, "name or header is wrong"),
        ({"name": ".."}, "name or header is wrong"),
        ({"name": ""}, "name or header is wrong"),
        ({"header_class": "Popen"}, "name or header is wrong"),
        ({"shape": [0, 4, 4]}, "geometry is wrong"),
        ({"affine": [[float("nan")] * 4] * 4}, "geometry is wrong"),
        ({"format_version": "2"}, "`format_version` must be a whole number from 1, got '2'"),
        ({"format_version": True}, "`format_version` must be a whole number from 1, got True"),
        ({"settings": [1]}, "what it says of its model is wrong"),
        ({"settings": {"preset": "lite"}}, "its settings must hold quantizer, num_embeddings, hu_min"),
        ({"settings": SETTINGS | {"hu_min": float("nan")}}, "`hu_min` must be a number from -32768"),
        ({"settings": SETTINGS | {"hu_min": 4000}}, "`hu_min` must be below `hu_max`"),
        ({"settings": SETTINGS | {"num_embeddings": "512"}}, "`num_embeddings` must be a whole number"),
        ({"settings": SETTINGS | {"preset": "\x1b]0;owned"}}, "`preset` must be a word, got"),
        ({"model_sha256": "\x1b[31m"}, "what it says of its model is wrong"),
        ({"patient": "John Doe"}, "what it says of its patient is wrong"),
    ],
)
def test_a_record_that_lies_is_refused(path, change, message):
    write_latent_file(path, volume())
    _rewrite(path, lambda record: record | change)
    with pytest.raises(LatentFileError, match=message):
        read_record(path)


def test_latents_that_are_not_finite_are_neither_written_nor_read(path):
    ill = volume()
    ill.latents[0, 0, 0, 0] = np.inf
    with pytest.raises(LatentFileError, match="must be finite as float16; encode without --keep_latents"):
        write_latent_file(path, ill)
    write_latent_file(path, volume())
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, ill.latents)
    with zipfile.ZipFile(path) as archive:
        kept = {name: archive.read(name) for name in ("record.json", "indices.npy")}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in (kept | {"latents.npy": buffer.getvalue()}).items():
            archive.writestr(name, content)
    with pytest.raises(LatentFileError, match="its latents hold NaN or infinite numbers"):
        read_latent_file(path)


def test_a_member_larger_than_its_volume_is_not_unpacked(path):
    write_latent_file(path, volume(latents=False))
    bomb = io.BytesIO()
    np.lib.format.write_array(bomb, np.zeros((2000, 100, 100), np.uint16))
    with zipfile.ZipFile(path) as archive:
        record = archive.read("record.json")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("record.json", record)
        archive.writestr("indices.npy", bomb.getvalue())
    with pytest.raises(LatentFileError, match=r"indices.npy is larger than it can be"):
        read_latent_file(path)


@pytest.mark.parametrize("content", [b"", b"PK", b"nonsense" * 100])
def test_foreign_files_are_refused_by_name(path, content):
    path.write_bytes(content)
    with pytest.raises(LatentFileError, match="ct_codes.npz: is damaged or no _codes.npz of this project"):
        read_record(path)


def test_a_missing_file_says_what_to_give(path):
    with pytest.raises(LatentFileError, match="no such file; give a _codes.npz"):
        read_record(path)


def _flipped(content: bytes, position: int) -> bytes:
    return content[:position] + bytes([content[position] ^ 0x10]) + content[position + 1 :]


def _rewrite(path, change):
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    members["record.json"] = json.dumps(change(json.loads(members["record.json"]))).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def test_a_missing_file_of_codes_is_called_missing(tmp_path):
    with pytest.raises(DatasetError, match="gone_codes.npz: no such file or folder; check `dataset_dir`"):
        encoded_cases(tmp_path / "gone_codes.npz", {})

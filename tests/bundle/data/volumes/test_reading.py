import gzip
import struct
import tracemalloc

import nibabel as nib
import numpy as np
import pytest

from bundle.data.store.store import PatchStore
from bundle.data.volumes import formats, reading
from bundle.data.volumes.reading import CTReader, VolumeError, read_volume

# more than one slab of 4 MB, and not a whole number of slabs
LARGE_SHAPE = (200, 190, 70)


def hu_voxels(shape, seed=0):
    return np.random.default_rng(seed).integers(-1024, 3072, shape).astype(np.int16)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("dtype", [np.int16, np.float32, np.float64])
def test_every_voxel_of_a_volume_of_several_slabs_is_read(save_nifti, dtype, suffix):
    voxels = hu_voxels(LARGE_SHAPE).astype(dtype)

    volume = read_volume(save_nifti(voxels, name=f"large{suffix}"))

    np.testing.assert_array_equal(volume.voxels, voxels)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, np.uint16, np.int32, np.uint32])
def test_integers_stay_integers_where_int16_holds_them(save_nifti, dtype):
    voxels = np.arange(120).reshape(6, 5, 4).astype(dtype)

    volume = read_volume(save_nifti(voxels))

    assert volume.voxels.dtype == np.int16
    np.testing.assert_array_equal(volume.voxels, voxels)


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.uint32, np.int64])
def test_integers_beyond_int16_become_float32(save_nifti, dtype):
    voxels = (hu_voxels(LARGE_SHAPE) + 2048).astype(dtype)
    voxels[-1, -1, -1] = 40_000  # in the last slab

    volume = read_volume(save_nifti(voxels))

    assert volume.voxels.dtype == np.float32
    np.testing.assert_array_equal(volume.voxels, voxels)


def save_scaled(save_nifti, stored, slope, intercept):
    """A file whose header holds slope and intercept, written behind nibabel's back."""
    path = save_nifti(stored)
    raw = gzip.decompress(path.read_bytes())
    path.write_bytes(gzip.compress(raw[:112] + struct.pack("<2f", slope, intercept) + raw[120:]))
    return path


@pytest.mark.parametrize("slope, intercept", [(1, -1024), (2, 0), (2, -1000)])
def test_whole_scaling_of_integers_stays_exact(save_nifti, slope, intercept):
    stored = np.arange(120, dtype=np.uint16).reshape(6, 5, 4)

    volume = read_volume(save_scaled(save_nifti, stored, slope, intercept))

    assert volume.voxels.dtype == np.int16
    np.testing.assert_array_equal(volume.voxels, stored.astype(int) * slope + intercept)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32, np.float32, np.float64])
def test_any_scaling_is_nibabels_rounded_to_float32(save_nifti, dtype):
    path = save_scaled(save_nifti, hu_voxels((9, 8, 7)).astype(dtype), 0.37, -1024.5)

    volume = read_volume(path)

    assert volume.voxels.dtype == np.float32
    np.testing.assert_array_equal(volume.voxels, nib.load(path).get_fdata().astype(np.float32))


@pytest.mark.parametrize("slope", [0.0, np.nan])
def test_a_slope_of_nothing_means_no_scaling(save_nifti, slope):
    stored = hu_voxels((6, 5, 4))

    volume = read_volume(save_scaled(save_nifti, stored, slope, 0.0))

    np.testing.assert_array_equal(volume.voxels, stored)


def test_a_big_endian_file_is_read(tmp_path):
    voxels = hu_voxels((6, 5, 4))
    image = nib.Nifti1Image(voxels, np.eye(4), header=nib.Nifti1Header(endianness=">"))
    nib.save(image, tmp_path / "big.nii")

    volume = read_volume(tmp_path / "big.nii")

    np.testing.assert_array_equal(volume.voxels, voxels)
    assert volume.voxels.dtype.isnative


@pytest.mark.parametrize("shape", [(6, 5, 4, 1), (1, 6, 5, 4)])
def test_an_axis_of_one_leaves_every_voxel_in_place(save_nifti, shape):
    voxels = hu_voxels((6, 5, 4))

    volume = read_volume(save_nifti(voxels.reshape(shape)))

    np.testing.assert_array_equal(volume.voxels, voxels)


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf, 1e300])
def test_voxels_that_are_not_finite_are_counted_and_refused(save_nifti, number):
    voxels = np.zeros((6, 5, 4))
    voxels[1, 2, 3] = voxels[5, 4, 3] = number

    with pytest.raises(VolumeError, match=r"volume_0\.nii\.gz: holds 2 NaN or infinite voxels; replace them"):
        read_volume(save_nifti(voxels))


def test_one_flipped_bit_in_a_gz_is_found(save_nifti):
    path = save_nifti(hu_voxels((40, 40, 40)))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)

    with pytest.raises(VolumeError, match=r"volume_0\.nii\.gz: is truncated or damaged"):
        read_volume(path)


@pytest.mark.parametrize(
    "dtype, out_bytes", [(np.int16, 2), (np.float32, 4), (np.float64, 4), (np.uint16, 2)]
)
def test_reading_takes_little_more_memory_than_the_result(save_nifti, dtype, out_bytes):
    shape = (256, 256, 160)
    path = save_nifti(np.full(shape, 100, dtype), name="large.nii")
    n_bytes = int(np.prod(shape)) * out_bytes

    tracemalloc.start()
    read_volume(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    # a few slabs of at most 4 MB as stored, 16 MB where they pass through float64
    assert peak < n_bytes + (32 << 20) and peak < 2 * n_bytes + (8 << 20)


def test_the_reader_gives_monai_the_geometry_and_no_more_of_the_header(save_nifti):
    path = save_nifti(hu_voxels((6, 5, 4)))
    reader = CTReader()

    voxels, meta = reader.get_data(reader.read(path))

    np.testing.assert_array_equal(voxels, hu_voxels((6, 5, 4)))
    np.testing.assert_array_equal(meta["affine"], nib.load(path).affine)
    np.testing.assert_array_equal(meta["original_affine"], nib.load(path).affine)
    assert set(meta) == {"affine", "original_affine", "spatial_shape", "space", "original_channel_dim"}
    assert tuple(meta["spatial_shape"]) == voxels.shape


def test_the_reader_gives_c_order_with_every_voxel_in_place(save_nifti):
    voxels = hu_voxels((70, 3, 45))  # not whole blocks
    reader = CTReader()

    array, _ = reader.get_data(reader.read(save_nifti(voxels)))

    assert array.flags.c_contiguous
    np.testing.assert_array_equal(array, voxels)


def test_the_reader_takes_one_file_per_image(save_nifti):
    path = save_nifti(hu_voxels((6, 5, 4)))

    with pytest.raises(VolumeError, match="is one of 2 files given as one image; give one file per image"):
        CTReader().read([path, path])


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".ctpa", "DICOM"])
def test_a_volume_larger_than_all_free_memory_is_refused_before_it_is_allocated(
    save_nifti, write_dicom, tmp_path, monkeypatch, suffix
):
    hu = hu_voxels((20, 18, 16))
    path = save_nifti(hu, name="ct.nii" if suffix == ".nii" else "ct.nii.gz")
    if suffix == "DICOM":
        path = write_dicom(tmp_path / "ct", np.transpose(hu, (2, 1, 0)))
    elif suffix == ".ctpa":
        (stored,) = PatchStore(tmp_path / "cache").prepare([{"image": str(path), "patient": "a"}])
        path = stored.path
    (tmp_path / "meminfo").write_text("MemTotal: 99 kB\nMemAvailable: 11 kB\n", encoding="ascii")
    monkeypatch.setattr(formats, "MEMINFO", tmp_path / "meminfo")

    with pytest.raises(VolumeError) as refused:
        read_volume(path)

    assert str(refused.value).startswith(f"{path}: 20 x 18 x 16 voxels take 0.0 GB of memory, and only")
    assert refused.value.code == "out_of_memory"
    (tmp_path / "meminfo").write_text("MemAvailable: 12 kB\n", encoding="ascii")
    assert read_volume(path).voxels.shape == (20, 18, 16)


def test_a_container_may_have_less_memory_than_its_machine(tmp_path, monkeypatch):
    for name, text in {
        "meminfo": "MemAvailable: 100 kB",
        "memory.max": "50000",
        "memory.current": "30000",
        "memory.stat": "anon 1\ninactive_file 10000\n",
    }.items():
        (tmp_path / name).write_text(text, encoding="ascii")
    monkeypatch.setattr(formats, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(formats, "CONTAINER", tmp_path)

    assert formats.free_memory_bytes() == 30_000
    (tmp_path / "memory.max").write_text("max", encoding="ascii")
    assert formats.free_memory_bytes() == 102_400
    (tmp_path / "meminfo").unlink()
    assert formats.free_memory_bytes() is None


def test_a_volume_that_does_not_fit_into_memory_is_one_line_with_its_name_and_size(save_nifti, monkeypatch):
    class Huge:
        def read(self, *_):
            raise MemoryError("Unable to allocate 5.86 GiB")

    path = save_nifti(hu_voxels((20, 18, 16)))
    monkeypatch.setattr(reading, "required_format", lambda _: Huge())

    with pytest.raises(VolumeError) as refused:
        read_volume(path)

    assert str(refused.value).startswith(
        f"{path}: 20 x 18 x 16 voxels do not fit into the memory that is left;"
    )
    assert refused.value.code == "out_of_memory"

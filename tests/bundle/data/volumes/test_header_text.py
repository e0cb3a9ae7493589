import nibabel as nib
import pytest

from bundle.data.volumes.header_text import header_as_text, header_from_text


@pytest.mark.parametrize("header", [nib.Nifti1Header(), nib.Nifti2Header()], ids=["nifti1", "nifti2"])
def test_a_header_comes_back_with_its_bits_and_its_class(header):
    header["srow_x"] = 1 / 3

    back = header_from_text(*header_as_text(header))

    assert type(back) is type(header)
    assert back.binaryblock == header.binaryblock


def test_a_header_of_the_other_byte_order_comes_back_with_it():
    header = nib.Nifti1Header(endianness=">")
    header["srow_x"] = 1 / 3

    back = header_from_text(*header_as_text(header), endianness=">")

    assert back["srow_x"].tolist() == header["srow_x"].tolist()

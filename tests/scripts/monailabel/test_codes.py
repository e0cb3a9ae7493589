"""The second model of the bundle's own app: codes over REST."""

import importlib.util

import numpy as np
import pytest

from bundle.data.latents.file import read_latent_file

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("monailabel") is None, reason="needs MONAI Label: make test-label"
)
CODES = "ctpa_vqgan_codes"


def test_codes_equal_those_of_monai_bundle_run_and_decode_to_the_served_reconstruction(
    server, clone, studies, run_bundle, tmp_path
):
    answer = server.infer("oblique", model=CODES)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-disposition"].endswith('_codes.npz"')
    served = tmp_path / "served" / "oblique_codes.npz"
    served.parent.mkdir()
    served.write_bytes(answer.content)

    run_bundle(clone, studies / "oblique.nii.gz", tmp_path / "codes", "encode")
    found, expected = map(read_latent_file, (served, tmp_path / "codes" / "oblique_codes.npz"))
    assert found.record == expected.record
    np.testing.assert_array_equal(found.indices, expected.indices)
    assert len(np.unique(found.indices)) > 1

    run_bundle(clone, served.parent, tmp_path / "decoded", "decode")
    decoded = (tmp_path / "decoded" / "oblique_recon.nii.gz").read_bytes()
    assert decoded == server.infer("oblique").content


def test_a_refused_file_gets_the_projects_message_and_the_server_stays_up(server, tmp_path):
    broken = tmp_path / "broken.nii.gz"
    broken.write_bytes(b"no NIfTI")

    answer = server.infer(upload=broken, model=CODES)

    assert answer.status_code == 422
    assert "is not a readable NIfTI file" in answer.json()["detail"]
    assert CODES in server.get("/info/").json()["models"]
    assert server.left_over == []

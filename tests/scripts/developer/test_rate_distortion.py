import csv

import numpy as np
import torch

from bundle.checkpoints.file import network_settings, write_checkpoint
from bundle.data.volumes.phantom import write_phantom
from bundle.networks.vqgan import build_vqgan
from scripts.developer.rate_distortion import main


def test_a_row_per_model_and_per_codec_at_each_models_bits(tmp_path):
    write_phantom(tmp_path / "ct.nii.gz", (112, 112, 4), np.eye(4))
    for codes in (1024, 16384):
        torch.manual_seed(0)
        network = build_vqgan("lite", "ema", codes)
        settings = network_settings("lite", "ema", codes, -1000.0, 1000.0)
        write_checkpoint(tmp_path / f"{codes}.pt", {"model": network.state_dict(), "network": settings})

    models = [str(tmp_path / f"{codes}.pt") for codes in (1024, 16384)]
    folder = tmp_path / "out"
    main(
        [
            str(tmp_path / "ct.nii.gz"),
            "--models",
            *models,
            "--codecs",
            "jpeg2000",
            "--output_dir",
            str(folder),
        ]
    )

    with (folder / "rate_distortion.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["method"], row["codes"]) for row in rows] == [
        ("lite, ema", "1024"),
        ("lite, ema", "16384"),
        ("jpeg2000", "0"),
        ("jpeg2000", "0"),
    ]
    bits = [float(row["bits_per_voxel"]) for row in rows]
    assert bits[:2] == [0.1562, 0.2188]
    np.testing.assert_allclose(bits[2:], bits[:2], rtol=0.031)
    assert all(float(row["entropy_bits_per_voxel"]) <= float(row["bits_per_voxel"]) for row in rows)
    assert (folder / "rate_distortion.png").stat().st_size > 10_000

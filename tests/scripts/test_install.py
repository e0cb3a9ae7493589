import pytest
import torch

from bundle.api import load_model
from bundle.checkpoints.file import FORMAT_VERSION, read_checkpoint, write_checkpoint
from bundle.networks.vqgan import build_vqgan
from scripts.install import main

NETWORK = {"preset": "lite", "quantizer": "ema", "num_embeddings": 16, "hu_min": -1000.0, "hu_max": 1000.0}


@pytest.fixture(scope="module")
def generator():
    torch.manual_seed(0)
    return build_vqgan("lite", "ema", 16)


@pytest.fixture
def checkpoint(tmp_path, generator):
    path = tmp_path / "run" / "last.pt"
    content = {"model": generator.state_dict(), "network": NETWORK, "trainer": {"iteration": 9}}
    content["recipe"] = {"base": "c" * 64}
    write_checkpoint(path, content | {"trained_on": {"patients": ["a" * 16], "voxels": ["b" * 16]}})
    return path


@pytest.fixture
def output(tmp_path):
    return tmp_path / "models" / "model.pt"


def test_installed_model_holds_the_generator_bit_for_bit_and_nothing_of_the_training(
    checkpoint, output, generator, capsys
):
    assert main([str(checkpoint), "--output", str(output)]) == 0

    content = read_checkpoint(output)
    weights = generator.state_dict()
    assert set(content) - {"format_version"} == {"model", "network", "trained_on", "recipe"}
    assert content["recipe"] == {"base": "c" * 64}
    assert content["network"] == NETWORK
    assert content["model"].keys() == weights.keys()
    assert all(torch.equal(content["model"][name], weights[name]) for name in weights)
    assert f"installed {checkpoint}" in capsys.readouterr().out


def test_a_model_installed_in_half_precision_says_its_name_and_computes_in_float32(
    checkpoint, output, generator, caplog
):
    assert main([str(checkpoint), "--output", str(output), "--half", "--name", "lite, three words"]) == 0

    with caplog.at_level("INFO"):
        network = load_model(output).network
    assert f"{output} is lite, three words" in caplog.text
    assert output.stat().st_size < 0.52 * checkpoint.stat().st_size
    assert all(parameter.dtype == torch.float32 for parameter in network.parameters())
    for name, parameter in generator.named_parameters():
        assert torch.equal(network.get_parameter(name), parameter.half().float())
    assert torch.equal(network.quantizer.embedding, generator.quantizer.embedding)


@pytest.mark.parametrize("name", ["", "x" * 121, "two\nlines", "red \x1b[31m"])
def test_a_name_that_is_no_line_of_text_is_refused(checkpoint, output, capsys, name):
    with pytest.raises(SystemExit):
        main([str(checkpoint), "--output", str(output), "--name", name])
    assert "must be one line" in capsys.readouterr().err
    assert not output.exists()


def test_hashes_of_patients_stay_behind_and_fingerprints_of_voxels_are_kept(checkpoint, output):
    main([str(checkpoint), "--output", str(output)])

    assert read_checkpoint(output)["trained_on"] == {"patients": [], "voxels": ["b" * 16]}
    assert b"a" * 16 not in output.read_bytes()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"pytorch-lightning_version": "2.1", "state_dict": {}}, "Lightning checkpoint of another network"),
        ({"weights": {}}, "not a checkpoint of this project"),
        ({"model": {}, "network": {"preset": "lite"}}, "`network` must hold quantizer, num_embeddings"),
        ({"model": {}, "network": NETWORK}, "weights do not fit"),
        ({"model": {}, "network": {**NETWORK, "preset": "huge"}}, "`preset` must be one of"),
    ],
)
def test_foreign_files_are_refused_by_name_and_the_installed_model_stays(
    tmp_path, checkpoint, output, capsys, content, message
):
    main([str(checkpoint), "--output", str(output)])
    before = output.read_bytes()
    foreign = tmp_path / "foreign.ckpt"
    torch.save({"format_version": FORMAT_VERSION, **content}, foreign)

    assert main([str(foreign), "--output", str(output)]) == 1

    error = capsys.readouterr().err
    assert error.startswith(f"error: {foreign}: ")
    assert message in error
    assert output.read_bytes() == before


def test_missing_and_truncated_files_are_named(tmp_path, checkpoint, output, capsys):
    cut = tmp_path / "cut.pt"
    cut.write_bytes(checkpoint.read_bytes()[:1000])

    assert main([str(cut), "--output", str(output)]) == 1
    assert main([str(tmp_path / "none.pt"), "--output", str(output)]) == 1

    errors = capsys.readouterr().err.splitlines()
    assert errors[0].startswith(f"error: {cut}: ")
    assert errors[1].startswith(f"error: {tmp_path / 'none.pt'}: no such checkpoint")
    assert not output.exists()


def test_a_file_that_monai_label_would_load_instead_is_warned_of(checkpoint, output, capsys):
    output.parent.mkdir()
    (output.parent / "a.pt").touch()
    (output.parent / "long_name.pt").touch()

    main([str(checkpoint), "--output", str(output)])

    warning = capsys.readouterr().err
    assert "a.pt has a shorter name" in warning
    assert "long_name" not in warning

import io
import math
import re
import zipfile

import pytest
import torch
from torch import nn

from bundle.checkpoints.file import (
    FORMAT_VERSION,
    CheckpointError,
    check_network,
    load_generator,
    network_settings,
    read_checkpoint,
    read_settings,
    write_checkpoint,
)
from bundle.networks.decoder import SCALE
from bundle.networks.vqgan import build_vqgan
from tests.bundle.checkpoints.conftest import SETTINGS, saved


def zipped(**members):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, text in members.items():
            archive.writestr(name, text)
    return buffer.getvalue()


def test_a_checkpoint_comes_back_with_weights_only(checkpoint):
    content = torch.load(checkpoint, weights_only=True)
    assert content["format_version"] == FORMAT_VERSION
    assert content["network"] == SETTINGS
    torch.testing.assert_close(read_checkpoint(checkpoint)["model"], content["model"], rtol=0, atol=0)


def test_weights_of_format_4_give_the_same_volume(tmp_path):
    network = build_vqgan("lite", "ema", 64).eval()
    model = {
        name.replace("scaled_weight", "weight"): value * SCALE if "scaled_weight" in name else value
        for name, value in network.state_dict().items()
    }
    settings = network_settings("lite", "ema", 64, -1000, 1000)
    path, loaded = tmp_path / "format_4.pt", build_vqgan("lite", "ema", 64).eval()
    path.write_bytes(saved({"format_version": 4, "model": model, "network": settings}))
    load_generator(loaded, path, read_checkpoint(path))
    for name, value in network.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name


def test_a_failing_write_leaves_the_old_file_and_no_other(checkpoint):
    before = checkpoint.read_bytes()
    with pytest.raises((AttributeError, TypeError, RuntimeError), match="lambda"):
        write_checkpoint(checkpoint, {"model": torch.zeros(10), "network": lambda: None})
    assert checkpoint.read_bytes() == before
    assert list(checkpoint.parent.iterdir()) == [checkpoint]


def test_a_missing_checkpoint_is_named_with_the_ways_to_get_one(tmp_path):
    with pytest.raises(CheckpointError, match=r"gone\.pt: no such checkpoint; .*scripts\.install"):
        read_checkpoint(tmp_path / "gone.pt")


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.9, 0.999])
def test_a_truncated_checkpoint_is_refused_by_name(checkpoint, share):
    content = checkpoint.read_bytes()
    checkpoint.write_bytes(content[: int(share * len(content))])
    with pytest.raises(CheckpointError, match=r"model\.pt: not a readable checkpoint"):
        read_checkpoint(checkpoint)


@pytest.mark.parametrize(
    "content",
    [b"a text file\n", b"\x1f\x8b" + bytes(400), bytes(range(256)), b"\x80\x02", b"\x80\x02}q\x00(X", b"(l."],
    ids=["text", "gz", "binary", "pickle start", "torn pickle", "list pickle"],
)
def test_a_foreign_file_is_refused_by_name(tmp_path, content):
    path = tmp_path / "foreign.pt"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"foreign\.pt: not a"):
        read_checkpoint(path)


def test_an_archive_that_is_not_torch_s_is_refused_by_name(tmp_path):
    (tmp_path / "foreign.zip").write_bytes(zipped(a="b"))
    with pytest.raises(CheckpointError, match=r"foreign\.zip: not a readable checkpoint"):
        read_checkpoint(tmp_path / "foreign.zip")


@pytest.mark.parametrize(
    "content",
    [
        torch.zeros(3),
        [],
        {"weight": torch.zeros(3)},
        {"model": {}},
        {"network": {}},
        {"model": {}, "network": {"conv.weight": torch.zeros(3)}},
        {"model": {}, "network": torch.zeros(3)},
    ],
    ids=["tensor", "list", "state dict", "no network", "no model", "other network", "tensor network"],
)
def test_a_file_of_another_project_is_refused_by_name(tmp_path, content):
    path = tmp_path / "other.pt"
    path.write_bytes(saved(content))
    with pytest.raises(CheckpointError, match=r"other\.pt: not a checkpoint of this project"):
        read_checkpoint(path)


@pytest.mark.parametrize("content", [{"state_dict": {}}, {"pytorch-lightning_version": "1.5", "epoch": 3}])
@pytest.mark.parametrize("name", ["users.ckpt", "users.pt"])
def test_a_lightning_checkpoint_is_said_to_be_another_network(tmp_path, content, name):
    path = tmp_path / name
    path.write_bytes(saved(content))
    with pytest.raises(
        CheckpointError, match=rf"{name}: .*Lightning .*cannot be loaded.*configs/train\.yaml"
    ):
        read_checkpoint(path)


def test_a_lightning_checkpoint_with_objects_in_it_is_never_run(tmp_path):
    path = tmp_path / "users.ckpt"
    path.write_bytes(saved({"state_dict": {}, "hyper_parameters": re.compile("object")}))
    with pytest.raises(CheckpointError, match=r"users\.ckpt: .*Lightning"):
        read_checkpoint(path)


def test_a_newer_format_asks_for_an_update(tmp_path):
    path = tmp_path / "newer.pt"
    path.write_bytes(saved({"format_version": FORMAT_VERSION + 1, "weights": {}}))
    with pytest.raises(CheckpointError, match=r"newer\.pt: written in format 6, .* up to 5; update"):
        read_checkpoint(path)


@pytest.mark.parametrize(
    ("changed", "value"),
    [
        ("preset", "lite"),
        ("quantizer", "fsq"),
        ("num_embeddings", 4096),
        ("hu_min", -1024.0),
        ("hu_max", 3071.0),
    ],
)
def test_another_network_or_window_is_refused_with_the_override_that_helps(changed, value):
    content = {"network": SETTINGS | {changed: value}}
    with pytest.raises(
        CheckpointError, match=rf"a\.pt: was trained with `{changed}` .*use it with --{changed} {value}$"
    ):
        check_network("a.pt", content, SETTINGS)


def test_all_settings_that_differ_are_told_at_once():
    with pytest.raises(CheckpointError, match=r"--preset lite --hu_max 500\.0$"):
        check_network("a.pt", {"network": SETTINGS | {"preset": "lite", "hu_max": 500.0}}, SETTINGS)


def test_the_same_settings_pass_whether_whole_numbers_or_not():
    check_network("a.pt", {"network": SETTINGS}, network_settings("default", "ema", 1024, -1000, 1000.0))


@pytest.mark.parametrize("other", [nn.Linear(31, 40), nn.Linear(30, 40, bias=False), nn.Conv1d(1, 1, 1)])
def test_weights_that_do_not_fit_are_refused_by_name(checkpoint, other):
    with pytest.raises(CheckpointError, match=r"model\.pt: its weights do not fit this generator"):
        load_generator(other, checkpoint, read_checkpoint(checkpoint))


def test_every_tensor_of_the_generator_is_loaded(checkpoint):
    network, content = nn.Linear(30, 40), read_checkpoint(checkpoint)
    assert load_generator(network, checkpoint, content) == 2
    torch.testing.assert_close(network.state_dict(), content["model"], rtol=0, atol=0)


WEIGHTS = {"weight": torch.zeros(4, 3), "bias": torch.zeros(4)}


def nan_at_the_end():
    tensor = torch.zeros(4, 3)
    tensor[-1, -1] = math.nan
    return tensor


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"model": WEIGHTS | {"weight": nan_at_the_end()}}, "tensor model.weight must hold finite numbers"),
        ({"model": WEIGHTS | {"bias": torch.full((4,), -math.inf)}}, "tensor model.bias must hold finite"),
        ({"model": WEIGHTS | {"bias": torch.zeros(4, dtype=torch.complex64)}}, "must hold real numbers, got"),
        ({"model": WEIGHTS | {"bias": torch.zeros(4).to_sparse()}}, "real numbers|not a readable"),
        ({"model": WEIGHTS | {"bias": 3.0}}, "`model` must hold tensors by name"),
        ({"model": {5: 6}}, "`model` must hold tensors by name"),
        ({"model": [torch.zeros(3)]}, "not a checkpoint of this project"),
        ({"discriminators": {"a": torch.tensor(math.nan)}}, "tensor discriminators.a must hold finite"),
        (
            {"optimizers": {"generator": {"state": {0: {"exp_avg": torch.tensor([math.nan])}}}}},
            "tensor optimizers.generator.state.0.exp_avg must hold finite",
        ),
        ({"network": SETTINGS | {"hu_min": math.nan}}, "`hu_min` must be a number from -32768 to 32767, got"),
        (
            {"network": SETTINGS | {"hu_min": 2000.0}},
            "`hu_min` must be below `hu_max`, got 2000.0 and",
        ),
        ({"network": SETTINGS | {"hu_max": "1000"}}, "`hu_max` must be a number .*, got '1000'"),
        ({"network": SETTINGS | {"hu_max": True}}, "`hu_max` must be a number"),
        ({"network": SETTINGS | {"hu_max": torch.tensor(3.0)}}, "`hu_max` must be a number .*, got Tensor"),
        ({"network": SETTINGS | {"num_embeddings": 16.5}}, "`num_embeddings` must be a whole number from 2"),
        ({"network": SETTINGS | {"num_embeddings": 10**9}}, "`num_embeddings` must be a whole number from 2"),
        ({"network": SETTINGS | {"preset": ["lite"]}}, "`preset` must be a word, got \\['lite'\\]"),
        ({"network": SETTINGS | {"preset": "\x1b]0;owned\x07"}}, r"`preset` must be a word, got .*\\x1b\]0;"),
        ({"network": SETTINGS | {"quantizer": "$(rm x)"}}, "`quantizer` must be a word, got"),
        ({"format_version": "2"}, "`format_version` must be a whole number from 1, got '2'"),
        ({"format_version": True}, "`format_version` must be a whole number from 1, got True"),
        ({"name": 3}, "`name` must be text of up to 120 characters, got 3"),
        ({"name": "x" * 121}, "`name` must be text of up to 120 characters"),
        ({"format_version": -1}, "`format_version` must be a whole number from 1, got -1"),
        ({"trained_on": {"patients": ["John Doe"]}}, "`trained_on` must hold lists of 16 hexadecimal digits"),
        ({"recipe": {"base": "no fingerprint"}}, "`recipe` must hold numbers by name, and `base` 64 hex"),
        ({"recipe": {"seed": "\033[2J"}}, "`recipe` must hold numbers by name"),
        ({"recipe": {"Not A Name": 1}}, "`recipe` must hold numbers by name"),
        ({"recipe": {"seed": math.nan}}, "`recipe` must hold numbers by name"),
        ({"trained_on": []}, "`trained_on` must hold lists of 16 hexadecimal digits"),
        ({"trainer": {"iteration": "7"}}, "`trainer` must hold whole numbers"),
        ({"trainer": {"iteration": -1}}, "`trainer` must hold whole numbers"),
        ({"trainer": {}}, "`trainer` must hold whole numbers, among them `iteration`"),
        (
            {"trainer": {"iteration": 1, "learning_rate_share": True}},
            "`learning_rate_share` must lie above 0",
        ),
        ({"trainer": {}, "optimizers": []}, "`optimizers` must hold values by name, got \\[\\]"),
        ({"optimizers": []}, "`optimizers` must hold values by name, got \\[\\]"),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_line(tmp_path, changed, message):
    path = tmp_path / "wrong.pt"
    path.write_bytes(
        saved({"format_version": FORMAT_VERSION, "model": WEIGHTS, "network": SETTINGS} | changed)
    )

    for read in (read_checkpoint, read_settings):
        if read is read_settings and ("finite" in message or "real" in message):
            continue  # it reads no weights
        with pytest.raises(CheckpointError, match=message) as refused:
            read(path)
        told = str(refused.value)
        assert told.startswith(f"{path}: ") and told.isprintable()


def test_whole_numbers_pass_as_ends_of_the_window(tmp_path):
    path = tmp_path / "model.pt"
    settings = SETTINGS | {"hu_min": -1000, "hu_max": 1000}
    path.write_bytes(saved({"format_version": FORMAT_VERSION, "model": WEIGHTS, "network": settings}))

    assert read_checkpoint(path)["network"] == read_settings(path) == SETTINGS


def test_settings_are_read_without_the_weights(checkpoint):
    assert read_settings(checkpoint) == SETTINGS
    with pytest.raises(CheckpointError, match=r"gone\.pt: no such checkpoint"):
        read_settings(checkpoint.with_name("gone.pt"))


def test_a_checkpoint_without_all_settings_names_the_missing_ones(tmp_path):
    write_checkpoint(tmp_path / "model.pt", {"model": WEIGHTS, "network": {"preset": "lite"}})
    with pytest.raises(
        CheckpointError, match="`network` must hold quantizer, num_embeddings, hu_min, hu_max"
    ):
        read_settings(tmp_path / "model.pt")


def test_a_checkpoint_saved_on_a_gpu_is_read_where_there_is_none(tmp_path, monkeypatch):
    path = tmp_path / "gpu.pt"
    monkeypatch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:0")
    path.write_bytes(saved({"format_version": FORMAT_VERSION, "model": WEIGHTS, "network": SETTINGS}))
    monkeypatch.undo()
    with zipfile.ZipFile(path) as archive:
        (pickled,) = [name for name in archive.namelist() if name.endswith("data.pkl")]
        assert b"cuda:0" in archive.read(pickled)

    assert all(tensor.device.type == "cpu" for tensor in read_checkpoint(path)["model"].values())
    assert read_settings(path) == SETTINGS

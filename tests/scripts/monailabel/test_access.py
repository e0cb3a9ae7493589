"""Which requests and values are let in, without a server."""

import asyncio
import importlib.util
import json
import re

import pytest
import yaml

if importlib.util.find_spec("monailabel") is None:
    pytest.skip("needs MONAI Label: make test-label", allow_module_level=True)

from pathlib import Path

from starlette.datastructures import Headers

from bundle.checkpoints.file import write_checkpoint
from bundle.data.cases.patients import SharedPatientsError
from scripts.monailabel.access import Access, AccessError, Guard
from scripts.monailabel.installing import result_of_round
from scripts.monailabel.values import TRAINING, RequestError, check_values, largest_volume

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.1:8000", "localhost:8000", "LOCALHOST", "[::1]:8000"])
def test_names_of_the_own_machine_are_answered_without_a_setting(host):
    assert Access().refusal(Headers({"host": host})) is None


@pytest.mark.parametrize(
    "host", ["10.0.0.5:8000", "label", "localhost.evil.example", "0.0.0.0", "127.1", "", "a b"]
)
def test_any_other_name_is_refused_until_it_is_opened(host):
    refusal = Access().refusal(Headers({"host": host}))

    assert refusal is not None
    assert "--conf allow_hosts" in refusal


def test_hosts_and_origins_are_opened_by_name():
    access = Access.from_conf({"allow_hosts": "Label, 10.0.0.5", "allow_origins": "https://Viewer.example"})

    for host in ("label:8000", "10.0.0.5"):
        assert access.refusal(Headers({"host": host, "origin": "https://viewer.example"})) is None
        assert access.refusal(Headers({"host": host, "origin": "http://viewer.example"})) is not None
    assert access.refusal(Headers({"host": "label:8000", "origin": "http://label:8000"})) is None
    assert access.refusal(Headers({"host": "label:8000", "origin": "http://label:8001"})) is not None


def answers(scope):
    """What the guard sends to a request before an application that must not be reached."""
    sent = []

    async def reached(*asgi):
        sent.append("reached")

    async def send(message):
        sent.append(message)

    asyncio.run(Guard(reached, Access())(scope, None, send))
    return sent


def test_a_web_socket_is_closed_whoever_opens_it():
    own = [(b"host", b"127.0.0.1:8000"), (b"origin", b"http://127.0.0.1:8000")]

    for headers in (own, []):
        assert answers({"type": "websocket", "path": "/", "headers": headers}) == [
            {"type": "websocket.close", "code": 1008}
        ]


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "POST", "PATCH"])
@pytest.mark.parametrize(
    "host", [b"localhost.:8000", b"[::1%lo]", b"127.0.0.1:123456", b"127.0.0.1:", b"\xe9"]
)
def test_a_name_that_is_nearly_the_own_one_reaches_nothing_by_any_method(method, host):
    scope = {"type": "http", "method": method, "path": "/info/", "headers": [(b"host", host)]}

    start, body = answers(scope)

    assert start["status"] == 403
    assert b"`Host` must be a name of this server" in body["body"]


def test_two_hosts_or_none_are_refused():
    assert Access().refusal(Headers(raw=[(b"host", b"localhost"), (b"host", b"evil.example")])) is not None
    assert Access().refusal(Headers({})) is not None


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("allow_hosts", "*"),
        ("allow_hosts", "label:8000"),
        ("allow_origins", "*"),
        ("allow_origins", "viewer.example"),
        ("allow_origins", "https://viewer.example/page"),
        ("allow_folders", "relative"),
        ("allow_folders", "/no/such/folder"),
    ],
)
def test_a_setting_that_opens_nothing_or_too_much_is_refused(key, value):
    with pytest.raises(AccessError, match=f"`{key}` must hold"):
        Access.from_conf({key: value})


def test_every_setting_on_the_list_is_one_of_train_yaml_and_its_default_keeps_the_rule():
    config = yaml.safe_load((ROOT / "configs" / "train.yaml").read_text(encoding="utf-8"))
    named = set(TRAINING) - {"device", "pretrained", "val_split"}

    assert named <= set(config)
    defaults = {name: config[name] for name in named if not str(config[name]).startswith("$")}

    assert check_values(defaults, TRAINING) == defaults


def nested(depth, inside):
    for _ in range(depth):
        inside = [inside]
    return inside


@pytest.mark.parametrize("value", [[["x" * 100_000] * 3], nested(990, 1), {"a": nested(990, "b")}, 10**400])
def test_a_value_without_end_is_told_shortly(value):
    with pytest.raises(RequestError) as caught:
        check_values({"seed": value}, TRAINING)

    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("sign", "$@%")
def test_an_expression_is_found_however_deep(sign):
    with pytest.raises(RequestError, match="expressions are never evaluated"):
        check_values({"seed": nested(990, {"a": f"{sign}x"})}, TRAINING)


@pytest.mark.parametrize("name", ["/\ud800", "/a\0b", f"/{'a' * 5000}", "/..", ""])
def test_no_name_opens_a_folder_and_none_is_an_error(tmp_path, name):
    access = Access.from_conf({"allow_folders": str(tmp_path)})

    assert not access.allows_path(Path(f"{tmp_path}x{name}"))
    assert not Access().allows_path(Path(name))


@pytest.mark.parametrize("given", ["", "0", "-1", "1e9", "²", "1" * 30, "\x1b"])
def test_a_limit_of_voxels_is_a_whole_number_or_the_default(given):
    assert largest_volume({}) == 512 * 512 * 2048
    assert largest_volume({"max_voxels": "7"}) == 7
    with pytest.raises(RequestError, match="`max_voxels` must be a whole number from 1, got '"):
        largest_volume({"max_voxels": given})


@pytest.mark.filterwarnings("ignore")  # of MONAI Label's own imports
def test_scans_of_one_patient_are_never_on_both_sides(tmp_path):
    from scripts.monailabel.train import PatchTrainingTask, TrainingDataError

    task = object.__new__(PatchTrainingTask)
    names = [f"sub-{patient}_ses-{scan}_ct" for patient in "abcd" for scan in "12"] + ["x_0000", "y"]
    images = {name: str(tmp_path / f"{name}.nii.gz") for name in names}
    for path in images.values():
        Path(path).touch()
    task.patients = ""
    by_name = task._patients_of(images)
    task.patients = str(tmp_path / "patients.json")
    items = [{"image": f"{name}.nii.gz", "patient": f"p{number // 3}"} for number, name in enumerate(names)]
    Path(task.patients).write_text(json.dumps({"training": items}), encoding="utf-8")
    by_list = task._patients_of(images)

    assert sorted(set(by_name.values())) == ["sub-a", "sub-b", "sub-c", "sub-d", "x", "y"]
    assert list(by_list.values()) == ["p0"] * 3 + ["p1"] * 3 + ["p2"] * 3 + ["p3"]
    for patients in (by_name, by_list):
        cases = [{"image": path, "patient": patients[name]} for name, path in images.items()]
        for share in (0.01, 0.2, 0.5, 0.99):
            sides = task._partition_datalist(cases, {"val_split": share})
            training, validation = ({case["patient"] for case in side} for side in sides)
            assert training and validation and not training & validation
    Path(task.patients).write_text(json.dumps({"training": items[1:]}), encoding="utf-8")
    with pytest.raises(TrainingDataError, match="must name the patient of every image, got none for"):
        task._patients_of(images)


@pytest.mark.filterwarnings("ignore")  # of MONAI Label's own imports
def test_one_image_is_trained_on_only_if_that_is_asked_for():
    from scripts.monailabel.train import PatchTrainingTask

    split = PatchTrainingTask._partition_datalist
    task = object.__new__(PatchTrainingTask)
    cases = [{"image": f"{name}.nii", "patient": name} for name in "ab"]

    with pytest.raises(
        SharedPatientsError, match="`allow_shared_patients` is false, but patient.s. a are in"
    ):
        split(task, cases[:1], {})

    assert split(task, cases[:1], {"allow_shared_patients": True}) == (cases[:1], cases[:1])
    training, validation = split(task, cases, {})
    assert sorted(case["patient"] for case in training + validation) == ["a", "b"]


@pytest.mark.parametrize(
    ("weight", "best_iteration", "installed"),
    [(0.0, 5, "best_1.pt"), (1.0, 5, "last.pt"), (1.0, 10, "last.pt"), (1.0, 11, "best_1.pt")],
)
def test_an_adversarial_round_installs_a_checkpoint_from_behind_the_gate(
    tmp_path, tiny_vqgan, weight, best_iteration, installed
):
    settings = {
        "preset": "lite",
        "quantizer": "ema",
        "num_embeddings": 32,
        "hu_min": -1000.0,
        "hu_max": 1000.0,
    }
    for name, iteration in (("best_1.pt", best_iteration), ("last.pt", 20)):
        content = {
            "model": tiny_vqgan().state_dict(),
            "network": settings,
            "trainer": {"iteration": iteration},
        }
        write_checkpoint(tmp_path / "checkpoints" / name, content)
    gate = {"discriminator_iter_start": 8, "discriminator_pretrain_iters": 2}
    weights = {"image_gan_weight": weight, "video_gan_weight": 0.0, "perceptual_weight": 0.0}

    assert result_of_round(tmp_path, gate | weights).name == installed


def test_the_page_lists_what_a_request_may_set():
    page = (ROOT / "docs" / "monailabel.md").read_text(encoding="utf-8")
    listed = page.partition("A request may set these numbers")[2].partition("\n[settings.md]")[0]

    assert set(re.findall(r"`(\w+)`", listed)) == set(TRAINING)

"""Attacks on the bundle's MONAI Label app, sent to a real server as any client could send them."""

import importlib.util
import json
import os
import resource
import shutil
import socket
import time

import nibabel as nib
import numpy as np
import pytest

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("monailabel") is None, reason="needs MONAI Label: make test-label"
)
RUN = "$__import__('os').system('touch trace_of_attack')"
COMPONENT = {"_target_": "os.system", "command": "touch trace_of_attack"}
VALUES = {
    "an expression": {"seed": RUN},
    "an expression in a list": {"patch_size": [24, RUN, 24]},
    "an expression behind good settings": {"max_epochs": 1, "epoch_length": 2, "val_split": 0.5, "amp": RUN},
    "an expression for a word": {"preset": RUN},
    "an expression for the device": {"device": RUN},
    "an expression for a name": {RUN: 1},
    "a component": {"seed": COMPONENT},
    "a component in a list": {"patch_size": [COMPONENT, 24, 24]},
    "a reference": {"learning_rate": "@seed"},
    "a file": {"seed": "%/etc/passwd"},
    "text for a number": {"max_epochs": "1"},
    "true for a number": {"max_epochs": True},
    "no number": {"learning_rate": float("nan")},
    "a number beyond its range": {"learning_rate": 1e400},
    "the cache's path": {"cache_dir": "/tmp/x"},
    "the weights' path": {"perceptual_weights_path": "/tmp/x"},
    "the output's path": {"output_dir": "/tmp/x"},
    "a checkpoint": {"init_from": "/tmp/x"},
    "a checkpoint to resume": {"resume_from_checkpoint": "/tmp/x"},
    "the data": {"train#dataset#data": []},
    "a part of the network": {"network_def::_target_": "os.system"},
    "a nested list": {"initialize": [RUN]},
    "a path to import from": {"model": "other", "bundle_path": "/tmp/x"},
    "a config's entry": {"run_id": "initialize"},
    "the environment": {"gpus": "0"},
    "an address to report to": {"tracking": "mlflow", "tracking_uri": "http://198.51.100.1/"},
    "a file of weights": {"model_filename": "../../x.pt"},
}


@pytest.mark.parametrize("run_sync", ["true", "false"])
@pytest.mark.parametrize("what", VALUES)
def test_a_training_round_takes_numbers_and_words_on_the_list_only(server, clone, what, run_sync):
    before = (clone / "models" / "model.pt").read_bytes()

    answer = server.ask(
        "POST",
        "/train/ctpa_vqgan",
        params={"run_sync": run_sync},
        data=json.dumps(VALUES[what]),
        headers={"content-type": "application/json"},
    )

    assert answer.status_code == 422, answer.text
    assert "must be" in answer.json()["detail"] or "cannot be set by a request" in answer.json()["detail"]
    assert server.get("/train/").status_code == 404  # no round was started
    assert not (clone / "trace_of_attack").exists()
    assert (clone / "models" / "model.pt").read_bytes() == before


@pytest.mark.parametrize("body", ["[1]", "7", "{", "[" * 30000, "x" * 70000], ids=lambda body: body[:3])
def test_a_training_round_with_a_body_that_is_no_object_is_refused(server, body):
    answer = server.ask("POST", "/train/ctpa_vqgan", data=body, headers={"content-type": "application/json"})

    assert answer.status_code == 422
    assert answer.json()["detail"].startswith("the settings must be")


CLOSED = [
    *(
        ("POST", "/train/"),
        ("POST", "/reload"),
        ("GET", "/"),
        ("GET", "/docs"),
        ("GET", "/static/favicon.ico"),
    ),
    *(("GET", "/logs/"), ("GET", "/logs/gpu"), ("GET", "/ohif/"), ("GET", "/proxy/dicom/wado/studies")),
    *(("GET", "/model/ctpa_vqgan"), ("PUT", "/model/ctpa_vqgan"), ("DELETE", "/model/ctpa_vqgan")),
    *(
        ("PUT", "/datastore/"),
        ("DELETE", "/datastore/?id=oblique"),
        ("PUT", "/datastore/image?image=../../x"),
    ),
    *(("GET", "/datastore/image?image=oblique"), ("DELETE", "/datastore/image?id=oblique")),
    *(("PUT", "/datastore/image/info?image=oblique"), ("PUT", "/datastore/label?image=oblique&tag=../../..")),
    *(("DELETE", "/datastore/label?id=oblique&tag=final"), ("GET", "/datastore/dataset")),
    *(
        ("PUT", "/session/"),
        ("GET", "/session/x"),
        ("DELETE", "/session/%2e%2e"),
        ("POST", "/batch/infer/ctpa_vqgan"),
    ),
    *(("POST", "/activelearning/random"), ("POST", "/scoring/"), ("POST", "/infer/wsi/ctpa_vqgan")),
    *(("POST", "/infer/wsi_v2/ctpa_vqgan"), ("TRACE", "/info/"), ("POST", "/infer/%2e%2e%2fx")),
]


@pytest.mark.parametrize(("method", "path"), CLOSED)
def test_what_the_app_does_not_need_is_closed(server, studies, clone, method, path):
    answer = server.ask(
        method, path, files={"file": ("a.nii.gz", b"x")} if method in ("PUT", "POST") else None
    )

    assert answer.status_code == 403
    assert "this server does not answer" in answer.json()["detail"]
    assert (studies / "oblique.nii.gz").exists()
    assert (clone / "models" / "model.pt").exists()


def test_the_datastore_tells_ids_and_no_paths(server, studies):
    assert server.get("/datastore/?output=train").status_code == 422
    listing = server.get("/datastore/?output=all")
    assert set(listing.json()["objects"]) >= {"oblique", "straight"}
    assert str(studies) not in listing.text


FOREIGN = {
    "another site": {"Origin": "http://evil.example"},
    "no site": {"Origin": "null"},
    "another port": {"Origin": "http://127.0.0.1:1"},
    "a picture on another site": {"Sec-Fetch-Site": "cross-site"},
    "a name that was made to point here": {"Host": "evil.example"},
    "both": {"Host": "evil.example:8000", "Origin": "http://evil.example:8000"},
    "a name before another": {"Host": "127.0.0.1.evil.example"},
    "a user before the name": {"Host": "127.0.0.1@evil.example"},
}


@pytest.mark.parametrize("what", FOREIGN)
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/info/"),
        ("POST", "/infer/ctpa_vqgan?image=straight"),
        ("POST", "/reload"),
        ("OPTIONS", "/train/x"),
    ],
)
def test_a_page_of_another_site_gets_nothing(server, what, method, path):
    preflight = {"Access-Control-Request-Method": "POST"} if method == "OPTIONS" else {}

    answer = server.ask(method, path, headers=FOREIGN[what] | preflight)

    assert answer.status_code == 403
    assert "the operator opens another with --conf allow_" in answer.json()["detail"]
    assert "access-control-allow-origin" not in answer.headers


def test_the_servers_own_page_and_an_origin_that_the_operator_opened_are_answered(server):
    opened = {"Origin": server.opened_origin}

    own = server.ask("GET", "/info/", headers={"Origin": server.address, "Sec-Fetch-Site": "same-origin"})
    other = server.ask("GET", "/info/", headers=opened)
    preflight = server.ask(
        "OPTIONS", "/train/ctpa_vqgan", headers={**opened, "Access-Control-Request-Method": "POST"}
    )

    assert [each.status_code for each in (own, other, preflight)] == [200, 200, 200]
    assert other.headers["access-control-allow-origin"] == server.opened_origin
    assert preflight.headers["access-control-allow-origin"] == server.opened_origin
    assert "access-control-allow-origin" not in own.headers


@pytest.mark.parametrize("where", ["image", "params"])
@pytest.mark.parametrize("path", ["/", "/etc/passwd", "{studies}/oblique.nii.gz", "../x", "{uploads}"])
def test_a_path_of_the_server_is_refused_whether_something_is_there_or_not(server, studies, where, path):
    path = path.format(studies=studies, uploads=server.uploads)

    if where == "image":
        answer = server.infer(path)
    else:
        answer = server.infer("straight", params=json.dumps({"image": path}))

    assert answer.status_code == 403
    assert "--conf allow_folders" in answer.json()["detail"]


def test_a_file_in_the_folder_where_the_server_was_started_is_no_id(server):
    assert server.infer("server.log").status_code == 404


def test_a_folder_that_the_operator_opened_is_served_and_no_link_leads_out_of_it(server, studies, opened):
    shutil.copy(studies / "straight.nii.gz", opened / "ct.nii.gz")
    (opened / "damaged.nii.gz").write_bytes(b"no volume at all")
    (opened / "out.nii.gz").symlink_to(studies / "oblique.nii.gz")

    served, damaged = (server.infer(str(opened / name)) for name in ("ct.nii.gz", "damaged.nii.gz"))

    assert served.content == server.infer("straight").content
    assert damaged.status_code == 422
    assert damaged.json()["detail"].startswith("the image: is not a readable NIfTI file")
    assert (opened / "damaged.nii.gz").exists()
    for path in (opened / "out.nii.gz", opened / ".." / studies.name / "oblique.nii.gz", f"{opened}2/x"):
        assert server.infer(str(path)).status_code == 403


def test_a_pipe_is_told_and_not_waited_for(server, opened):
    series = opened / "series"
    series.mkdir()
    os.mkfifo(opened / "pipe")
    (series / "slice").symlink_to(opened / "pipe")

    answers = [server.infer(image) for image in ("piped", str(opened / "pipe"), str(series))]

    assert [answer.status_code for answer in answers] == [422, 422, 422]
    assert "it is a pipe" in answers[0].json()["detail"]
    assert server.get("/info/").status_code == 200


def test_files_of_others_in_the_temporary_folder_stay(server, studies):
    others = [server.uploads / "tmp_other_users_work.txt", server.uploads / "tmp_scan.nii.gz"]
    others[0].write_text("work", encoding="utf-8")
    shutil.copy(studies / "straight.nii.gz", others[1])
    try:
        answers = [server.infer(str(path)) for path in others]
        assert [answer.status_code for answer in answers] == [403, 403]
        assert server.left_over == others
    finally:
        for path in others:
            path.unlink()


def test_a_name_that_is_code_is_a_name(server, clone):
    answer = server.infer(server.code_name)

    assert answer.status_code == 200
    assert answer.content == server.infer("straight").content
    assert not (clone / "trace_of_code").exists()


PARAMS = [
    "save_label",
    "label_tag",
    "model_filename",
    "logging",
    "skip_writer",
    "result_folder",
    "bundle_path",
]


@pytest.mark.parametrize("name", PARAMS)
def test_an_inference_takes_a_device_and_a_suffix_only(server, studies, name):
    answer = server.infer("straight", params=json.dumps({name: "../../x"}))

    assert answer.status_code == 422
    assert f"`{name}` cannot be set by a request" in answer.json()["detail"]
    assert list((studies / "labels").rglob("*.nii.gz")) == []


def test_sessions_labels_and_several_files_are_refused(server, tmp_path):
    assert server.infer("straight", session_id="..").status_code == 422
    address = "/infer/ctpa_vqgan?image=straight"
    label = server.ask("POST", address, files={"label": ("a.nii.gz", b"x")})
    two = server.ask("POST", address, files=[("file", ("a.nii.gz", b"x")), ("file", ("b.nii.gz", b"x"))])
    both = server.ask("POST", address, files={"file": ("a.nii.gz", b"x")})
    text = server.ask("POST", address, data={"file": "text"})

    assert [each.status_code for each in (label, two, both, text)] == [422, 400, 422, 422]
    assert server.left_over == []


def test_an_upload_is_never_called_by_its_own_name(server, tmp_path):
    names = ["ERIKA_MUSTERMANN.nii.gz", "ERIKA_MUSTERMANN.MUSTERMANN", f"ERIKA_MUSTERMANN.{'x' * 300}"]
    answers = [
        server.ask("POST", "/infer/ctpa_vqgan", files={"file": (name, b"no volume")}) for name in names
    ]

    assert [answer.status_code for answer in answers] == [422, 422, 422]
    assert "the file: is not a readable NIfTI file" in answers[0].json()["detail"]
    assert "ERIKA" not in "".join(answer.text for answer in answers)
    assert "ERIKA" not in server.log.read_text(encoding="utf-8")


@pytest.mark.parametrize("suffix", [".nii.gz", ".nii"])
def test_a_volume_that_declares_more_voxels_than_allowed_is_refused_before_it_is_unpacked(
    server, studies, opened, suffix
):
    path = opened / f"vast{suffix}"  # 2 kB, of 2 MB
    nib.save(nib.Nifti1Image(np.zeros((128, 128, 128), np.uint8), np.eye(4)), path)

    answers = [server.infer(upload=path), server.infer(str(path))]

    assert [answer.status_code for answer in answers] == [422, 422]
    for answer in answers:
        assert answer.json()["detail"] == (
            "`image` must hold at most 2,000,000 voxels, got 128 x 128 x 128; the operator allows more with "
            "--conf max_voxels N"
        )
    assert server.left_over == []


def test_a_body_larger_than_any_volume_that_is_allowed_is_not_written_to_the_disk(server):
    part = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.nii"\r\n\r\n'

    def body():  # of unknown length
        yield part
        yield from [bytes(1_000_000)] * 20
        yield b"\r\n--x--\r\n"

    headers = {"content-type": "multipart/form-data; boundary=x"}
    answer = server.ask("POST", "/infer/ctpa_vqgan", data=body(), headers=headers)

    assert answer.status_code == 413
    assert answer.json()["detail"].startswith("`file` must have at most 16,065,536 bytes, got more;")
    assert server.left_over == []
    assert server.get("/info/").status_code == 200


@pytest.mark.parametrize("path", ["/infer/ctpa_vqgan", "/train/ctpa_vqgan"])
def test_a_client_that_goes_away_in_the_middle_leaves_no_traceback(server, path):
    before = server.log.read_text(encoding="utf-8").count("Traceback")
    kind = b"multipart/form-data; boundary=x" if "infer" in path else b"application/json"
    head = b"POST %s HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: %s\r\nContent-Length: 1000\r\n\r\n"
    host, port = server.address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=60) as client:
        client.sendall(head % (path.encode(), kind) + b"--x\r\n")

    assert server.get("/info/").status_code == 200
    time.sleep(0.5)
    assert server.log.read_text(encoding="utf-8").count("Traceback") == before
    assert server.left_over == []


def test_a_parameter_of_another_type_is_refused_in_a_sentence(server):
    answer = server.ask("POST", "/train/ctpa_vqgan?run_sync=maybe\x1b", json={})

    assert answer.status_code == 422
    assert answer.json()["detail"].startswith("`run_sync` cannot be used (Input should be a valid boolean")
    assert answer.json()["detail"].endswith(r"got 'maybe\x1b'; correct it")


def test_a_full_temporary_folder_leaves_nothing_and_is_told(server, tmp_path):
    noise = np.random.default_rng(0).bytes(12_000_000)
    (tmp_path / "large.nii.gz").write_bytes(noise)
    before = resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (8_000_000, before[1]))
    try:
        answer = server.infer(upload=tmp_path / "large.nii.gz")
    finally:
        resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, before)

    assert answer.status_code == 507
    assert "is full" in answer.json()["detail"]
    assert server.left_over == []
    assert server.get("/info/").status_code == 200


def test_foreign_text_forges_no_line_of_the_log_and_reaches_no_terminal(server):
    answer = server.infer("x\n[2026-01-01] FORGED \x1b]0;owned\x07")
    server.ask("GET", "/info/", headers={"Host": "a\x1b]0;owned"})
    server.infer("straight", params='{"device": "\\n[2026-01-01] FORGED \\u001b]0;owned"}')

    log = server.log.read_text(encoding="utf-8")
    assert "\\n[2026-01-01] FORGED" in log
    assert "\x1b]0;" not in log
    assert "\x07" not in log
    assert not any(line.startswith("[2026-01-01]") for line in log.splitlines())
    assert "\x1b" not in answer.json()["detail"]

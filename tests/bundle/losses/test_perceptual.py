import hashlib
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
import torchvision

from bundle.losses import perceptual
from bundle.losses.perceptual import (
    BackboneError,
    SlicePerceptualLoss,
    build_perceptual,
    cached_backbone,
    reach_backbone,
)


@pytest.fixture(scope="module")
def squeeze_file(tmp_path_factory):
    torch.manual_seed(1)
    path = tmp_path_factory.mktemp("weights") / "squeezenet.pth"
    torch.save(torchvision.models.squeezenet1_1(weights=None).state_dict(), path)
    return path


def test_the_backbone_is_the_file_s_and_not_random(squeeze_file):
    loss = SlicePerceptualLoss("squeeze", squeeze_file)
    expected = torch.load(squeeze_file, weights_only=True)["features.0.weight"]
    assert torch.equal(loss.lpips.net.slice1[0].weight, expected)


def test_equal_slices_have_distance_zero_and_noise_raises_it(squeeze_file):
    loss, slices = SlicePerceptualLoss("squeeze", squeeze_file), torch.rand(2, 1, 32, 32) * 2 - 1
    near, far = (loss(slices, slices + noise * torch.randn_like(slices)) for noise in (0.05, 0.5))
    assert loss(slices, slices).tolist() == [0.0, 0.0]
    assert (near < far).all()


def test_it_stays_frozen_and_in_eval_mode(squeeze_file):
    loss = SlicePerceptualLoss("squeeze", squeeze_file).train()
    assert not any(module.training for module in loss.modules())
    assert not any(parameter.requires_grad for parameter in loss.parameters())


def test_gradients_reach_the_reconstruction_only(squeeze_file):
    loss = SlicePerceptualLoss("squeeze", squeeze_file)
    real, fake = (torch.rand(1, 1, 32, 32, requires_grad=True) for _ in range(2))
    loss(real, fake).sum().backward()
    assert real.grad is None
    assert fake.grad.abs().sum() > 0


def test_vgg_has_exactly_the_documented_parameters(caplog):
    loss = SlicePerceptualLoss("vgg", "random")
    assert sum(parameter.numel() for parameter in loss.parameters()) == 14_716_160
    assert "RANDOM" in caplog.text


def test_a_missing_file_says_how_to_get_it_or_do_without(tmp_path):
    with pytest.raises(
        BackboneError,
        match=r"nowhere\.pth.*vgg16-397923af\.pth.*--perceptual_weights_path.*--perceptual_weight 0",
    ):
        SlicePerceptualLoss("vgg", tmp_path / "nowhere.pth")


def test_without_internet_the_error_says_the_same(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(
        "bundle.losses.perceptual.BACKBONES", {"vgg": type("W", (), {"url": "http://127.0.0.1:9/vgg.pth"})}
    )
    with pytest.raises(BackboneError, match=r"are missing .*--perceptual_weights_path"):
        SlicePerceptualLoss("vgg")
    assert not list((tmp_path / "hub" / "checkpoints").iterdir())


@pytest.fixture
def publisher(squeeze_file, monkeypatch, tmp_path):
    """Publishes the backbone on 127.0.0.1: `declared`, then `sent`, then silence if `hangs`."""
    content = squeeze_file.read_bytes()
    done = threading.Event()

    class Answer(BaseHTTPRequestHandler):
        declared, sent, hangs, hash_of = len(content), content, False, content

        def do_GET(self):
            if self.declared:
                self.send_response(200)
                self.send_header("Content-Length", str(self.declared))
                self.end_headers()
                self.wfile.write(self.sent)
            if self.hangs:
                self.wfile.flush()
                done.wait(30)

        def log_message(self, *words):
            pass

    def publish(**changes):
        for name, value in changes.items():
            setattr(Answer, name, value)
        digest = hashlib.sha256(Answer.hash_of).hexdigest()[:8]
        url = f"http://127.0.0.1:{server.server_port}/squeezenet-{digest}.pth"
        monkeypatch.setattr("bundle.losses.perceptual.BACKBONES", {"squeeze": type("W", (), {"url": url})})

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("bundle.losses.perceptual.DOWNLOAD_TIMEOUT_S", 0.5)
    monkeypatch.setattr("bundle.losses.perceptual.REACH_TIMEOUT_S", 0.5)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield publish
    done.set()
    server.shutdown()
    server.server_close()


def test_a_published_backbone_is_reached_and_downloaded_once(publisher, squeeze_file, tmp_path):
    publisher()
    reach_backbone("squeeze")
    assert not (tmp_path / "hub").exists()  # reaching is not downloading

    loss = SlicePerceptualLoss("squeeze")
    publisher(declared=0)  # nobody asks again

    expected = torch.load(squeeze_file, weights_only=True)["features.0.weight"]
    for found in (loss, SlicePerceptualLoss("squeeze")):
        assert torch.equal(found.lpips.net.slice1[0].weight, expected)


@pytest.mark.parametrize(
    "wrong",
    [
        {"hash_of": b"another file"},
        {"sent": b"", "hangs": False},
        {"declared": 0, "hangs": True},
        {"sent": b"PK", "hangs": True},
    ],
    ids=["wrong hash", "cut short", "no answer", "stops in the middle"],
)
def test_a_download_that_goes_wrong_is_told_within_its_time_and_leaves_nothing(publisher, tmp_path, wrong):
    publisher(**wrong)
    started = time.monotonic()

    with pytest.raises(
        BackboneError, match=r"are missing \(.*--perceptual_weights_path FILE, or train without"
    ):
        SlicePerceptualLoss("squeeze")

    assert time.monotonic() - started < 10
    assert not list((tmp_path / "hub" / "checkpoints").iterdir())


def test_a_publisher_that_does_not_answer_cannot_be_reached(publisher):
    publisher(declared=0, hangs=True)
    started = time.monotonic()

    with pytest.raises(BackboneError, match="are missing"):
        reach_backbone("squeeze")

    assert time.monotonic() - started < 10


@pytest.mark.parametrize("content", [b"", b"PK\3\4 cut short", b"another file"])
@pytest.mark.parametrize("is_given", [False, True], ids=["in the cache", "given"])
def test_a_file_that_is_not_what_its_name_says_is_refused_before_it_is_loaded(
    publisher, tmp_path, content, is_given
):
    publisher()
    path = tmp_path / "hub" / "checkpoints" / perceptual.BACKBONES["squeeze"].url.rsplit("/", 1)[1]
    path.parent.mkdir(parents=True)
    path.write_bytes(content)

    for refuse in (cached_backbone, SlicePerceptualLoss):
        with pytest.raises(BackboneError, match=r"delete the file, then get torchvision's") as raised:
            refuse("squeeze", path if is_given else None)
        assert str(raised.value).startswith(f"{path}: damaged or foreign LPIPS backbone weights (SHA-256 ")


def test_another_network_s_file_is_refused_by_name(squeeze_file):
    with pytest.raises(
        BackboneError, match=r"squeezenet\.pth: not torchvision's weights of the alex backbone"
    ):
        SlicePerceptualLoss("alex", squeeze_file)


def test_weight_zero_builds_nothing_unless_a_file_is_named(squeeze_file):
    assert build_perceptual("vgg", None, 0.0, "cpu") is None
    assert build_perceptual("squeeze", squeeze_file, 0.0, "cpu") is not None

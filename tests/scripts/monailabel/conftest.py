"""Real MONAI Label servers on 127.0.0.1, on copies of the bundle with two phantoms and one model."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from bundle.checkpoints.file import network_settings, write_checkpoint
from bundle.data.volumes.phantom import write_phantom
from bundle.networks.vqgan import VQGAN, build_vqgan

ROOT = Path(__file__).resolve().parents[3]
CODES = 64
MAX_VOXELS = 2_000_000  # of a volume that `server` takes
OPENED_ORIGIN = "http://viewer.example:3000"
# Id of a volume; in the folder that the server works in a run of it would leave a trace.
CODE = "$__import__('os').system('touch trace_of_code')"
# Axes stored as anterior, left, inferior, turned by 10 degrees, and sizes that differ.
OBLIQUE = np.array(
    [
        [0.0, -0.79, 0.0, 31.25],
        [0.69, 0.0, 0.26, -97.5],
        [0.12, 0.0, -1.48, 12.125],
        [0.0, 0.0, 0.0, 1.0],
    ]
)
START_S, STOP_S = 180, 60


def network_with_codes(seed: int) -> VQGAN:
    torch.manual_seed(seed)
    network = build_vqgan("lite", "ema", CODES).eval()
    with torch.no_grad():
        network.quantizer.initialize(network.encode_latent(torch.rand(1, 1, 24, 24, 24) * 2 - 1))
    return network


def write_model(path: Path, seed: int) -> None:
    settings = network_settings("lite", "ema", CODES, -1000, 1000)
    write_checkpoint(path, {"model": network_with_codes(seed).state_dict(), "network": settings})


class Server:
    """`monailabel start_server` on 127.0.0.1, as docs/monailabel.md starts it."""

    code_name = CODE
    opened_origin = OPENED_ORIGIN
    max_voxels = MAX_VOXELS

    def __init__(self, folder: Path, app: Path, studies: Path, *conf: str) -> None:
        import requests

        self.session = requests.Session()
        self.session.trust_env = False  # a proxy of this machine has no part in this
        self.log = folder / "server.log"
        self.uploads = folder / "uploads"
        self.uploads.mkdir()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.address = f"http://127.0.0.1:{port}"
        words = ["monailabel", "start_server", "--app", str(app), "--studies", str(studies), *conf]
        words += ["--host", "127.0.0.1", "--port", str(port)]
        self.output = self.log.open("wb")
        self.process = subprocess.Popen(
            words,
            cwd=folder,
            env=environment(TMPDIR=str(self.uploads)),
            stdout=self.output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            self.wait_until_up()
        except BaseException:
            self.stop()
            raise

    def wait_until_up(self) -> None:
        import requests

        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                self.session.get(f"{self.address}/info/", timeout=60)
                return
            except requests.ConnectionError:
                time.sleep(0.3)
        pytest.fail(f"the server did not come up:\n{self.log.read_text(encoding='utf-8')[-3000:]}")

    def get(self, path: str):
        return self.ask("GET", path)

    def ask(self, method: str, path: str, **more: object):
        """Any request."""
        return self.session.request(method, f"{self.address}{path}", timeout=60, **more)

    def infer(self, image: str = "", upload: Path | None = None, params: str = "{}", **query: str):
        """POST /infer/ctpa_vqgan, or another `model`, of an image of the datastore or of an uploaded file."""
        model = query.pop("model", "ctpa_vqgan")
        query = {"output": "image"} | ({"image": image} if image else {}) | query
        files = {"file": (upload.name, upload.read_bytes())} if upload else None
        address = f"{self.address}/infer/{model}"
        return self.session.post(address, params=query, data={"params": params}, files=files, timeout=120)

    def train(self, synchronous: bool = True, **settings: object):
        """POST /train/ctpa_vqgan."""
        query = {"run_sync": "true"} if synchronous else {}
        return self.session.post(f"{self.address}/train/ctpa_vqgan", params=query, json=settings, timeout=240)

    def stop(self) -> None:
        """SIGTERM, and nothing of it may be left."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGTERM)
            try:
                self.process.wait(STOP_S)
            finally:
                if self.process.poll() is None:
                    os.killpg(self.process.pid, signal.SIGKILL)
        self.session.close()
        self.output.close()

    @property
    def left_over(self) -> list[Path]:
        """What lies in the temporary folder, but for Label's own configuration of logs."""
        return sorted(path for path in self.uploads.iterdir() if path.suffix != ".json")

    @property
    def has_processes(self) -> bool:
        try:
            os.killpg(self.process.pid, 0)
        except ProcessLookupError:
            return False
        return True


def environment(**more: str) -> dict[str, str]:
    """Without a GPU, with the programs of this environment first."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    return {**os.environ, "PATH": path, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", **more}


@pytest.fixture(scope="session")
def copy_bundle(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Copies the bundle and puts a model into it."""

    def copy(name: str) -> Path:
        folder = tmp_path_factory.mktemp(name) / "ctpa_vqgan"
        for room in ("bundle", "configs", "scripts", "transforms"):
            shutil.copytree(ROOT / room, folder / room, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "metadata.json", folder)
        write_model(folder / "models" / "model.pt", seed=0)
        return folder

    return copy


@pytest.fixture(scope="session")
def start_server() -> Iterator[Callable[..., Server]]:
    """Starts servers and stops them, whatever happens."""
    servers = []

    def start(folder: Path, app: Path, studies: Path, *conf: str) -> Server:
        servers.append(Server(folder, app, studies, *conf))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


@pytest.fixture(scope="session")
def make_studies(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    def make(name: str) -> Path:
        folder = tmp_path_factory.mktemp(name)
        write_phantom(folder / "oblique.nii.gz", (47, 38, 33), OBLIQUE, seed=1)
        write_phantom(folder / "straight.nii.gz", (36, 40, 32), np.diag([-0.7, -0.7, 1.5, 1.0]), seed=2)
        return folder

    return make


@pytest.fixture(scope="session")
def run_bundle() -> Callable[..., None]:
    """`python -m monai.bundle run` of a config of a copy with the copy's own model."""

    def run(folder: Path, studies: Path, output: Path, config: str = "inference") -> None:
        words = [sys.executable, "-m", "monai.bundle", "run", "--config_file", f"configs/{config}.yaml"]
        words += ["--dataset_dir", str(studies), "--output_dir", str(output)]
        words += ["--preset", "lite", "--num_embeddings", str(CODES)]
        both = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "encoding": "utf-8", "timeout": 240}
        done = subprocess.run(words, cwd=folder, env=environment(), **both)
        assert done.returncode == 0, done.stdout[-3000:]

    return run


@pytest.fixture(scope="session")
def reference(copy_bundle: Callable, make_studies: Callable, run_bundle: Callable, tmp_path_factory) -> Path:
    """What inference makes of both phantoms with the model of every copy."""
    output = tmp_path_factory.mktemp("reference")
    run_bundle(copy_bundle("reference_bundle"), make_studies("reference_studies"), output)
    return output


@pytest.fixture(scope="session")
def clone(copy_bundle: Callable) -> Path:
    """The bundle of `server`, with a shorter-named file of other weights, which Label itself would load."""
    folder = copy_bundle("own#app")  # a separator of ids to MONAI
    state = torch.load(folder / "models" / "model.pt", weights_only=True)
    state["model"] = {name: torch.zeros_like(tensor) for name, tensor in state["model"].items()}
    torch.save(state, folder / "models" / "a.pt")
    return folder


@pytest.fixture(scope="session")
def studies(make_studies: Callable) -> Path:
    """The datastore of `server`: two volumes, one more with a name that is code, and a link to a pipe."""
    folder = make_studies("own_studies")
    shutil.copy(folder / "straight.nii.gz", folder / f"{CODE}.nii.gz")
    os.mkfifo(folder / "pipe")
    (folder / "piped.nii.gz").symlink_to(folder / "pipe")
    return folder


@pytest.fixture(scope="session")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose volumes a request to `server` may name by their whole path."""
    return tmp_path_factory.mktemp("opened")


@pytest.fixture(scope="session")
def server(clone: Path, studies: Path, opened: Path, reference: Path, start_server: Callable) -> Server:
    """One server for the tests of several files; the last test of test_server.py stops it."""
    conf = ("train_configs", "smoke"), ("allow_folders", str(opened)), ("allow_origins", OPENED_ORIGIN)
    conf += (("max_voxels", str(MAX_VOXELS)),)
    words = [word for pair in conf for word in ("--conf", *pair)]
    return start_server(clone, clone / "scripts" / "monailabel", studies, *words)

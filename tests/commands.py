"""Runs commands as a user types them, in a warm process that has imported torch or in one of its own."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
# On the CPU wherever the tests run: a warm process that has touched a GPU cannot fork.
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
CONFIGS = {
    "base": ["configs/train.yaml", "configs/smoke.yaml"],
    "adversarial": ["configs/train.yaml", "configs/train_with_discriminator.yaml", "configs/smoke.yaml"],
    "inference": ["configs/inference.yaml", "configs/smoke.yaml"],
    "encode": ["configs/encode.yaml", "configs/smoke.yaml"],
    "decode": ["configs/decode.yaml", "configs/smoke.yaml"],
    "diffusion": ["configs/train_diffusion.yaml", "configs/smoke.yaml"],
}
CODES = 64
LIMIT_S = 240  # where many processes share two cores, imports alone take a minute
TINY = {"max_epochs": 1, "epoch_length": 2, "patch_size": [24, 24, 24], "log_interval": 1}


class Ended(NamedTuple):
    """A command that came to its end."""

    code: int
    output: str

    @property
    def last_line(self) -> str:
        return self.output.rstrip().splitlines()[-1]

    @property
    def message(self) -> str:
        """From `error:` to the end; a list of unusable files takes a line for each."""
        return self.output[self.output.rindex("error: ") :]

    def expect_success(self) -> None:
        assert self.code == 0, self.output[-3000:]

    def expect_refusal(self, *parts: str, output_dir: Path) -> None:
        """A message that holds these parts, no traceback, and no output folder."""
        assert self.code != 0, self.output[-3000:]
        assert "error: " in self.output, self.output[-3000:]
        assert [part for part in parts if part not in self.message] == [], self.output[-3000:]
        assert "Traceback" not in self.output
        assert not output_dir.exists()


def words_of(workflow: str, settings: dict, *overlays: str) -> list[str]:
    """The words behind `python -m monai.bundle run`; a network and patches for two cores unless told else."""
    tiny = {"num_embeddings": CODES} | (TINY if "configs/train.yaml" in CONFIGS[workflow] else {})
    words = ["--config_file", str([*CONFIGS[workflow], *overlays])]
    for name, value in (tiny | settings).items():
        words += [f"--{name}", str(value)]
    return words


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as asked:
        asked.bind(("127.0.0.1", 0))
        return asked.getsockname()[1]


class Python:
    """`python -m MODULE WORDS` in the bundle's root; warm = without waiting for imports each time."""

    def __init__(self, folder: Path) -> None:
        self.output = folder / "output.txt"
        server = [sys.executable, str(Path(__file__).with_name("warm_python.py"))]
        self.process = subprocess.Popen(
            server,
            cwd=ROOT,
            env=ENVIRONMENT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            encoding="utf-8",
        )

    def __call__(self, module: str, *words: str, **environment: str) -> Ended:
        """One command in a fork of the warm process."""
        return self.on_ranks(1, module, *words, **environment)[0]

    def on_ranks(self, ranks: int, module: str, *words: str, **environment: str) -> list[Ended]:
        """One command in as many forks, as torchrun would start it; how each ended, by rank."""
        command = {"module": module, "words": words, "environment": environment}
        command |= {"folder": str(ROOT), "output": str(self.output), "ranks": ranks, "port": free_port()}
        assert self.process.stdin is not None and self.process.stdout is not None
        print(json.dumps(command), file=self.process.stdin, flush=True)
        codes = json.loads(self.process.stdout.readline())
        outputs = [Path(f"{self.output}.{rank}").read_text(encoding="utf-8") for rank in range(ranks)]
        return [Ended(code, output) for code, output in zip(codes, outputs, strict=True)]

    def run(self, workflow: str, *overlays: str, **settings: object) -> Ended:
        """`python -m monai.bundle run` with the configs of a workflow, overlays on them, and overrides."""
        return self("monai.bundle", "run", *words_of(workflow, settings, *overlays))

    def run_cold(self, workflow: str, **settings: object) -> Ended:
        """The same in a process of its own, imports and all."""
        command = [sys.executable, "-m", "monai.bundle", "run", *words_of(workflow, settings)]
        both = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "encoding": "utf-8"}
        done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, timeout=LIMIT_S, **both)
        return Ended(done.returncode, done.stdout)

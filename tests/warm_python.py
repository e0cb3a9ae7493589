"""Starts `python -m MODULE WORDS` many times and imports torch, MONAI, and what every command needs once.

Not a test: a process of its own. It reads one JSON line per command, forks, and lets the fork run the module
as `python -m` would, with its own output file, error hook and exit code; it answers each with the exit code.
A command for several ranks gets as many forks, which find what torchrun would tell them in their environment.
"""

import atexit
import gc
import json
import os
import runpy
import signal
import sys
import threading
import warnings

sys.path[0] = os.getcwd()

import blosc2  # noqa: E402, F401
import fire  # noqa: E402, F401
import lpips  # noqa: E402, F401
import monai.bundle  # noqa: E402, F401
import monai.engines  # noqa: E402, F401
import nibabel  # noqa: E402, F401
import PIL.Image  # noqa: E402, F401
import pydicom  # noqa: E402, F401
import SimpleITK  # noqa: E402, F401
import torch.utils.tensorboard  # noqa: E402, F401
import zlib_ng  # noqa: E402, F401

LIMIT_S = 240

warnings.filterwarnings("ignore", "parsing config_file", UserWarning)


def become(command: dict, rank: int) -> None:
    """Turns this fork into the process of one command, or into one rank of it."""
    signal.alarm(LIMIT_S)  # ends a command that hangs
    # as in a terminal: whoever starts the tests in the background or under nohup has some of them ignored
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    output = os.open(f"{command['output']}.{rank}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((nothing, 0), (output, 1), (output, 2)):
        os.dup2(source, target)
    os.environ.update(command["environment"])
    if command["ranks"] > 1:
        os.environ.update(launch(rank, command["ranks"], command["port"]))
    os.chdir(command["folder"])
    sys.path[0] = command["folder"]
    sys.argv = ["-m", *command["words"]]
    run(command["module"])


def run(module: str) -> None:
    """Runs the module and ends this fork as Python does, but without taking down all that was imported.

    That would take two seconds of each fork, more than most commands.
    """
    code = 0
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if not isinstance(end.code, int | None):
            print(end.code, file=sys.stderr)
    except BaseException as error:
        sys.excepthook(*sys.exc_info())
        code = 1 if isinstance(error, Exception) else 130
    threading._shutdown()  # waits for threads, as Python does
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)


def launch(rank: int, ranks: int, port: int) -> dict[str, str]:
    """What torchrun tells a process of its number."""
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks}
    return {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)} | {
        name: str(number) for name, number in numbers.items()
    }


def serve() -> None:
    """Answers until the input ends."""
    gc.collect()
    gc.freeze()  # a fork that collects what was imported would copy it
    while line := sys.stdin.readline():
        command, forks = json.loads(line), []
        for rank in range(command["ranks"]):
            forks.append(os.fork())
            if forks[-1] == 0:
                become(command, rank)
        codes = [os.waitstatus_to_exitcode(os.waitpid(fork, 0)[1]) for fork in forks]
        print(json.dumps(codes), flush=True)


if __name__ == "__main__":
    serve()

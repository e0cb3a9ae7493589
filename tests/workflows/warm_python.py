"""Starts `python -m MODULE WORDS` many times and imports torch and MONAI once.

Not a test: a process of its own. It reads one JSON line per command, forks, and lets the fork run the module
as `python -m` would, with its own output file, error hook and exit code; it answers each with the exit code.
"""

import json
import os
import runpy
import signal
import sys
import warnings

sys.path[0] = os.getcwd()

import lpips  # noqa: E402, F401
import monai.bundle  # noqa: E402, F401
import monai.engines  # noqa: E402, F401
import torch.utils.tensorboard  # noqa: E402, F401

LIMIT_S = 240

warnings.filterwarnings("ignore", "parsing config_file", UserWarning)


def become(command: dict) -> None:
    """Turns this fork into the process of one command."""
    signal.alarm(LIMIT_S)  # ends a command that hangs
    # as in a terminal: whoever starts the tests in the background or under nohup has some of them ignored
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    output = os.open(command["output"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((nothing, 0), (output, 1), (output, 2)):
        os.dup2(source, target)
    os.environ.update(command["environment"])
    os.chdir(command["folder"])
    sys.path[0] = command["folder"]
    sys.argv = ["-m", *command["words"]]
    runpy.run_module(command["module"], run_name="__main__", alter_sys=True)


def serve() -> None:
    """Answers until the input ends."""
    while line := sys.stdin.readline():
        fork = os.fork()
        if fork == 0:
            become(json.loads(line))
            return
        print(os.waitstatus_to_exitcode(os.waitpid(fork, 0)[1]), flush=True)


if __name__ == "__main__":
    serve()

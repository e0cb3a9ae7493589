"""The guide's MONAI Label commands fit the app; `make test-label` sends such requests to a real server."""

import re
import shlex

from tests.guide import GUIDE, ROOT


def words_of(command: str) -> list[str]:
    (line,) = re.findall(rf"^{command} .*$", GUIDE, re.MULTILINE)
    return shlex.split(line)


def test_the_server_that_is_started_and_the_model_that_is_asked_are_those_of_the_app():
    start, request = words_of("monailabel start_server"), words_of("curl")
    app = ROOT / start[start.index("--app") + 1] / "main.py"

    (model,) = re.findall(r'^MODEL = "(\w+)"$', app.read_text(encoding="utf-8"), re.MULTILINE)
    port = start[start.index("--port") + 1]
    assert any(word.startswith(f"http://127.0.0.1:{port}/infer/{model}?") for word in request)


def test_the_server_listens_to_this_machine_only():
    start = words_of("monailabel start_server")

    assert start[start.index("--host") + 1] == "127.0.0.1"

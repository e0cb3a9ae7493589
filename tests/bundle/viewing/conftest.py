"""A headless Chromium that is spoken to through pipes, so that no package and no port is needed."""

import base64
import contextlib
import json
import os
import select
import shutil
import subprocess
import time

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
SECONDS = 180


def find_browser() -> str | None:
    """CTPA_BROWSER, or the first Chromium on the path."""
    return os.environ.get("CTPA_BROWSER") or next(filter(None, map(shutil.which, NAMES)), None)


class Browser:
    """Commands of the DevTools protocol, one page at a time."""

    def __init__(self, program, profile):
        self.to_read, write_end = os.pipe()
        read_end, self.to_write = os.pipe()
        command = [
            *(
                program,
                "--headless=new",
                "--no-sandbox",
                "--disable-dev-shm-usage",
                "--use-angle=swiftshader",
            ),
            *(
                "--enable-unsafe-swiftshader",
                "--hide-scrollbars",
                "--no-first-run",
                "--remote-debugging-pipe",
            ),
            *(f"--user-data-dir={profile}", "--disable-background-networking", "about:blank"),
        ]
        # Chromium reads commands from descriptor 3 and answers on descriptor 4.
        spare = [os.dup(read_end), os.dup(write_end)]
        for one in spare:
            os.set_inheritable(one, True)
        shell = f'exec 3<&{spare[0]} 4>&{spare[1]}; exec "$@"'
        self.process = subprocess.Popen(
            ["bash", "-c", shell, "bash", *command], pass_fds=spare, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL, env={**os.environ, "HOME": str(profile)},
        )  # fmt: skip
        for one in (read_end, write_end, *spare):
            os.close(one)
        self.pending, self.number, self.session, self.events = b"", 0, None, []

    def open(self, url, width=1500, height=760):
        """Opens a page whose script tells by its title when it is ready."""
        target = self.command("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.command("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self.events.clear()
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.command(f"{domain}.enable")
        self.resize(width, height)
        self.command("Page.navigate", url=url)

    def resize(self, width, height):
        self.command(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )

    def evaluate(self, expression):
        told = self.command("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in told, told["exceptionDetails"]
        return told["result"].get("value")

    def wait_for(self, expression):
        until = time.monotonic() + SECONDS
        while not self.evaluate(expression):
            assert time.monotonic() < until, f"never true: {expression}; {self.complaints()}"
            time.sleep(0.1)

    def click(self, x, y, times=1):
        self.command("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
        for number in range(1, times + 1):
            for kind in ("mousePressed", "mouseReleased"):
                self.command(
                    "Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=number
                )

    def wheel(self, x, y, by, ctrl=False):
        self.command("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
        self.command(
            "Input.dispatchMouseEvent", type="mouseWheel", x=x, y=y, deltaX=0, deltaY=by, modifiers=2 * ctrl
        )

    def screenshot(self, path):
        path.write_bytes(base64.b64decode(self.command("Page.captureScreenshot", format="png")["data"]))

    def complaints(self):
        """What the console was told, and every request that did not stay on this machine or in the page."""
        said = []
        for event in self.events:
            content = event["params"]
            if event["method"] == "Log.entryAdded" and content["entry"]["level"] in ("error", "warning"):
                said.append(content["entry"]["text"])
            if event["method"] == "Runtime.exceptionThrown":
                said.append(content["exceptionDetails"]["text"])
            if event["method"] == "Runtime.consoleAPICalled" and content["type"] in ("error", "warning"):
                said.append(str([one.get("value") for one in content["args"]]))
        return said

    def requested(self):
        return [
            event["params"]["request"]["url"]
            for event in self.events
            if event["method"] == "Network.requestWillBeSent"
        ]

    def command(self, method, **params):
        self.number += 1
        message = {"id": self.number, "method": method, "params": params}
        if self.session and not method.startswith("Target."):
            message["sessionId"] = self.session
        os.write(self.to_write, json.dumps(message).encode() + b"\0")
        until = time.monotonic() + SECONDS
        while True:
            answer = self.receive(until)
            if answer.get("id") == self.number:
                assert "error" not in answer, (method, answer["error"])
                return answer["result"]
            if "method" in answer:
                self.events.append(answer)

    def receive(self, until):
        while b"\0" not in self.pending:
            ready, _, _ = select.select([self.to_read], [], [], max(until - time.monotonic(), 0))
            read = os.read(self.to_read, 2**20) if ready else b""
            assert read, "the browser does not answer"
            self.pending += read
        message, self.pending = self.pending.split(b"\0", 1)
        return json.loads(message)

    def close(self):
        with contextlib.suppress(OSError, AssertionError):
            self.command("Browser.close")
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        os.close(self.to_read)
        os.close(self.to_write)


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    program = find_browser()
    if program is None:
        pytest.skip("needs Chromium: `apt-get install chromium`, or name one in CTPA_BROWSER")
    browser = Browser(program, tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()

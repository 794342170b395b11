"""Servers for the tests: the real binary on a free loopback port."""

import pathlib
import re
import subprocess
import threading
import time

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
LAUNCH = ROOT / "target/release/nanoinfer-launch"
PATIENCE_S = 60


class Server:
    """A running nanoinfer-launch; `url` is where it listens."""

    def __init__(self, *arguments):
        # The reference computes in f32, which the default is not on every CPU.
        command = [LAUNCH, "--port", "0", "--dtype", "f32", *arguments]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True)
        self.log = []
        self.url = None
        ready = threading.Event()

        def read():
            for line in self.process.stderr:
                self.log.append(line)
                if found := re.match(r"ready on (http://\S+)", line):
                    self.url = found[1]
                    ready.set()
            ready.set()

        threading.Thread(target=read, daemon=True).start()
        assert ready.wait(PATIENCE_S) and self.url, "".join(self.log)

    def stop(self):
        self.process.terminate()
        self.process.wait(PATIENCE_S)


def wait_until(condition, what):
    """Polls until `condition` holds, or fails."""
    deadline = time.monotonic() + PATIENCE_S
    while not (value := condition()):
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.02)
    return value


@pytest.fixture(scope="session")
def server():
    """The demo model on two ranks."""
    server = Server("--nproc", "2")
    yield server
    server.stop()


@pytest.fixture(scope="session")
def metric(server):
    """Reads one metric of the demo server."""
    import httpx

    def read(name):
        text = httpx.get(f"{server.url}/metrics").text
        return float(re.search(rf"^nanoinfer_{name} (\S+)$", text, re.M)[1])

    return read

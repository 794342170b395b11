"""What the tests share: a server of the demo model, and its metrics."""

import re

import httpx
import pytest
from server import Server


@pytest.fixture(scope="session")
def server():
    """The demo model on two ranks."""
    server = Server("--nproc", "2")
    yield server
    server.stop()


@pytest.fixture(scope="session")
def metric(server):
    """Reads one metric of the demo server."""

    def read(name):
        text = httpx.get(f"{server.url}/metrics").text
        return float(re.search(rf"^nanoinfer_{name} (\S+)$", text, re.M)[1])

    return read

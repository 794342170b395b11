"""What the tests share: a server of the demo model, and its metrics."""

import re
import shutil

import httpx
import pytest
from server import ROOT, Server


@pytest.fixture(scope="session")
def server():
    """The demo model on two ranks."""
    server = Server("--nproc", "2")
    yield server
    server.stop()


@pytest.fixture(scope="session")
def thinker(tmp_path_factory):
    """The demo model with a template that has it think where it is asked to: all that it then says is thinking."""
    folder = tmp_path_factory.mktemp("models") / "thinker"
    shutil.copytree(ROOT / "launcher/demo/nano-chat", folder)
    template = """{% for m in messages %}{% if m.role == 'user' %}User: {{ m.content }}
Assistant:{% elif m.role == 'assistant' %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}
{% if enable_thinking is defined and enable_thinking %}{{ '<think>\\n' }}{% endif %}{# it never writes </think> #}"""
    (folder / "chat_template.jinja").write_text(template)
    server = Server("--model", str(folder))
    yield server
    server.stop()


@pytest.fixture(scope="session")
def metric(server):
    """Reads one metric of the demo server."""

    def read(name):
        text = httpx.get(f"{server.url}/metrics").text
        return float(re.search(rf"^nanoinfer_{name} (\S+)$", text, re.M)[1])

    return read

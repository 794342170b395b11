"""Two servers, a recorder before each of their two kinds of connection, Open WebUI before those, and a browser before that."""

import shutil

import pytest
import slow_model
from browser import new_browser
from page import Page
from program import OpenWebui
from recorder import Recorder
from recording import write
from server import ROOT, Server

WORK = ROOT / "target/long/work"
DEMO = ROOT / "launcher/demo/nano-chat"
KINDS = ["openai", "ollama"]


def pytest_addoption(parser):
    parser.addoption("--record", action="store_true", help="rewrite what .ci/clients replays")


@pytest.fixture(scope="session")
def servers():
    """The demo model, and one that takes its time, so that there is a middle in which to stop it."""
    slow_model.write(DEMO, WORK / "slow")
    servers = {"nano-chat": Server("--nproc", "2"), "slow": Server("--model", str(WORK / "slow"))}
    yield servers
    for server in servers.values():
        server.stop()


@pytest.fixture(scope="session")
def recorders(servers, request):
    """By kind of connection and model."""
    recorders = {(kind, name): Recorder(server.url, kind) for name, server in servers.items() for kind in KINDS}
    yield recorders
    for recorder in recorders.values():
        recorder.stop()
    if request.config.getoption("record"):
        write([note for kind in KINDS for note in recorders[kind, "nano-chat"].requests])


@pytest.fixture(scope="session")
def browser(recorders):
    folder = WORK / "open-webui"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    # Both list a model of the same name, so that each has a prefix: `openai.nano-chat`, `ollama.nano-chat`.
    connections = {
        kind: [(kind, recorders[kind, "nano-chat"].url), (f"{kind}-slow", recorders[kind, "slow"].url)] for kind in KINDS
    }
    program = OpenWebui(folder, **connections)
    browser = new_browser(1400, 900)
    browser.url = program.url
    yield browser
    browser.quit()
    program.stop()


@pytest.fixture
def page(browser, request):
    """A new chat; a picture of its end is kept."""
    yield Page(browser, browser.url)
    name = request.node.name.translate(str.maketrans("[]/", "---"))
    browser.save_screenshot(str(WORK / f"{name}.png"))


def pytest_terminal_summary(terminalreporter):
    terminalreporter.write_line("\n\n| check | outcome | s |\n|---|---|---|")
    for outcome in ("passed", "failed", "error"):
        for report in terminalreporter.stats.get(outcome, []):
            name = report.nodeid.split("::")[-1]
            terminalreporter.write_line(f"| {name} | {outcome} | {report.duration:.0f} |")

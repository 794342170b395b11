"""The real Open WebUI against the real server, in a browser, through both kinds of connection."""

import json

import httpx
import pytest
from conftest import KINDS
from server import wait_until

QUESTION = "What is the capital of France?"
PARIS = "The capital of France is Paris."
PATIENCE_S = 180

both = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(autouse=True)
def doing(request, recorders):
    """What is written down says what was being done."""
    for recorder in recorders.values():
        recorder.doing = request.node.originalname.removeprefix("test_").replace("_", " ")


def chats(recorder, role="user"):
    """Chats that were asked for, ending in a turn of `role`; titles and their kind are not streamed."""
    asked = (note for note in recorder.requests if note["method"] == "POST" and note["body"].get("stream"))
    return [note for note in asked if note["body"]["messages"][-1]["role"] == role]


def tasks(recorder, title):
    begins = "### Task:\nGenerate a concise title" if title else "### Task:"
    posts = (note for note in recorder.requests if note["method"] == "POST" and not note["body"].get("stream"))
    return [note for note in posts if note["body"].get("messages", [{}])[0].get("content", "").startswith(begins)]


def whole(note):
    return note.get("end") == "whole"


def metric(server, name):
    lines = httpx.get(f"{server.url}/metrics").text.splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith(f"nanoinfer_{name} ")))


def test_models_are_listed(page):
    assert page.models() == ["openai.nano-chat", "openai-slow.slow", "ollama.nano-chat", "ollama-slow.slow"]
    status, text = page.fetch("/ollama/api/version")
    assert status == 200 and [int(part) for part in json.loads(text)["version"].split(".")] >= [0, 6, 4], text
    for path in ("/ollama/api/tags", "/ollama/api/ps", "/openai/models"):
        status, text = page.fetch(path)
        assert status == 200 and "nano-chat" in text, text


@both
def test_a_chat(page, recorders, kind):
    """Streamed, with the tools that Open WebUI offers every model, which are left out with a word."""
    page.select(f"{kind}.nano-chat")
    before = len(chats(recorders[kind, "nano-chat"]))
    assert page.ask(QUESTION) == [PARIS]
    assert len(page.ask("What is a cat?")) == 1
    first, second = chats(recorders[kind, "nano-chat"])[before:]
    assert first["status"] == second["status"] == 200 and whole(first) and whole(second)
    assert first["said"].count("\n") > 5 and "`tools` were left out" in first["said"]
    assert len(json.dumps(first["body"]["tools"])) > 20_000
    assert len(second["body"]["messages"]) == 3


@both
def test_regenerate(page, recorders, kind):
    page.select(f"{kind}.nano-chat")
    page.ask(QUESTION)
    before = len(chats(recorders[kind, "nano-chat"]))
    page.click("Regenerate")
    page.click("Try Again")
    page.wait(lambda: [whole(note) for note in chats(recorders[kind, "nano-chat"])[before:]] == [True], "the second answer")
    page.wait(lambda: page.is_idle() and page.answers() == [PARIS], "the second answer on the page")


@both
def test_stop_in_the_middle_and_continue(page, servers, recorders, kind):
    server, recorder = servers["slow"], recorders[kind, "slow"]
    page.select(f"{kind}-slow.slow")
    page.send("Tell me everything.")
    page.wait(lambda: page.answers() and len(page.answers()[0]) > 40 and page.buttons("Stop"), "some of the answer")
    page.click("Stop")
    page.wait(page.is_idle, "the stop")
    (chat,) = chats(recorder)
    wait_until(lambda: chat.get("end"), "the end of the request", PATIENCE_S)
    assert chat["end"] == "cut"
    # Its sequence ends with it; what may still run beside is what was asked for a title.
    beside = [note for kind in KINDS for note in tasks(recorders[kind, "slow"], False)]
    wait_until(
        lambda: metric(server, "num_requests_running") <= sum(not whole(note) for note in beside), "the end of the sequence", PATIENCE_S
    )
    kept = page.answers()[0]
    assert len(kept) > 40
    page.click("Continue Response")
    page.wait(lambda: len(page.answers()[0]) > len(kept) + 40, "more of the answer")
    page.click("Stop")
    page.wait(page.is_idle, "the second stop")
    assert page.answers()[0].startswith(kept)
    (more,) = chats(recorder, "assistant")
    assert more["status"] == 200 and more["body"]["messages"][-1]["content"].strip()


@both
def test_continue_a_response(page, recorders, kind):
    page.select(f"{kind}.nano-chat")
    assert page.ask(QUESTION) == [PARIS]
    before = len(chats(recorders[kind, "nano-chat"], "assistant"))
    page.click("Continue Response")
    page.wait(lambda: [whole(note) for note in chats(recorders[kind, "nano-chat"], "assistant")[before:]] == [True], "more")
    page.wait(page.is_idle, "the end of it")
    assert page.answers()[0].startswith(PARIS)


@both
def test_titles(page, servers, recorders, kind):
    """Titles, tags and what to ask next are asked for after a chat. The demo model's context is too short for how they are
    asked for, which is said; a longer one answers."""
    demo, slow = recorders[kind, "nano-chat"], recorders[kind, "slow"]
    page.wait(lambda: tasks(demo, True) and all(map(whole, tasks(demo, False))), "the demo model's titles")
    for note in tasks(demo, False):
        assert note["status"] == 400 and "maximum context length is 256 tokens" in note["said"], note
    page.wait(lambda: tasks(slow, True) and all(map(whole, tasks(slow, False))), "a title")
    for note in tasks(slow, True):
        assert note["status"] == 200 and json.loads(note["said"]), note
    page.wait(lambda: QUESTION in page.browser.find_element("tag name", "body").get_attribute("textContent"), "the chats by title")


def test_a_model_is_unloaded_and_answers_again(page, recorders):
    """The button is there for Ollama's models; here it frees nothing, and does no harm."""
    page.models()
    page.click("Eject model", 0)

    def unloads():
        return [note for note in recorders["ollama", "nano-chat"].requests if note["path"] == "/api/generate"]

    page.wait(lambda: unloads() and whole(unloads()[0]), "the request")
    assert unloads()[0]["body"]["keep_alive"] == 0 and json.loads(unloads()[0]["said"])["done"]
    page.close_models()
    page.select("ollama.nano-chat")
    assert page.ask(QUESTION) == [PARIS]


def test_two_models_side_by_side(page, recorders):
    """The last, as the selector goes on to take several."""
    page.select("openai.nano-chat", "ollama.nano-chat")
    before = {kind: len(chats(recorders[kind, "nano-chat"])) for kind in KINDS}
    assert page.ask(QUESTION) == [PARIS, PARIS]
    assert {kind: len(chats(recorders[kind, "nano-chat"])) - 1 for kind in KINDS} == before

"""The requests that Open WebUI sent when it was driven in a browser (`.ci/long/run --record`), sent again as they were."""

import json
import pathlib

import httpx
import pytest

RECORDED = json.loads((pathlib.Path(__file__).parent / "recorded/open_webui.json").read_text())
QUESTION = "What is the capital of France?"
PARIS = "The capital of France is Paris."
# What a person may set: the most likely token, each time.
GREEDY = {"/v1/chat/completions": {"temperature": 0}, "/api/chat": {"options": {"temperature": 0, "repeat_penalty": 1}}}


def name(request):
    return f"{request['connection']}: {request['doing']}: {request['method']} {request['path']} {request['status']}"


def body(request):
    """What was sent, with its tools where the file has their name."""
    sent = dict(request["body"])
    if "tools" in sent:
        sent["tools"] = RECORDED["tools"][sent["tools"]]
    return sent


def send(server, request, **changes):
    content = json.dumps(body(request) | changes).encode() if "body" in request else None
    return httpx.request(request["method"], server.url + request["path"], headers=request["headers"], content=content)


def text(reply):
    """Of an answer's pieces, in either dialect."""
    lines = [line.removeprefix("data: ") for line in reply.text.splitlines() if line and line != "data: [DONE]"]
    pieces = [json.loads(line) for line in lines]
    deltas = [piece["choices"][0]["delta"] if "choices" in piece else piece["message"] for piece in pieces]
    return "".join(delta.get("content") or "" for delta in deltas)


def chats(role, turns):
    """Chats of the recording with so many turns, the last of which is of `role`."""
    asked = [request for request in RECORDED["requests"] if request.get("body", {}).get("stream")]
    found = [request for request in asked if [turn["role"] for turn in request["body"]["messages"]][turns - 1 :] == [role]]
    assert {request["connection"] for request in found} == {"openai", "ollama"}
    return pytest.mark.parametrize("request_", found, ids=name)


@pytest.mark.parametrize("request_", RECORDED["requests"], ids=name)
def test_is_answered_as_it_was(server, request_):
    reply = send(server, request_)
    assert reply.status_code == request_["status"], reply.text
    if reply.status_code == 400:
        # What the demo model's context has no room for; Open WebUI makes a title of the question instead.
        assert "maximum context length is 256 tokens" in reply.text
    elif request_["method"] == "GET":
        assert "nano-chat" in reply.text or request_["path"] == "/api/version"
    if "tools" in request_.get("body", {}):
        assert "`tools` were left out" in reply.headers["x-nanoinfer-warning"]
        assert reply.text.count("`tools` were left out") == 1


def test_the_recording_has_what_matters():
    """Else the tests around it would say less than they seem to."""
    asked = {(request["connection"], request["doing"], request["method"], request["path"]) for request in RECORDED["requests"]}
    for expected in (
        ("openai", "models are listed", "GET", "/v1/models"),
        ("ollama", "models are listed", "GET", "/api/tags"),
        ("ollama", "models are listed", "GET", "/api/ps"),
        ("ollama", "models are listed", "GET", "/api/version"),
    ):
        assert expected in asked
    assert len(json.dumps(RECORDED["tools"]["tools 1"])) > 20_000
    assert all("tools" in request["body"] for request in RECORDED["requests"] if request.get("body", {}).get("stream"))
    # Titles and their kind.
    assert any(not request["body"].get("stream") for request in RECORDED["requests"] if "body" in request)


@chats("user", 1)
def test_a_chat(server, request_):
    assert body(request_)["messages"][0]["content"] == QUESTION
    reply = send(server, request_, **GREEDY[request_["path"]])
    assert text(reply) == PARIS
    kind = "text/event-stream" if request_["connection"] == "openai" else "application/x-ndjson"
    assert kind in reply.headers["content-type"]


@chats("user", 3)
def test_a_second_question(server, request_):
    assert text(send(server, request_, **GREEDY[request_["path"]]))


@chats("assistant", 2)
def test_a_response_is_continued(server, request_):
    """As when it was stopped in the middle: what comes is put behind what is there."""
    begun = "The capital of"
    messages = [*body(request_)["messages"][:-1], {"role": "assistant", "content": begun}]
    assert begun + text(send(server, request_, messages=messages, **GREEDY[request_["path"]])) == PARIS


TASKS = [request for request in RECORDED["requests"] if "messages" in request.get("body", {}) and not request["body"].get("stream")]


@pytest.mark.parametrize("request_", TASKS, ids=name)
def test_titles_that_fit(server, request_):
    """As titles and their kind are asked for: whole, without tools; of a prompt that the demo model has room for."""
    reply = send(server, request_, messages=[{"role": "user", "content": f"### Task:\nA title.\n{QUESTION}"}])
    assert reply.status_code == 200, reply.text
    # A title may be longer than the demo model's context.
    assert all("max_tokens" in warning for warning in reply.json().get("warnings", []))

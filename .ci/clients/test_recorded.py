"""Requests that showed something when other real clients sent them, as those sent them."""

import gzip
import json

import httpx
import pytest

FRANCE = [{"role": "user", "content": "What is the capital of France?"}]
PARIS = "The capital of France is Paris."


@pytest.fixture
def http(server):
    with httpx.Client(base_url=server.url, headers={"authorization": "Bearer none"}) as http:
        yield http


def test_promptfoo_asks_for_more_than_there_is_room_for(http):
    """Its completions have `max_tokens` 1024 unless told otherwise; a prompt that fits is answered, and the cut is said."""
    body = {
        "model": "nano-chat", "prompt": "User: What is the capital of France?\nAssistant:", "max_tokens": 1024, "temperature": 0,
        "top_p": 1, "presence_penalty": 0, "frequency_penalty": 0, "best_of": 1, "stop": ["<|im_end|>", "<|endoftext|>"],
    }
    reply = http.post("/v1/completions", json=body)
    assert reply.status_code == 200 and PARIS in reply.json()["choices"][0]["text"]
    (warning,) = reply.json()["warnings"]
    assert "max_tokens" in warning and "1024" in warning and reply.headers["x-nanoinfer-warning"] == warning


def test_versions_are_integers_and_new_enough(http):
    """Open WebUI takes the parts for integers; VS Code's Copilot asks for 0.6.4 at least."""
    reply = http.get("/api/version").json()
    assert tuple(int(part) for part in reply["version"].split(".")) >= (0, 6, 4)
    assert len(reply["version"].split(".")) == 3 and reply["nanoinfer"]


@pytest.mark.parametrize(
    ("path", "body"), [("/v1/completions", {"prompt": "Once"}), ("/v1/chat/completions", {"messages": FRANCE})]
)
def test_load_generators_count_tokens_as_they_come(http, path, body):
    """guidellm asks for the usage so far in every chunk."""
    options = {"include_usage": True, "continuous_usage_stats": True}
    reply = http.post(path, json={"model": "nano-chat", "max_tokens": 6, "ignore_eos": True, "stream": True, "stream_options": options, **body})
    chunks = [json.loads(line.removeprefix("data: ")) for line in reply.text.splitlines() if line.startswith("data: {")]
    counts = [chunk["usage"]["completion_tokens"] for chunk in chunks]
    assert counts == sorted(counts) and counts[-1] == 6 and len(set(counts)) > 2
    assert len({chunk["usage"]["prompt_tokens"] for chunk in chunks}) == 1


def test_what_a_log_may_be_searched_for(http):
    """Gateways send an id with a request and look for it in the answer."""
    assert http.get("/v1/models", headers={"x-request-id": "of-a-gateway-7"}).headers["x-request-id"] == "of-a-gateway-7"
    assert http.get("/v1/models").headers["x-request-id"]


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/api/chat", "/tokenize"])
def test_compressed_bodies_are_refused_by_name(http, path):
    body = gzip.compress(json.dumps({"model": "nano-chat", "messages": FRANCE, "prompt": "x"}).encode())
    reply = http.post(path, content=body, headers={"content-encoding": "gzip", "content-type": "application/json"})
    assert reply.status_code == 415 and "gzip" in reply.text


@pytest.mark.parametrize("base", ["/v1/", "//v1", "//v1//"])
def test_base_addresses_with_slashes(server, http, base):
    """Of a base address with a slash at its end and a path with one at its start, many clients make two."""
    base = server.url + base
    assert http.get(f"{base}/models").json()["data"][0]["id"] == "nano-chat"
    assert http.get(f"{base}/models/").status_code == 200
    body = {"model": "nano-chat", "messages": FRANCE, "temperature": 0}
    for path in (f"{base}/chat/completions", f"{base}/chat/completions/"):
        reply = http.post(path, json=body)
        assert reply.status_code == 200 and reply.json()["choices"][0]["message"]["content"] == PARIS


@pytest.mark.parametrize(
    ("path", "body"), [("/v1/completions", {"prompt": "x"}), ("/v1/chat/completions", {"messages": FRANCE})]
)
def test_a_number_in_quotes_is_refused_by_name(http, path, body):
    """`http POST … max_tokens=5`: httpie makes a string of what follows `=`, a number of what follows `:=`."""
    reply = http.post(path, json={"model": "nano-chat", "max_tokens": "5", **body})
    assert reply.status_code == 400 and reply.json()["error"]["param"] == "max_tokens"


@pytest.mark.parametrize(
    ("path", "options"), [("/v1/chat/completions", {"temperature": 0}), ("/api/chat", {"options": {"temperature": 0}, "stream": False})]
)
def test_fetch_of_node_says_a_mode_and_no_origin(http, path, options):
    """What the AI SDK, LangChain in JavaScript and ollama-js go through."""
    headers = {
        "content-type": "application/json", "accept": "*/*", "accept-language": "*", "sec-fetch-mode": "cors", "user-agent": "node",
        "accept-encoding": "gzip, deflate",
    }
    reply = http.post(path, json={"model": "nano-chat", "messages": FRANCE, **options}, headers=headers)
    assert reply.status_code == 200 and "Paris" in reply.text

"""The official ollama package: sync, async, streaming, errors, cancellation."""

import ollama
import pytest
from server import wait_until

FRANCE = [{"role": "user", "content": "What is the capital of France?"}]
PARIS = "The capital of France is Paris."
GREEDY = {"temperature": 0, "repeat_penalty": 1}


@pytest.fixture
def client(server):
    return ollama.Client(host=server.url)


def test_the_library(client):
    assert client.list().models[0].model == "nano-chat"
    assert client.ps().models[0].model == "nano-chat"
    shown = client.show("nano-chat")
    assert shown.modelinfo["gpt2.context_length"] == 256 and shown.capabilities == ["completion"]
    assert client.pull("nano-chat").status == "success"
    assert [step.status for step in client.pull("nano-chat", stream=True)][-1] == "success"


def test_chat(client):
    reply = client.chat(model="nano-chat", messages=FRANCE, options=GREEDY)
    assert reply.message.content == PARIS and reply.done and reply.done_reason == "stop"
    assert reply.eval_count > 3 and reply.total_duration >= reply.eval_duration > 0
    parts = list(client.chat(model="nano-chat:latest", messages=FRANCE, options=GREEDY, stream=True))
    assert "".join(part.message.content for part in parts) == PARIS
    assert [part.done for part in parts[:-1]] == [False] * (len(parts) - 1) and parts[-1].done
    assert client.chat(model="nano-chat", messages=[]).done_reason == "load"


def test_generate(client):
    reply = client.generate(model="nano-chat", prompt=FRANCE[0]["content"], options=GREEDY)
    assert reply.response == PARIS
    parts = list(client.generate(model="nano-chat", prompt=FRANCE[0]["content"], options=GREEDY, stream=True))
    assert "".join(part.response for part in parts) == PARIS and parts[-1].done
    assert client.generate(model="nano-chat").done_reason == "load"


def test_thinking(client, thinker):
    thinking = ollama.Client(host=thinker.url)
    assert thinking.show("thinker").capabilities == ["completion", "thinking"]
    options = GREEDY | {"num_predict": 8}
    reply = thinking.chat(model="thinker", messages=FRANCE, options=options, think=True)
    assert reply.message.thinking and reply.message.content == ""
    parts = list(thinking.chat(model="thinker", messages=FRANCE, options=options, think=True, stream=True))
    assert "".join(part.message.thinking or "" for part in parts) == reply.message.thinking
    again = thinking.generate(model="thinker", prompt=FRANCE[0]["content"], options=options, think=True)
    assert (again.thinking, again.response) == (reply.message.thinking, "")
    reply = thinking.chat(model="thinker", messages=FRANCE, options=GREEDY, think=False)
    assert (reply.message.thinking, reply.message.content) == (None, PARIS)
    with pytest.raises(ollama.ResponseError) as refused:
        client.chat(model="nano-chat", messages=FRANCE, think=True)
    assert "does not support thinking" in refused.value.error


def test_logprobs(client):
    reply = client.chat(model="nano-chat", messages=FRANCE, options=GREEDY, logprobs=True, top_logprobs=2)
    assert len(reply.logprobs) == reply.eval_count and len(reply.logprobs[0].top_logprobs) == 2


def test_errors(client):
    with pytest.raises(ollama.ResponseError) as missing:
        client.chat(model="llama3", messages=FRANCE)
    assert (missing.value.status_code, missing.value.error) == (404, "model 'llama3' not found")
    with pytest.raises(ollama.ResponseError) as wrong:
        client.chat(model="nano-chat", messages=FRANCE, options={"temperature": -1})
    assert wrong.value.status_code == 400 and "options.temperature" in wrong.value.error
    with pytest.raises(ollama.ResponseError) as embed:
        client.embed(model="nano-chat", input="x")
    assert "does not support embeddings" in embed.value.error
    with pytest.raises(ollama.ResponseError) as changed:
        client.delete("nano-chat")
    assert changed.value.status_code == 400


async def test_async(server):
    client = ollama.AsyncClient(host=server.url)
    assert (await client.chat(model="nano-chat", messages=FRANCE, options=GREEDY)).message.content == PARIS
    parts = [part async for part in await client.chat(model="nano-chat", messages=FRANCE, options=GREEDY, stream=True)]
    assert "".join(part.message.content for part in parts) == PARIS


def test_a_stream_that_is_closed_frees_its_blocks(client, metric):
    before = metric("generation_tokens_total")
    # Nothing but the limit ends it: the end of text is one of 4,096 tokens that are about equally likely.
    options = {"num_predict": 240, "temperature": 100, "seed": 3}
    parts = client.generate(model="nano-chat", prompt="a", raw=True, options=options, stream=True)
    next(parts)
    parts.close()
    wait_until(lambda: metric("num_requests_running") == 0 and metric("kv_cache_usage_perc") == 0, "free blocks")
    assert metric("generation_tokens_total") - before < 200, "it was stopped, not finished"

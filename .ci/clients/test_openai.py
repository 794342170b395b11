"""The official openai package: sync, async, streaming, errors, cancellation."""

import asyncio

import openai
import pytest
from server import Server, wait_until

FRANCE = [{"role": "user", "content": "What is the capital of France?"}]
PARIS = "The capital of France is Paris."


@pytest.fixture
def client(server):
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


@pytest.fixture
def async_client(server):
    return openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def test_models(client):
    assert [model.id for model in client.models.list()] == ["nano-chat"]
    assert client.models.retrieve("nano-chat").owned_by == "nanoinfer"


def test_chat_whole(client):
    reply = client.chat.completions.create(
        model="nano-chat", messages=FRANCE, temperature=0, n=2, logprobs=True, top_logprobs=3
    )
    assert [choice.message.content for choice in reply.choices] == [PARIS, PARIS]
    choice = reply.choices[0]
    assert choice.finish_reason == "stop" and choice.message.role == "assistant"
    assert len(choice.logprobs.content[0].top_logprobs) == 3
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens


def test_chat_streamed(client):
    chunks = list(
        client.chat.completions.create(
            model="nano-chat", messages=FRANCE, temperature=0, stream=True, stream_options={"include_usage": True}
        )
    )
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == PARIS
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens > 3


def test_the_packages_own_accumulation_of_a_stream(client):
    with client.chat.completions.stream(model="nano-chat", messages=FRANCE, temperature=0) as stream:
        for _ in stream:
            pass
        assert stream.get_final_completion().choices[0].message.content == PARIS


def test_thinking(thinker):
    client = openai.OpenAI(base_url=f"{thinker.url}/v1", api_key="none", max_retries=0)
    options = dict(model="thinker", messages=FRANCE, temperature=0, max_tokens=8)
    thinks = {"chat_template_kwargs": {"enable_thinking": True}}
    message = client.chat.completions.create(extra_body=thinks, **options).choices[0].message
    assert message.reasoning_content and message.content is None
    chunks = list(client.chat.completions.create(extra_body=thinks, stream=True, **options))
    deltas = [chunk.choices[0].delta for chunk in chunks]
    assert "".join(getattr(delta, "reasoning_content", "") for delta in deltas) == message.reasoning_content
    assert "".join(delta.content or "" for delta in deltas) == ""
    message = client.chat.completions.create(**options | {"max_tokens": 30}).choices[0].message
    assert message.content == PARIS and not hasattr(message, "reasoning_content")


def test_completions(client):
    options = dict(model="nano-chat", max_tokens=8, temperature=0, seed=1)
    whole = client.completions.create(prompt=["User: Hello!\nAssistant:", "User: Hi"], echo=True, logprobs=2, **options)
    assert [choice.index for choice in whole.choices] == [0, 1]
    assert whole.choices[0].text.startswith("User: Hello!")
    logprobs = whole.choices[0].logprobs
    assert logprobs.token_logprobs[0] is None and len(logprobs.tokens) == len(logprobs.text_offset)
    one = client.completions.create(prompt="User: Hello!\nAssistant:", **options).choices[0].text
    pieces = client.completions.create(prompt="User: Hello!\nAssistant:", stream=True, **options)
    assert "".join(piece.choices[0].text for piece in pieces) == one


def test_errors_have_their_classes(client):
    chat = client.chat.completions.create
    with pytest.raises(openai.NotFoundError) as missing:
        chat(model="gpt-4", messages=FRANCE)
    assert missing.value.code == "model_not_found" and missing.value.param == "model"
    with pytest.raises(openai.BadRequestError) as wrong:
        chat(model="nano-chat", messages=FRANCE, temperature=-1)
    assert wrong.value.param == "temperature"
    with pytest.raises(openai.BadRequestError) as tools:
        tool = {"type": "function", "function": {"name": "f"}}
        chat(model="nano-chat", messages=FRANCE, tools=[tool], tool_choice="required")
    assert tools.value.code == "unsupported"
    with pytest.raises(openai.BadRequestError) as long:
        client.completions.create(model="nano-chat", prompt="word " * 400)
    assert long.value.code == "context_length_exceeded"


def test_a_key(server):
    locked = Server("--api-key", "s3cret")
    try:
        with pytest.raises(openai.AuthenticationError):
            openai.OpenAI(base_url=f"{locked.url}/v1", api_key="wrong", max_retries=0).models.list()
        right = openai.OpenAI(base_url=f"{locked.url}/v1", api_key="s3cret", max_retries=0)
        assert right.models.list().data[0].id == "nano-chat"
    finally:
        locked.stop()


async def test_async_streams_at_once(async_client):
    async def ask():
        stream = await async_client.chat.completions.create(
            model="nano-chat", messages=FRANCE, temperature=0, stream=True
        )
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    assert await asyncio.gather(*[ask() for _ in range(8)]) == [PARIS] * 8


def test_a_stream_that_is_closed_frees_its_blocks(client, metric):
    before = metric("generation_tokens_total")
    stream = client.completions.create(
        model="nano-chat", prompt="Once", max_tokens=250, n=8, stream=True, extra_body={"ignore_eos": True}
    )
    next(iter(stream))
    stream.close()
    wait_until(lambda: metric("num_requests_running") == 0 and metric("kv_cache_usage_perc") == 0, "free blocks")
    assert metric("generation_tokens_total") - before < 8 * 250 / 2, "it was stopped, not finished"

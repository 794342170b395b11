"""Answers that must be what a program asked for, through the clients that programs use."""

import enum
import json
import pathlib
import subprocess

import httpx
import instructor
import ollama
import openai
import pydantic
import pytest
from javascript import command as javascript
from langchain_ollama import ChatOllama
from langchain_openai import ChatOpenAI
from pydantic_ai import Agent, NativeOutput
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider

MODEL = "nano-chat"
QUESTION = "What is a cat?"


class Kind(enum.StrEnum):
    CAT = "cat"
    DOG = "dog"


class Animal(pydantic.BaseModel):
    """Bounded, so that a model that knows no JSON comes to its end."""

    model_config = pydantic.ConfigDict(extra="forbid")

    kind: Kind
    legs: list[Kind] = pydantic.Field(min_length=1, max_length=2)
    tame: bool
    age: int = pydantic.Field(ge=0, le=99)
    size: Kind | None


# Beyond what the demo model's makers recommend; its context has 256.
ROOM = 230


@pytest.fixture
def client(server):
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none")


def test_openai_parses_a_pydantic_model(client):
    messages = [{"role": "user", "content": QUESTION}]
    for temperature in (0, 1):
        reply = client.chat.completions.parse(model=MODEL, messages=messages, response_format=Animal, temperature=temperature, seed=1, max_tokens=ROOM)
        animal = reply.choices[0].message.parsed
        assert isinstance(animal, Animal) and len(animal.legs) in (1, 2) and reply.choices[0].finish_reason == "stop"
    with client.chat.completions.stream(model=MODEL, messages=messages, response_format=Animal, temperature=0, max_tokens=ROOM) as stream:
        stream.until_done()
        assert isinstance(stream.get_final_completion().choices[0].message.parsed, Animal)
    reply = client.responses.parse(model=MODEL, input=QUESTION, text_format=Animal, temperature=0, max_output_tokens=ROOM)
    assert isinstance(reply.output_parsed, Animal) and reply.status == "completed"
    with client.responses.stream(model=MODEL, input=QUESTION, text_format=Animal, temperature=0, max_output_tokens=ROOM) as stream:
        stream.until_done()
        assert isinstance(stream.get_final_response().output_parsed, Animal)


def test_every_choice_and_what_is_told_of_it(client):
    body = {"structured_outputs": {"choice": ["yes", "no", "perhaps"]}, "explain": True}
    reply = client.completions.create(model=MODEL, prompt="Is it?", n=5, temperature=1, seed=3, logprobs=2, extra_body=body)
    assert {choice.text for choice in reply.choices} <= {"yes", "no", "perhaps"}
    first = reply.choices[0].model_extra["explain"][0]["chain"][0]
    assert first["processor"] == "grammar" and 4000 < first["removed"] < 4096
    assert len(reply.choices[0].logprobs.top_logprobs[0]) >= 2, "of the model, not of the grammar"
    cut = client.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": "x"}], response_format={"type": "json_object"}, max_tokens=2, temperature=0)
    assert cut.choices[0].finish_reason == "length" and cut.choices[0].message.content.startswith("{")
    stopped = client.completions.create(model=MODEL, prompt="x", temperature=0, stop=["5"], extra_body={"guided_regex": "1234567"})
    assert (stopped.choices[0].text, stopped.choices[0].finish_reason) == ("1234", "stop")


def test_ollamas_format(server):
    client = ollama.Client(host=server.url)
    messages = [{"role": "user", "content": QUESTION}]
    options = {"temperature": 0, "num_predict": ROOM}
    reply = client.chat(model=MODEL, messages=messages, format=Animal.model_json_schema(), options=options)
    assert Animal.model_validate_json(reply.message.content)
    parts = client.generate(model=MODEL, prompt=QUESTION, format=Animal.model_json_schema(), options=options, stream=True)
    assert Animal.model_validate_json("".join(part.response for part in parts))
    reply = client.chat(model=MODEL, messages=messages, format="json", options=options | {"num_predict": 20})
    assert reply.message.content.startswith("{")


def test_langchain(server):
    for model in (
        ChatOpenAI(base_url=f"{server.url}/v1", api_key="none", model=MODEL, temperature=0, max_tokens=ROOM),
        ChatOllama(base_url=server.url, model=MODEL, temperature=0, num_predict=ROOM),
    ):
        structured = model.with_structured_output(Animal, method="json_schema")
        assert isinstance(structured.invoke(QUESTION), Animal)


def test_instructor(client):
    asking = instructor.from_openai(client, mode=instructor.Mode.JSON_SCHEMA)
    messages = [{"role": "user", "content": QUESTION}]
    assert isinstance(asking.chat.completions.create(model=MODEL, messages=messages, response_model=Animal, temperature=0, max_tokens=ROOM), Animal)


def test_pydantic_ai(server):
    provider = OpenAIProvider(base_url=f"{server.url}/v1", api_key="none")
    for model in (OpenAIChatModel(MODEL, provider=provider), OpenAIResponsesModel(MODEL, provider=provider)):
        agent = Agent(model, output_type=NativeOutput(Animal), model_settings={"temperature": 0, "max_tokens": ROOM})
        assert isinstance(agent.run_sync(QUESTION).output, Animal)


def test_the_ai_sdk(server):
    program = pathlib.Path(__file__).with_name("ai_sdk.mjs").read_text()
    run = subprocess.run(javascript(program, server.url, MODEL), capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    whole, streamed, word = map(json.loads, run.stdout.splitlines())
    assert Animal.model_validate(whole) == Animal.model_validate(streamed) and word in ("cat", "dog")


def test_refusals_say_where(client):
    schema = {"type": "object", "properties": {"x": {"type": "array", "uniqueItems": True}}}
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "x"}],
            response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": schema}})
    assert "`uniqueItems` at #/properties/x" in refused.value.body["message"]
    assert refused.value.body["param"] == "response_format.json_schema.schema"


def test_the_same_text_alone_and_beside_others(server):
    """The same bits at any batch: one answer, and the same among thirty."""
    body = {"prompt": QUESTION, "seed": 7, "temperature": 1, "structured_outputs": {"json": Animal.model_json_schema()}}
    alone = httpx.post(f"{server.url}/v1/completions", json=body | {"max_tokens": ROOM}, timeout=60).json()["choices"][0]["text"]
    together = httpx.post(f"{server.url}/v1/completions", json=body | {"max_tokens": ROOM, "n": 30}, timeout=60).json()["choices"]
    assert together[0]["text"] == alone and len({choice["text"] for choice in together}) > 1
    assert all(Animal.model_validate(json.loads(choice["text"])) for choice in together)

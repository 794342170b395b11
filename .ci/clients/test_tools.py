"""A loop of tool calls, through the clients that programs use, with a template as Qwen's."""

import json
import shutil

import ollama
import openai
import pytest
from langchain_core.tools import tool as langchain_tool
from langchain_openai import ChatOpenAI
from pydantic_ai import Agent
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider
from server import ROOT, Server

# Names only: the demo model has 256 tokens of context.
TEMPLATE = """{% if tools %}{% for tool in tools %}{{ tool.function.name }} {% endfor %}{# calls stand in <tool_call> and </tool_call> #}
{% endif %}{% for m in messages %}{% if m.role == 'user' %}User: {{ m.content }}
{% elif m.role == 'tool' %}Tool: {{ m.content }}
{% elif m.role == 'assistant' %}Assistant: {{ m.content }}{% for call in m.tool_calls %}<tool_call>
{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}
</tool_call>{% endfor %}{{ eos_token }}
{% endif %}{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"""
PARAMETERS = {"type": "object", "properties": {"city": {"enum": ["Rome", "Paris"]}, "days": {"enum": [1, 2, 3]}}, "required": ["city", "days"],
              "additionalProperties": False}
WEATHER = {"type": "function", "function": {"name": "weather", "description": "Weather of a city", "parameters": PARAMETERS}}
FRANCE = [{"role": "user", "content": "What is the capital of France?"}]


@pytest.fixture(scope="module")
def caller(tmp_path_factory):
    """The demo model with a template that takes tools. It has never seen a call: where one is required, the grammar alone makes it."""
    folder = tmp_path_factory.mktemp("models") / "caller"
    shutil.copytree(ROOT / "launcher/demo/nano-chat", folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    server = Server("--model", str(folder), "--nproc", "2")
    yield server
    server.stop()


@pytest.fixture
def client(caller):
    return openai.OpenAI(base_url=f"{caller.url}/v1", api_key="none")


def check(name, arguments):
    assert name == "weather" and arguments["city"] in ("Rome", "Paris") and arguments["days"] in (1, 2, 3)


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "weather"}}])
def test_the_loop_of_openais_client(client, choice):
    messages = list(FRANCE)
    asked = {"model": "caller", "tools": [WEATHER], "temperature": 0, "parallel_tool_calls": False, "max_tokens": 150}
    reply = client.chat.completions.create(messages=messages, tool_choice=choice, **asked).choices[0]
    assert reply.finish_reason == "tool_calls" and reply.message.content is None
    (call,) = reply.message.tool_calls
    check(call.function.name, json.loads(call.function.arguments))
    messages += [reply.message.model_dump(exclude_none=True), {"role": "tool", "tool_call_id": call.id, "content": "Rain"}]
    last = client.chat.completions.create(messages=messages, tool_choice="none", **asked).choices[0]
    assert last.finish_reason in ("stop", "length") and last.message.tool_calls is None
    pieces = client.chat.completions.create(messages=FRANCE, tool_choice=choice, stream=True, **asked)
    deltas = [call for piece in pieces for call in piece.choices[0].delta.tool_calls or []]
    assert deltas[0].id and deltas[0].function.name == "weather" and len(deltas) > 2
    assert "".join(delta.function.arguments for delta in deltas) == call.function.arguments


def test_several_at_once_and_none(client):
    reply = client.chat.completions.create(model="caller", messages=FRANCE, tools=[WEATHER], tool_choice="required", temperature=1, seed=2, max_tokens=150)
    for call in reply.choices[0].message.tool_calls[:-1]:
        check(call.function.name, json.loads(call.function.arguments))
    reply = client.chat.completions.create(model="caller", messages=FRANCE, tools=[WEATHER], temperature=0, max_tokens=20)
    assert reply.choices[0].message.tool_calls is None and reply.choices[0].message.content


def test_the_responses_form(client):
    flat = {"type": "function", "strict": True} | WEATHER["function"]
    asked = {"model": "caller", "tools": [flat], "temperature": 0, "parallel_tool_calls": False, "max_output_tokens": 150}
    reply = client.responses.create(input="Rome?", tool_choice="required", **asked)
    (call,) = reply.output
    assert call.type == "function_call"
    check(call.name, json.loads(call.arguments))
    answered = [{"role": "user", "content": "Rome?"}, call.model_dump(exclude_none=True),
                {"type": "function_call_output", "call_id": call.call_id, "output": "Rain"}]
    assert client.responses.create(input=answered, tool_choice="none", **asked).output_text
    kinds = [event.type for event in client.responses.create(input="Rome?", tool_choice="required", stream=True, **asked)]
    assert kinds[0] == "response.created" and kinds[-1] == "response.completed"
    assert kinds.count("response.function_call_arguments.done") == 1


def test_ollamas_client(caller):
    client = ollama.Client(host=caller.url)
    asked = {"model": "caller", "messages": FRANCE, "tools": [WEATHER], "options": {"temperature": 0}}
    assert client.chat(**asked).message.tool_calls is None
    assert "tools" in client.show("caller").capabilities


def test_langchain_and_pydantic_ai(caller):
    @langchain_tool
    def weather(city: str) -> str:
        """Weather of a city."""
        return "Rain"

    model = ChatOpenAI(base_url=f"{caller.url}/v1", api_key="none", model="caller", temperature=0, max_tokens=60)
    assert model.bind_tools([weather], tool_choice="none").invoke("Hello!").tool_calls == []
    # The first answer must call one of two, and is at its end where it calls what makes the result.
    provider = OpenAIProvider(base_url=f"{caller.url}/v1", api_key="none")
    agent = Agent(OpenAIChatModel("caller", provider=provider), output_type=bool, model_settings={"temperature": 0, "parallel_tool_calls": False, "max_tokens": 150})
    assert isinstance(agent.run_sync("Is it?").output, bool)

"""LangChain's ChatOpenAI and ChatOllama: whole, streamed, batched, async."""

import pytest
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langchain_ollama import ChatOllama, OllamaLLM
from langchain_openai import ChatOpenAI

QUESTION = "What is the capital of France?"
PARIS = "The capital of France is Paris."


@pytest.fixture(params=["openai", "ollama"])
def model(request, server):
    if request.param == "openai":
        return ChatOpenAI(base_url=f"{server.url}/v1", api_key="none", model="nano-chat", temperature=0)
    return ChatOllama(base_url=server.url, model="nano-chat", temperature=0, repeat_penalty=1.0)


def test_whole_and_usage(model):
    reply = model.invoke(QUESTION)
    assert reply.content == PARIS and reply.usage_metadata["output_tokens"] > 3


def test_a_conversation(model):
    turns = [SystemMessage("Be kind."), HumanMessage("Hello!"), AIMessage("Hello!"), HumanMessage(QUESTION)]
    assert "Paris" in model.invoke(turns).content


def test_streamed_and_batched(model):
    assert "".join(chunk.content for chunk in model.stream(QUESTION)) == PARIS
    assert [reply.content for reply in model.batch([QUESTION] * 3)] == [PARIS] * 3


async def test_async(model):
    assert (await model.ainvoke(QUESTION)).content == PARIS
    assert "".join([chunk.content async for chunk in model.astream(QUESTION)]) == PARIS


def test_plain_text(server):
    model = OllamaLLM(base_url=server.url, model="nano-chat", temperature=0, repeat_penalty=1.0)
    assert model.invoke(QUESTION) == PARIS

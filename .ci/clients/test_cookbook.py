"""Every block of docs/cookbook.md, as it stands but for the server's address."""

import os
import re
import subprocess
import sys

import openai
import pytest
import yaml
from javascript import command as javascript
from server import ROOT

PARIS = "The capital of France is Paris."
# What LiteLLM would otherwise ask the network for.
LOCAL = {"LITELLM_LOCAL_MODEL_COST_MAP": "True"}
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", (ROOT / "docs/cookbook.md").read_text(), re.MULTILINE | re.DOTALL)


def command(kind, text):
    """What runs a block, which stands in a file of its own."""
    if kind == "python":
        return [sys.executable, "-c", text]
    if kind == "js":
        return javascript(text)
    return ["bash", "-euc", text]


@pytest.mark.parametrize("block", range(len(BLOCKS)), ids=lambda i: f"{i}-{BLOCKS[i][0]}")
def test_a_block_answers(server, block):
    kind, text = BLOCKS[block]
    assert "http://127.0.0.1:8000" in text
    text = text.replace("http://127.0.0.1:8000", server.url)
    if kind == "yaml":
        model = yaml.safe_load(text)["models"][0]
        client = openai.OpenAI(base_url=model["apiBase"], api_key=model["apiKey"])
        question = [{"role": "user", "content": "What is the capital of France?"}]
        said = client.chat.completions.create(model=model["model"], messages=question).choices[0].message.content
    else:
        if text.startswith("export "):
            # Settings of a program that .ci/long runs: here what they say is asked.
            text += 'curl -s "$OPENAI_API_BASE_URL/chat/completions" -H "Authorization: Bearer $OPENAI_API_KEY" ' \
                    """-d '{"messages": [{"role": "user", "content": "What is the capital of France?"}]}'"""
        run = subprocess.run(command(kind, text), capture_output=True, text=True, timeout=120, env=os.environ | LOCAL)
        assert run.returncode == 0, run.stderr
        said = run.stdout
    # Streams of events have the words one by one.
    said = "".join(re.findall(r'"token":"(.*?)"', said)) or said
    assert PARIS in said, said


def test_all_clients_are_there():
    text = (ROOT / "docs/cookbook.md").read_text()
    heads = re.findall(r"^## (.*)$", text, re.MULTILINE)
    assert heads == ["curl", "openai, Python", "openai, JavaScript", "ollama", "LangChain", "LlamaIndex", "LiteLLM", "Open WebUI", "Continue"]

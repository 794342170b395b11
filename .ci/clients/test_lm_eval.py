"""lm-eval's local-completions: its log-likelihoods are those of GPT-2 in numpy, to 1e-4."""

import httpx
import pytest
from conftest import ROOT
from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager
from reference import Gpt2


def evaluate(server, **options):
    arguments = {
        "model": "nano-chat", "base_url": f"{server.url}/v1/completions", "tokenizer_backend": "remote", "num_concurrent": 2, **options,
    }
    tasks = TaskManager(include_path=str(ROOT / ".ci/clients/tasks"), include_defaults=False)
    return simple_evaluate(
        model="local-completions", model_args=arguments, tasks=["capitals", "answers"], task_manager=tasks,
        log_samples=True, bootstrap_iters=0,
    )


@pytest.mark.parametrize("tokenized_requests", [True, False])
def test_log_likelihoods_and_answers(server, tokenized_requests):
    report = evaluate(server, tokenized_requests=tokenized_requests)

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

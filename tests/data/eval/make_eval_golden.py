"""What `nanoinfer eval` should print, computed by transformers and torch: perplexities of the golden models in every mode,
and CORE of a small synthetic bundle by nanochat's algorithm (core_eval.py, 92d63d4), written out anew.

    python make_eval_golden.py          (versions as in tests/golden/requirements.txt)

Writes text.txt, bundle/ and golden.json beside itself, from fixed seeds.
"""

import json
import math
import random
from pathlib import Path

import torch
import transformers
from transformers import AutoTokenizer, GPT2LMHeadModel

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
MODELS = {"heads5": ROOT / "tests/golden/heads5", "inner": ROOT / "tests/golden/inner",
          "nano-chat": ROOT / "launcher/demo/nano-chat"}
STRIDES = [16, 64]

TEXT = """The old man and his daughter looked at the sea. There was nothing in the water, and the boats were small.
"We'll go out again tomorrow," he said, "when the wind has turned." She counted the birds: one, two, three. It was late
in the year, and nobody in the village had seen 1,000 lamps shine. What is a cat? What is the capital of France?

They didn't get tired of it. The boy came every day and asked what they had seen; the old man told him the same story
in other words each time, and the boy knew it, and did not mind. When the rain came they sat under the roof of the
house by the shore and listened to it. Gold is Au, iron is Fe, and 7 + 5 is 12, the daughter said. He laughed.
"""

CAPITALS = {"France": "Paris", "Japan": "Tokyo", "Italy": "Rome", "Spain": "Madrid", "Germany": "Berlin", "Kenya": "Nairobi",
            "Canada": "Ottawa", "Peru": "Lima", "Norway": "Oslo", "Egypt": "Cairo", "Chile": "Santiago", "Greece": "Athens",
            "Poland": "Warsaw", "Cuba": "Havana"}


def write_inputs():
    (HERE / "text.txt").write_text(TEXT)
    rng = random.Random(7)
    names, capitals = list(CAPITALS), list(CAPITALS.values())
    mc = []
    for name, capital in CAPITALS.items():
        choices = rng.sample([c for c in capitals if c != capital], 3) + [capital]
        rng.shuffle(choices)
        mc.append({"query": f"User: What is the capital of {name}?\nAssistant: The capital of {name} is",
                   "choices": choices, "gold": choices.index(capital)})
    schema = []
    for name, capital in CAPITALS.items():
        other = rng.choice([n for n in names if n != name])
        options = [f"User: What is the capital of {n}?\nAssistant: The capital of {n} is" for n in (name, other)]
        gold = rng.randrange(2)
        schema.append({"context_options": options if gold == 0 else options[::-1], "continuation": f"{capital}.", "gold": gold})
    lm = [{"context": f"  User: What is the capital of {name}?\nAssistant: The capital of {name} is\n", "continuation": capital}
          for name, capital in CAPITALS.items()]
    data = HERE / "bundle/eval_data"
    for file, items in [("capitals.jsonl", mc), ("schema.jsonl", schema), ("completions.jsonl", lm)]:
        (data / file).write_text("".join(json.dumps(item) + "\n" for item in items))
    (HERE / "bundle/core.yaml").write_text("""# A synthetic bundle in nanochat's form, made by make_eval_golden.py.
icl_tasks:
-
  label: capitals_zeroshot
  dataset_uri: capitals.jsonl
  num_fewshot: [0]
  icl_task_type: multiple_choice
-
  label: capitals
  dataset_uri: capitals.jsonl
  num_fewshot: [2]
  icl_task_type: multiple_choice
  continuation_delimiter: "\\nAnswer: "
-
  label: countries
  dataset_uri: schema.jsonl
  num_fewshot: [1]
  icl_task_type: schema
-
  label: completions_zeroshot
  dataset_uri: completions.jsonl
  num_fewshot: [0]
  icl_task_type: language_modeling
-
  label: completions
  dataset_uri: completions.jsonl
  num_fewshot: [1]
  icl_task_type: language_modeling
  has_categories: true
""")
    (HERE / "bundle/eval_meta_data.csv").write_text("""Eval Task,Task Category,Description,Random baseline
capitals_zeroshot,world knowledge,"four capitals, one right",25
capitals,world knowledge,"the same, with examples",25
countries,world knowledge,"two countries, one right",50
completions_zeroshot,world knowledge,,0
completions,world knowledge,,0
""")


@torch.no_grad()
def logprobs(model, ids):
    """Log-probability of each token after the first, and whether it is the argmax."""
    logits = model(torch.tensor([ids])).logits[0, :-1].float()
    targets = torch.tensor(ids[1:])
    scores = torch.log_softmax(logits.double(), -1).gather(1, targets[:, None])[:, 0]
    return scores.tolist(), (logits.argmax(-1) == targets).tolist()


def strided(model, ids, length, stride):
    """(exact, hf): the loop of Hugging Face's "Perplexity of fixed-length models"."""
    total = count = weighted = weights = 0
    prev_end = 0
    for begin in range(0, len(ids), stride):
        end = min(begin + length, len(ids))
        trg_len = end - prev_end
        scores = logprobs(model, ids[begin:end])[0]
        scores = scores[max(len(scores) + 1 - trg_len, 1) - 1:]
        nll = -sum(scores)
        total, count = total + nll, count + len(scores)
        weighted, weights = weighted + nll / len(scores) * (trg_len - 1), weights + trg_len - 1
        prev_end = end
        if end == len(ids):
            break
    return math.exp(total / count), math.exp(weighted / weights)


def rolling(model, ids, prefix, max_len):
    """Sum of log-probabilities over lm-eval's windows."""
    first = min(max_len, len(ids))
    total = sum(logprobs(model, [prefix] + ids[:first])[0])
    done = first
    while done < len(ids):
        end = min(done + max_len, len(ids))
        total += sum(logprobs(model, ids[end - max_len - 1:end])[0][-(end - done):])
        done = end
    return total


def common(rows, direction):
    n = 0
    while n < min(map(len, rows)) and len({row[n if direction > 0 else -1 - n] for row in rows}) == 1:
        n += 1
    return n


def core_task(model, encode, bos, task, items, max_len):
    items = list(items)
    random.Random(1337).shuffle(items)
    d, k, kind = task["delimiter"], task["shots"], task["kind"]
    correct = 0
    for idx, item in enumerate(items):
        others = [i for i in range(len(items)) if i != idx]
        shots = [items[i] for i in random.Random(1234 + idx).sample(others, k)] if k else []
        if kind == "multiple_choice":
            prefix = "".join(f"{s['query']}{d}{s['choices'][s['gold']]}\n\n" for s in shots)
            prompts = [f"{prefix}{item['query']}{d}{choice}" for choice in item["choices"]]
        elif kind == "schema":
            prefix = "".join(f"{s['context_options'][s['gold']]}{d}{s['continuation']}\n\n" for s in shots)
            prompts = [f"{prefix}{option}{d}{item['continuation']}" for option in item["context_options"]]
        else:
            prefix = "".join(f"{s['context'].strip()}{d}{s['continuation']}\n\n" for s in shots)
            without = f"{prefix}{item['context'].strip()}{d}".strip()
            prompts = [without, f"{prefix}{item['context'].strip()}{d}{item['continuation']}"]
        rows = [[bos] + encode(prompt) for prompt in prompts]
        if kind == "multiple_choice":
            starts = [common(rows, 1)] * len(rows)
        elif kind == "schema":
            starts = [len(row) - common(rows, -1) for row in rows]
        else:
            assert rows[0] == rows[1][:len(rows[0])] and len(rows[0]) < len(rows[1])
            rows, starts = rows[1:], [len(rows[0])]
        assert all(len(row) <= max_len for row in rows), "no row is to be cropped"
        scored = [logprobs(model, row) for row in rows]
        if kind == "language_modeling":
            correct += all(scored[0][1][starts[0] - 1:])
        else:
            losses = [-sum(s[start - 1:]) / len(s[start - 1:]) for (s, _), start in zip(scored, starts)]
            correct += losses.index(min(losses)) == item["gold"]
    return correct / len(items)


TASKS = [
    ("capitals_zeroshot", "capitals.jsonl", "multiple_choice", 0, " ", 25),
    ("capitals", "capitals.jsonl", "multiple_choice", 2, "\nAnswer: ", 25),
    ("countries", "schema.jsonl", "schema", 1, " ", 50),
    ("completions_zeroshot", "completions.jsonl", "language_modeling", 0, " ", 0),
    ("completions", "completions.jsonl", "language_modeling", 1, " ", 0),
]


def main():
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    write_inputs()
    golden = {"made_by": "make_eval_golden.py", "versions": {"torch": torch.__version__.split("+")[0],
              "transformers": transformers.__version__}, "perplexity": [], "core": {}}
    for name, folder in MODELS.items():
        model = GPT2LMHeadModel.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
        tokenizer = AutoTokenizer.from_pretrained(folder)
        encode = lambda text: tokenizer.encode(text, add_special_tokens=False)
        length, eot = model.config.n_positions, tokenizer.convert_tokens_to_ids("<|endoftext|>")
        ids = encode(TEXT)
        for stride in STRIDES:
            exact, hf = strided(model, ids, length, stride)
            golden["perplexity"] += [{"model": name, "mode": "exact", "stride": stride, "ppl": exact},
                                     {"model": name, "mode": "hf", "stride": stride, "ppl": hf}]
        ll = rolling(model, ids, eot, length - 1)
        words, size = len(__import__("re").split(r"\s+", TEXT)), len(TEXT.encode())
        golden["perplexity"].append({"model": name, "mode": "rolling", "ppl": math.exp(-ll / len(ids)),
                                     "word_ppl": math.exp(-ll / words), "byte_ppl": math.exp(-ll / size),
                                     "bits_per_byte": -ll / size / math.log(2)})
        if name == "nano-chat":
            results, centered = {}, []
            for label, file, kind, shots, delimiter, baseline in TASKS:
                items = [json.loads(line) for line in (HERE / "bundle/eval_data" / file).read_text().splitlines()]
                task = {"kind": kind, "shots": shots, "delimiter": delimiter}
                accuracy = core_task(model, encode, eot, task, items, length)
                centered.append((accuracy - 0.01 * baseline) / (1 - 0.01 * baseline))
                results[label] = {"accuracy": accuracy, "centered": centered[-1]}
            golden["core"] = {"model": name, "tasks": results, "core": sum(centered) / len(centered)}
    parts = ["{", f'"made_by": {json.dumps(golden["made_by"])}, "versions": {json.dumps(golden["versions"])},', '"perplexity": [',
             ",\n".join("  " + json.dumps(entry) for entry in golden["perplexity"]), "],", f'"core": {json.dumps(golden["core"])}', "}"]
    (HERE / "golden.json").write_text("\n".join(parts) + "\n")
    print((HERE / "golden.json").read_text())


if __name__ == "__main__":
    main()

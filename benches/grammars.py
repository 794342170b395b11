#!/usr/bin/env python3
"""What grammars cost: a batch of answers held to a schema beside the same batch left alone, at two sizes of vocabulary.

Both sides take turns, round by round; a figure is the median of its rounds. Masks are computed while the ranks compute, so that what they
take is told twice: their own time, and how much longer a step takes because of them.

usage: cargo build --release && benches/grammars.py [--layers 12] [--heads 12] [--width 768] [--dtype int8] [--batch 32] [--rounds 5]
Writes models of random weights to a temporary folder (needs numpy and safetensors). The vocabulary of 50,257 is GPT-2's, that of 152,000 has pairs of its tokens
besides."""
import argparse, json, pathlib, re, statistics, subprocess, sys, tempfile, urllib.request

from ratios import ROOT, Server

TOKENIZER = ROOT / "tests/data/gpt2-tokenizer"
# Endless, so that the batch stays full: what models are asked for, strings, numbers and names that are known.
PERSON = {"type": "object", "properties": {"name": {"type": "string"}, "age": {"type": "integer"}, "tags": {"type": "array", "items": {"type": "string"}},
          "kind": {"enum": ["cat", "dog"]}}, "required": ["name", "age", "tags", "kind"], "additionalProperties": False}
SCHEMA = {"type": "array", "items": PERSON, "minItems": 100}


def model(folder, options, vocab):
    """A model of random weights; more tokens than GPT-2 has are pairs of its first ones."""
    out, tokenizer = folder / str(vocab), TOKENIZER
    if vocab > 50257:
        tokenizer = folder / "tokenizer"
        tokenizer.mkdir()
        tokens = json.loads((TOKENIZER / "vocab.json").read_text())
        merges = (TOKENIZER / "merges.txt").read_text().splitlines()
        words = [token for token in tokens if token.isascii() and token.isalpha() and len(token) > 2][:1000]
        for first in ["\u0120" + word for word in words] + words:
            for second in words:
                if len(tokens) < vocab and first in tokens and first + second not in tokens:
                    tokens[first + second] = len(tokens)
                    merges.append(f"{first} {second}")
        (tokenizer / "vocab.json").write_text(json.dumps(tokens))
        (tokenizer / "merges.txt").write_text("\n".join(merges) + "\n")
    command = [sys.executable, ROOT / "tests/golden/make_model.py", out, options.layers, options.heads, options.width, "--vocab", vocab, "--tokenizer", tokenizer]
    subprocess.run([str(word) for word in command], check=True, stdout=subprocess.DEVNULL)
    return out


def metrics(server):
    text = urllib.request.urlopen(server.url + "/metrics").read().decode()
    read = lambda name: float(re.search(rf"^nanoinfer_{name} (\S+)$", text, re.M)[1])
    return read("step_seconds_sum"), read("step_seconds_count"), read("mask_seconds_total")


def batch(server, options, constrained, seed):
    """Milliseconds of a step, and of the masks of one."""
    body = {"prompt": "Once", "n": options.batch, "max_tokens": options.tokens, "seed": seed, "temperature": 1, "ignore_eos": True}
    if constrained:
        body["structured_outputs"] = {"json": SCHEMA}
    before = metrics(server)
    urllib.request.urlopen(urllib.request.Request(server.url + "/v1/completions", json.dumps(body).encode())).read()
    step_s, steps, mask_s = (after - was for after, was in zip(metrics(server), before))
    return 1000 * step_s / steps, 1000 * mask_s / steps


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in [("layers", 12), ("heads", 12), ("width", 768), ("batch", 32), ("rounds", 5), ("tokens", 100)]:
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--dtype", default="int8")
    options = parser.parse_args()
    print("| vocabulary | step alone, ms | with a schema, ms | masks of a step, ms | of a step | longer |\n|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for vocab in (50257, 152000):
            options.model = str(model(pathlib.Path(folder), options, vocab))
            with Server(options) as server:
                batch(server, options, True, 0)
                rounds = [(batch(server, options, False, seed), batch(server, options, True, seed)) for seed in range(options.rounds)]
            middle = lambda pick: statistics.median(map(pick, rounds))
            alone, held, masks = middle(lambda r: r[0][0]), middle(lambda r: r[1][0]), middle(lambda r: r[1][1])
            share, longer = middle(lambda r: r[1][1] / r[0][0]), middle(lambda r: r[1][0] / r[0][0])
            print(f"| {vocab:,} | {alone:.1f} | {held:.1f} | {masks:.2f} | {share:.1%} | {longer - 1:+.1%} |", flush=True)


main()

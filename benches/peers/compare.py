#!/usr/bin/env python3
"""NanoInfer and its peers on the same work, one after the other, several rounds; prints the README's table in Markdown.

A machine's speed drifts, so that only figures of one run compare: in each round every program has its turn at every batch,
and a cell is the median of the rounds. Peers and models are those of setup.sh.

usage: cargo build --release && benches/peers/compare.py [--model 124m|medium] [--rounds N] [--peers DIR]
Needs Python's standard library only; progress goes to standard error, the table to standard output, and one line of JSON last."""
import argparse, json, os, pathlib, statistics, subprocess, sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
HERE = ROOT / "benches" / "peers"
PROMPT_TOKENS = 128
# Tokens that each sequence generates: more where a step is short.
TOKENS = {1: 48, 8: 32, 32: 16}


def ours(options, dtype, batch):
    figures = {}
    for what in ("decode", "prefill"):
        runs = "1" if batch > 8 else "2"
        command = [options.nanoinfer, "bench", what, "--model", f"{options.peers}/models/gpt2-{options.model}",
                   "--dtype", dtype, "--threads", str(options.threads), "--batch", str(batch), "--runs", runs,
                   "--prompt-tokens", str(PROMPT_TOKENS), "--tokens", str(TOKENS[batch])]
        line = json.loads(output(command).splitlines()[-1])
        figures[what] = line["rows"][0]["tokens_per_s"]
        figures["read_gb_per_s"] = line["read_gb_per_s"]
        if what == "decode":
            figures["of_limit"] = line["rows"][0]["of_limit"]
    return figures


def transformers(options, dtype, batch):
    return peer(options, "hf", "bench_transformers.py", f"gpt2-{options.model}", dtype, batch=batch)


def ctranslate2(options, dtype, batch):
    return peer(options, "hf", "bench_ctranslate2.py", f"gpt2-{options.model}-ct2-{dtype}", dtype, batch=batch)


def llama_cpp(options, dtype, batch):
    return peer(options, "lcpp", "bench_llama_cpp.py", f"gpt2-{options.model}-{dtype}.gguf", batch=batch)


def peer(options, environment, script, model, *dtype, batch):
    command = [f"{options.peers}/{environment}/bin/python", HERE / script, f"{options.peers}/models/{model}", *dtype,
               batch, PROMPT_TOKENS, TOKENS[batch], options.threads]
    return json.loads(output([str(word) for word in command]).splitlines()[-1])


def output(command):
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(map(str, command))}\nended with {done.returncode}:\n{done.stderr[-2000:]}")
    return done.stdout


# Class, name in the table, how to run it, its name for the type.
PROGRAMS = [
    ("int8", "**NanoInfer**, int8", ours, "int8"),
    ("int8", "CTranslate2, int8", ctranslate2, "int8"),
    ("int8", "llama.cpp, Q8_0", llama_cpp, "Q8_0"),
    ("bf16", "**NanoInfer**, bf16", ours, "bf16"),
    ("bf16", "transformers, bf16", transformers, "bfloat16"),
    ("bf16", "llama.cpp, BF16", llama_cpp, "BF16"),
]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="124m", choices=["124m", "medium"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--batch", type=int, nargs="+", default=list(TOKENS), choices=list(TOKENS))
    parser.add_argument("--classes", nargs="+", default=["int8", "bf16"], choices=["int8", "bf16"])
    parser.add_argument("--peers", default=os.path.expanduser("~/.cache/nanoinfer-peers"))
    parser.add_argument("--nanoinfer", default=str(ROOT / "target/release/nanoinfer"))
    options = parser.parse_args()
    programs = [program for program in PROGRAMS if program[0] in options.classes]

    figures = {(name, batch): [] for _, name, _, _ in programs for batch in options.batch}
    for turn in range(options.rounds):
        for batch in options.batch:
            for _, name, run, dtype in programs:
                got = run(options, dtype, batch)
                figures[name, batch].append(got)
                print(f"round {turn + 1}, batch {batch}: {name}: " + ", ".join(f"{k} {v:.3g}" for k, v in got.items()),
                      file=sys.stderr)

    def median(name, batch, key):
        return statistics.median(got[key] for got in figures[name, batch])

    def columns(name):
        """Decode at each batch, then the best prefill of all."""
        return [median(name, b, "decode") for b in options.batch] + [max(median(name, b, "prefill") for b in options.batch)]

    limits = [got["read_gb_per_s"] for runs in figures.values() for got in runs if "read_gb_per_s" in got]
    print(f"GPT-2 {options.model}, {options.threads} threads, prompts of {PROMPT_TOKENS} tokens, tokens/s; "
          f"memory reads {statistics.median(limits):.1f} GB/s; median of {options.rounds} rounds\n")
    print("| | " + " | ".join(f"decode, batch {b}" for b in options.batch) + " | prefill |")
    print("|---" * (len(options.batch) + 2) + "|")
    rows = {name: columns(name) for _, name, _, _ in programs}
    for name, row in rows.items():
        print(f"| {name} | " + " | ".join(f"{value:.0f}" for value in row) + " |")
    for kind in options.classes:
        name = next(name for k, name, run, _ in programs if k == kind and run is ours)
        # int8 is measured against the best of all, bf16 against its own class.
        rivals = [n for k, n, run, _ in programs if run is not ours and (kind == "int8" or k == kind)]
        ratios = [mine / max(rows[rival][i] for rival in rivals) for i, mine in enumerate(rows[name])]
        print(f"| {kind} against the best peer | " + " | ".join(f"{ratio:.2f} ×" for ratio in ratios) + " |")
        shares = [f"{median(name, b, 'of_limit') * 100:.0f} %" for b in options.batch]
        print(f"| {kind}: of the memory limit | " + " | ".join(shares) + " | |")
    print(json.dumps({"model": options.model, "rounds": options.rounds, "batch": options.batch, "rows": rows}))


if __name__ == "__main__":
    main()

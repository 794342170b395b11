#!/usr/bin/env python3
"""NanoInfer and its peers on the same work, one after the other, several rounds; prints the README's table in Markdown.

A machine's speed drifts, so that only figures of one run compare: in each round every program has its turn at every batch,
and a cell is the median of the rounds. A program that crashes has a dash there, and why is said below the table. Peers
and models are those of setup.sh; smollm2 is SmolLM2-135M-Instruct out of its GGUF file, of Q4_1.

usage: cargo build --release && benches/peers/compare.py [--model 124m|medium|smollm2] [--rounds N] [--peers DIR]
Needs Python's standard library only; progress goes to standard error, the table to standard output, and one line of JSON last."""
import argparse, json, os, pathlib, signal, statistics, subprocess, sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
HERE = ROOT / "benches" / "peers"
PROMPT_TOKENS = 128
# Tokens that each sequence generates: more where a step is short.
TOKENS = {1: 48, 8: 32, 32: 16}


def ours(options, dtype, batch):
    figures = {}
    for what in ("decode", "prefill"):
        runs = "1" if batch > 8 else "2"
        suffix = "-Q4_1.gguf" if options.model in SMOLLM2 else ""
        command = [options.nanoinfer, "bench", what, "--model", f"{options.peers}/models/{options.model_name}{suffix}",
                   "--dtype", dtype, "--threads", str(options.threads), "--batch", str(batch), "--runs", runs,
                   "--prompt-tokens", str(PROMPT_TOKENS), "--tokens", str(TOKENS[batch])]
        line = json.loads(output(command).splitlines()[-1])
        figures[what] = line["rows"][0]["tokens_per_s"]
        figures["read_gb_per_s"] = line["read_gb_per_s"]
        if what == "decode":
            figures["of_limit"] = line["rows"][0]["of_limit"]
    return figures


def transformers(options, dtype, batch):
    return peer(options, "hf", "bench_transformers.py", options.model_name, dtype, batch=batch)


def ctranslate2(options, dtype, batch):
    return peer(options, "hf", "bench_ctranslate2.py", f"{options.model_name}-ct2-{dtype}", dtype, batch=batch)


def llama_cpp(options, dtype, batch):
    return peer(options, "lcpp", "bench_llama_cpp.py", f"{options.model_name}-{dtype}.gguf", batch=batch)


def peer(options, environment, script, model, *dtype, batch):
    command = [f"{options.peers}/{environment}/bin/python", HERE / script, f"{options.peers}/models/{model}", *dtype,
               batch, PROMPT_TOKENS, TOKENS[batch], options.threads]
    return json.loads(output([str(word) for word in command]).splitlines()[-1])


class Crash(Exception):
    """A program that did not end well, in its own words."""


def output(command):
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        how = signal.Signals(-done.returncode).name if done.returncode < 0 else f"exit code {done.returncode}"
        last = done.stderr.strip().splitlines()[-1:] or ["no word"]
        raise Crash(f"{how}: {last[0][:200]}")
    return done.stdout


def cpu():
    """The processor's name, and what its speed hangs on, as hypervisors hide names."""
    lines = [line.split(":", 1) for line in open("/proc/cpuinfo") if ":" in line]
    fields = {key.strip(): value.strip() for key, value in reversed(lines)}
    levels = [flag for flag in ("avx2", "avx_vnni", "avx512_vnni", "avx512_bf16", "amx_int8") if flag in fields["flags"].split()]
    return f"{fields['model name']} ({', '.join(levels)})"


GPT2, SMOLLM2 = ("124m", "medium"), ("smollm2",)
# Class, name in the table, how to run it, its name for the type, the models that it is run on.
PROGRAMS = [
    ("int8", "**NanoInfer**, int8", ours, "int8", GPT2 + SMOLLM2),
    ("int8", "CTranslate2, int8", ctranslate2, "int8", GPT2),
    ("int8", "llama.cpp, Q4_1 (the file's own)", llama_cpp, "Q4_1", SMOLLM2),
    ("int8", "llama.cpp, Q8_0", llama_cpp, "Q8_0", GPT2 + SMOLLM2),
    ("bf16", "**NanoInfer**, bf16", ours, "bf16", GPT2 + SMOLLM2),
    ("bf16", "transformers, bf16", transformers, "bfloat16", GPT2),
    ("bf16", "llama.cpp, BF16", llama_cpp, "BF16", GPT2 + SMOLLM2),
]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="124m", choices=GPT2 + SMOLLM2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--batch", type=int, nargs="+", default=list(TOKENS), choices=list(TOKENS))
    parser.add_argument("--classes", nargs="+", default=["int8", "bf16"], choices=["int8", "bf16"])
    parser.add_argument("--peers", default=os.path.expanduser("~/.cache/nanoinfer-peers"))
    parser.add_argument("--nanoinfer", default=str(ROOT / "target/release/nanoinfer"))
    options = parser.parse_args()
    options.model_name = options.model if options.model in SMOLLM2 else f"gpt2-{options.model}"
    programs = [(kind, *program) for kind, *program, models in PROGRAMS
                if kind in options.classes and options.model in models]

    figures = {(name, batch): [] for _, name, _, _ in programs for batch in options.batch}
    crashes = {}
    for turn in range(options.rounds):
        for batch in options.batch:
            for _, name, run, dtype in programs:
                try:
                    got = run(options, dtype, batch)
                    figures[name, batch].append(got)
                    said = ", ".join(f"{k} {v:.3g}" for k, v in got.items())
                except Crash as crash:
                    said = crashes[name, batch] = str(crash)
                print(f"round {turn + 1}, batch {batch}: {name}: {said}", file=sys.stderr)

    def median(name, batch, key):
        """None of a program that crashed every time."""
        return statistics.median(got[key] for got in figures[name, batch]) if figures[name, batch] else None

    def columns(name):
        """Decode at each batch, then the best prefill of all."""
        prefills = [median(name, b, "prefill") for b in options.batch]
        return [median(name, b, "decode") for b in options.batch] + [max(filter(None, prefills), default=None)]

    def cells(values, form):
        return " | ".join("-" if value is None else form.format(value) for value in values)

    limits = [got["read_gb_per_s"] for runs in figures.values() for got in runs if "read_gb_per_s" in got]
    print(f"{options.model_name}, {cpu()}, {options.threads} threads, prompts of {PROMPT_TOKENS} tokens, tokens/s; "
          f"memory reads {statistics.median(limits):.1f} GB/s; median of {options.rounds} rounds\n")
    print("| | " + " | ".join(f"decode, batch {b}" for b in options.batch) + " | prefill |")
    print("|---" * (len(options.batch) + 2) + "|")
    rows = {name: columns(name) for _, name, _, _ in programs}
    for name, row in rows.items():
        print(f"| {name} | {cells(row, '{:.0f}')} |")
    for kind in options.classes:
        name = next(name for k, name, run, _ in programs if k == kind and run is ours)
        # int8 is measured against the best of all, bf16 against its own class.
        rivals = [n for k, n, run, _ in programs if run is not ours and (kind == "int8" or k == kind)]
        best = [max((rows[rival][i] for rival in rivals if rows[rival][i]), default=None) for i in range(len(rows[name]))]
        ratios = [mine and other and mine / other for mine, other in zip(rows[name], best)]
        print(f"| {kind} against the best peer | {cells(ratios, '{:.2f} ×')} |")
        shares = [share and share * 100 for share in (median(name, b, "of_limit") for b in options.batch)]
        print(f"| {kind}: of the memory limit | {cells(shares, '{:.0f} %')} | |")
    for (name, batch), crash in crashes.items():
        print(f"\n{name}, batch {batch}, ended with {crash}")
    print(json.dumps({"model": options.model, "cpu": cpu(), "rounds": options.rounds, "batch": options.batch, "rows": rows}))


if __name__ == "__main__":
    main()

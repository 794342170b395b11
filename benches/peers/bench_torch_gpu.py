#!/usr/bin/env python3
"""transformers on PyTorch on one GPU, eager and compiled with CUDA graphs: what `nanoinfer-launch gpu-check` says of a decode step, there.

Weights are random, as time does not depend on them. Prints a table, and one line of JSON last.

usage: bench_torch_gpu.py [--model gpt2-xl|gpt2] [--dtype bfloat16] [--batch 1,8,16,32] [--history 512] [--steps 40] [--device cuda]"""
import argparse, json, statistics, time

import torch
from transformers import GPT2Config, GPT2LMHeadModel, StaticCache

SIZES = {"gpt2-xl": (48, 25, 1600), "gpt2": (12, 12, 768)}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", choices=SIZES, default="gpt2-xl")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--batch", default="1,8,16,32")
    parser.add_argument("--history", type=int, default=512)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--device", default="cuda")
    options = parser.parse_args()
    layers, heads, width = SIZES[options.model]
    dtype = getattr(torch, options.dtype)
    config = GPT2Config(n_layer=layers, n_head=heads, n_embd=width)
    with torch.device(options.device):
        model = GPT2LMHeadModel(config).to(dtype).eval()
    rows = []
    with torch.inference_mode():
        for batch in map(int, options.batch.split(",")):
            # Compiled anew for each batch: what was made for one size is made again for a second with sizes left open, and slower.
            torch.compiler.reset()
            compiled = torch.compile(model.forward, mode="reduce-overhead", fullgraph=True, dynamic=False)
            row = {"batch": batch}
            for name, forward in ("eager", model.forward), ("compiled", compiled):
                row[name] = step_seconds(model, forward, config, options, batch)
            rows.append(row)
    print(f"{options.model}, {options.dtype}, {options.history} positions before, torch {torch.__version__}")
    print("batch  eager (ms)  compiled (ms)")
    for row in rows:
        print(f"{row['batch']:>5}  {row['eager'] * 1e3:>10.2f}  {row['compiled'] * 1e3:>13.2f}")
    print(json.dumps({"model": options.model, "dtype": options.dtype, "rows": rows}))


def step_seconds(model, forward, config, options, batch):
    """Median of single decode steps that follow one another, each to its end, as a server has to wait for the token."""
    ids = torch.randint(0, config.vocab_size, (batch, options.history), device=options.device)
    cache = StaticCache(config=config, max_cache_len=options.history + 2 * options.steps)
    positions = torch.arange(options.history, device=options.device)
    logits = model(ids, past_key_values=cache, cache_position=positions, logits_to_keep=1).logits
    seconds = []
    # As many steps to warm up, which compile and capture.
    for step in range(2 * options.steps):
        following = logits[:, -1:].argmax(-1)
        position = torch.tensor([options.history + step], device=options.device)
        begun = time.perf_counter()
        # A copy, as the next run of a graph writes to the same place.
        logits = forward(following, past_key_values=cache, cache_position=position, logits_to_keep=1).logits.clone()
        if options.device == "cuda":
            torch.cuda.synchronize()
        if step >= options.steps:
            seconds.append(time.perf_counter() - begun)
    return statistics.median(seconds)


if __name__ == "__main__":
    main()

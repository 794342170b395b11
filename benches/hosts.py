#!/usr/bin/env python3
"""What a token takes on 1 to 1,000 hosts, by a model: when to add hosts to a server, and when servers.

A step reads every weight once, each host its share, at a speed that `nanoinfer bench decode` measures; each of 2 L + 1 sums then crosses
the wire, once without owners of ranges or twice with, whichever shared/src/comm/hosts.rs chooses; a plan and its answers are a round trip
more. `.ci/long/wires.py` holds this against what steps take. usage: benches/hosts.py [GB/S OF A HOST [µS OF A CROSSING [GBIT/S]]]
"""

import sys

SAVED_ELEMENTS = 32 << 10
# Weights in bf16 in GB, layers, width, heads.
MODELS = {"GPT-2 124M": (0.25, 12, 768, 12), "gpt2-xl": (3.1, 48, 1600, 25), "Llama of 8 B": (16.1, 32, 4096, 32), "Llama of 70 B": (141, 80, 8192, 64)}


def crossing(hosts, elements, latency, rate):
    """Seconds of one sum between hosts with a rank each."""
    if hosts == 1:
        return 0
    has_owners = elements * (hosts - 1) * (hosts - 2) / hosts >= SAVED_ELEMENTS
    sent = elements * ((hosts - 1) / hosts * 2 if has_owners else hosts - 1)
    return latency * (2 if has_owners else 1) + sent * 32 / rate


def step(model, hosts, rows, speed, latency, rate):
    weights, layers, width, _ = MODELS[model]
    sums = (2 * layers + 1) * crossing(hosts, rows * width, latency, rate)
    return weights * 1e9 / hosts / speed + sums + (2 * latency if hosts > 1 else 0)


def main():
    speed, latency, gigabits = [float(word) for word in sys.argv[1:]] + [20, 50, 10][len(sys.argv) - 1:]
    wire = (speed * 1e9, latency * 1e-6, gigabits * 1e9)
    print(f"{speed:g} GB/s a host, {latency:g} µs a crossing, {gigabits:g} Gbit/s; ms a token of one text, and tokens/s of 1,000 hosts, batch 32\n")
    sizes = [1, 2, 4, 8, 16, 32, 64]
    print("| hosts of a server | " + " | ".join(map(str, sizes)) + " |\n|---|" + "---|" * len(sizes))
    for model, (*_, heads) in MODELS.items():
        alone = [f"{step(model, n, 1, *wire) * 1e3:.3g}" if n <= heads else "" for n in sizes]
        many = [f"{1000 // n * 32 / step(model, n, 32, *wire):,.0f}" if n <= heads else "" for n in sizes]
        print(f"| {model}, ms | " + " | ".join(alone) + " |\n| tokens/s of 1,000 | " + " | ".join(many) + " |")


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""JSON Schema's official suite at length: 32 answers to each schema at three temperatures. Prints a table; fails where an answer that ended by
itself is not what it was to be."""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "clients"))
from schemas import run, suite  # noqa: E402
from server import ROOT, Server  # noqa: E402


def main():
    cases = list(suite(ROOT / "target/long"))
    failed = False
    server = Server("--nproc", "2")
    try:
        print("| temperature | schemas | refused | ended by themselves | cut off | wrong |\n|---|---|---|---|---|---|")
        for seed, temperature in enumerate((1, 20, 100)):
            refusals, ended, wrong = run(server.url, cases, n=32, temperature=temperature, seed=seed)
            print(f"| {temperature} | {len(cases)} | {len(refusals)} | {ended['stop']} | {ended['length']} | {len(wrong)} |", flush=True)
            for name, text, why in wrong[:20]:
                print(f"{name}: {text}: {why}", file=sys.stderr)
            failed |= bool(wrong)
    finally:
        server.stop()
    sys.exit(failed)


main()

#!/usr/bin/env python3
"""NanoInfer against itself: what ranks, HTTP and the timeline cost, how long it takes to be ready, what it burns idle, what
the parts of the scheduler buy. Prints Markdown tables.

A machine's speed drifts, so that only figures of one run compare: the two sides of a ratio take turns, round by round, and a
ratio is the median of the rounds' ratios.

usage: cargo build --release && benches/ratios.py MODEL [--dtype int8] [--rounds N] [--only PART ...]
MODEL is a folder, as benches/peers/setup.sh makes them. Needs Linux and Python's standard library; progress goes to standard error."""
import argparse, json, os, pathlib, re, signal, statistics, subprocess, sys, tempfile, time, urllib.request

ROOT = pathlib.Path(__file__).resolve().parents[1]
BIN = ROOT / "target/release"
PROMPT_TOKENS, TOKENS = 128, 48


def decode(options, batch, *arguments, tokens=TOKENS, trace=None):
    """Milliseconds of a step."""
    command = [BIN / "nanoinfer", "bench", "decode", "--model", options.model, "--dtype", options.dtype, "--batch", str(batch),
               "--prompt-tokens", str(PROMPT_TOKENS), "--tokens", str(tokens), "--runs", "1", *arguments]
    environment = dict(os.environ, **({"NANOINFER_TRACE": trace} if trace else {}))
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode != 0:
        raise SystemExit(f"{command} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])["rows"][0]["ms"]


class Server:
    """A server on a free port; ready once entered, stopped when left."""

    def __init__(self, options, *arguments):
        self.command = [BIN / "nanoinfer-launch", "--model", options.model, "--dtype", options.dtype, "--port", "0", *arguments]

    def __enter__(self):
        begun = time.monotonic()
        self.process = subprocess.Popen(self.command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
        for line in self.process.stderr:
            if ready := re.search(r"ready on (http://\S+)", line):
                self.url, self.ready_s = ready[1], time.monotonic() - begun
                return self
        raise SystemExit(f"{self.command} did not start")

    def __exit__(self, *_):
        self.process.send_signal(signal.SIGTERM)
        self.process.wait()

    def complete(self, tokens):
        body = json.dumps({"prompt": "Once", "max_tokens": tokens, "ignore_eos": True}).encode()
        urllib.request.urlopen(urllib.request.Request(self.url + "/v1/completions", body)).read()

    def cpu_s(self):
        """Seconds of CPU that the launcher and its ranks have used."""
        pids = [self.process.pid]
        pids += [int(pid) for pid in pathlib.Path(f"/proc/{pids[0]}/task/{pids[0]}/children").read_text().split()]
        stats = (pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split() for pid in pids)
        return sum(int(fields[11]) + int(fields[12]) for fields in stats) / os.sysconf("SC_CLK_TCK")


def ratio(options, title, first, second):
    """How much faster `first` is than `second`; both return milliseconds."""
    first(), second()
    ratios = []
    for turn in range(options.rounds):
        a, b = first(), second()
        ratios.append(b / a)
        print(f"{title}, round {turn + 1}: {a:.3g} ms, {b:.3g} ms", file=sys.stderr)
    row(title, f"{statistics.median(ratios):.2f}", f"{min(ratios):.2f} … {max(ratios):.2f}")


def row(*cells):
    print("| " + " | ".join(cells) + " |", flush=True)


def ranks(options):
    for batch in (1, 8, 32):
        ratio(options, f"`--nproc 2 --threads 1` against `--nproc 1 --threads 2`, decode, batch {batch}",
              lambda: decode(options, batch, "--nproc", "2", "--threads", "1"),
              lambda: decode(options, batch, "--nproc", "1", "--threads", "2"))


def crowd(options):
    for batch in (1, 8):
        ratio(options, f"`--nproc 4` on {os.cpu_count()} cores against `--nproc 2`, decode, batch {batch}",
              lambda: decode(options, batch, "--nproc", "4"), lambda: decode(options, batch, "--nproc", "2"))


def http(options):
    """The time between two tokens of a stream, with as many streams as sequences in the bare engine's batch."""
    def streams():
        with Server(options) as server:
            command = [BIN / "nanoinfer", "bench", "serve", "--url", server.url, "--requests", "32", "--rate", "1000000", "--spread", "0",
                       "--prompt-tokens", str(PROMPT_TOKENS), "--tokens", str(4 * TOKENS)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            return json.loads(done.stdout.splitlines()[-1])["inter_token_ms"]["p50"]
    ratio(options, "32 streams over HTTP against the bare engine at batch 32, time between tokens", streams,
          lambda: decode(options, 32, tokens=4 * TOKENS))


def trace(options):
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "trace.json")
        ratio(options, "with `--trace` against without, decode, batch 1",
              lambda: decode(options, 1, trace=path), lambda: decode(options, 1))


def ready(options):
    seconds = []
    for _ in range(options.rounds + 1):
        with Server(options) as server:
            seconds.append(server.ready_s)
    seconds = seconds[1:]
    row(f"ready after (s, warm files, {options.dtype})", f"{statistics.median(seconds):.2f}", f"{min(seconds):.2f} … {max(seconds):.2f}")


def idle(options):
    for arguments in ((), ("--nproc", "2")):
        with Server(options, *arguments) as server:
            server.complete(64)
            time.sleep(1)
            before = server.cpu_s()
            time.sleep(5)
            share = (server.cpu_s() - before) / 5 * 100
        row(f"idle for 5 s, a second after an answer{', `--nproc 2`' if arguments else ''} (% of one core)", f"{share:.1f}", "")


def scheduler(options):
    """What each part of the scheduler buys, on one trace: prompts that share their first 256 tokens, some of them long."""
    load = ["--requests", "48", "--rate", str(options.rate), "--prefix-tokens", "256", "--prompt-tokens", "120", "--tokens", "64", "--spread", "0.7"]
    policies = {"all of it": [], "pieces of 128 tokens": ["--max-batched-tokens", "128"], "pieces of 256": ["--max-batched-tokens", "256"],
                "whole prompts": ["--max-batched-tokens", "4096"], "no prefix cache": ["--no-prefix-cache"],
                "neither": ["--max-batched-tokens", "4096", "--no-prefix-cache"]}
    results = {name: [] for name in policies}
    for turn in range(options.rounds):
        for name, arguments in policies.items():
            with Server(options, *arguments) as server:
                command = [BIN / "nanoinfer", "bench", "serve", "--url", server.url, *load]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
            results[name].append(json.loads(done.stdout.splitlines()[-1]))
            print(f"{name}, round {turn + 1}: {done.stdout.splitlines()[-1]}", file=sys.stderr)
    median = lambda name, *path: statistics.median(get(line, *path) for line in results[name])
    get = lambda line, *path: line if not path else get(line[path[0]], *path[1:])
    print()
    row(f"ms, {options.rate} requests a second", "first token p50", "p99", "between tokens p50", "p99", "tokens/s")
    row(*["---"] * 6)
    for name in policies:
        times = [median(name, what, p) for what in ("ttft_ms", "inter_token_ms") for p in ("p50", "p99")]
        row(name, *(f"{value:.1f}" for value in times), f"{median(name, 'tokens_per_s'):.0f}")


PARTS = {"ranks": ranks, "crowd": crowd, "http": http, "trace": trace, "ready": ready, "idle": idle, "scheduler": scheduler}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--dtype", default="int8")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rate", type=float, default=12, help="requests a second (scheduler)")
    parser.add_argument("--only", nargs="+", default=list(PARTS), choices=list(PARTS))
    options = parser.parse_args()
    if options.only != ["scheduler"]:
        row(f"{pathlib.Path(options.model).name}, {options.dtype}, {options.rounds} rounds", "median", "least … most")
        row("---", "---", "---")
    for part in options.only:
        PARTS[part](options)


if __name__ == "__main__":
    main()

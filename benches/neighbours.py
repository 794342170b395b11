#!/usr/bin/env python3
"""What neighbours feel while one client does its worst: eight well-behaved streams beside it, against the same eight beside as
many well-behaved sequences. Prints a Markdown table; the last line is JSON.

Each scenario has a server of its own (the demo model). The streams' speed beside good neighbours is measured before and after the bad
one on that same server, as a machine's speed drifts. Times are medians over a stream's requests, ratios those of the slowest of the
eight to the median of the eight beside good neighbours. A stream that still waits when the time is up counts with what it has waited,
so that a ratio is at least what it says. Nothing is asserted.

usage: cargo build --release && benches/neighbours.py [--seconds S] [--only SCENARIO ...] [-- OPTIONS OF THE SERVER]
Needs Linux and Python's standard library; progress goes to standard error."""
import argparse, asyncio, contextlib, json, pathlib, re, resource, signal, socket, statistics, subprocess, sys, threading, time

ROOT = pathlib.Path(__file__).resolve().parents[1]
STREAMS, PLACES, TOKENS, PROBE_S, DRAIN_S = 8, 32, 48, 5, 60
FRANCE = {"messages": [{"role": "user", "content": "What is the capital of France?"}]}


class Server:
    """The demo model on a free port; `descriptors` is its soft limit of them."""

    def __init__(self, *arguments, descriptors=None):
        command = [ROOT / "target/release/nanoinfer-launch", "--port", "0", *arguments]
        if descriptors:
            command = ["bash", "-c", f'ulimit -Sn {descriptors} && exec "$0" "$@"', *command]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL, text=True)
        for line in self.process.stderr:
            if ready := re.search(r"ready on http://(\S+):(\d+)", line):
                self.host, self.port = ready[1], int(ready[2])
                break
        else:
            raise SystemExit(f"{command} did not start")
        threading.Thread(target=self.process.stderr.read, daemon=True).start()
        self.answers = 0  # whole ones, to neighbours

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def memory_mb(self, what):
        """VmRSS, or VmHWM (the most since the start), of the launcher and its ranks."""
        pids = [self.process.pid]
        pids += [int(pid) for pid in pathlib.Path(f"/proc/{pids[0]}/task/{pids[0]}/children").read_text().split()]
        statuses = (pathlib.Path(f"/proc/{pid}/status").read_text() for pid in pids)
        return sum(int(re.search(rf"{what}:\s+(\d+)", status)[1]) for status in statuses) / 1024

    async def send(self, path, body=None, **options):
        """A connection of its own on which the request has been sent."""
        reader, writer = await asyncio.open_connection(self.host, self.port, limit=1 << 26, **options)
        if body is None:
            head = f"GET {path} HTTP/1.1\r\n"
        else:
            body = body if isinstance(body, bytes) else json.dumps(body).encode()
            head = f"POST {path} HTTP/1.1\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        writer.write(f"{head}Host: {self.host}:{self.port}\r\nConnection: close\r\n\r\n".encode() + (body or b""))
        return reader, writer

    async def ask(self, path, body=None):
        """Status and text of the answer."""
        reader, writer = await self.send(path, body)
        try:
            return int((await reader.readline()).split()[1]), await reader.read()
        finally:
            writer.close()

    async def drained(self, patience_s):
        """Whether nothing runs or waits any more."""
        deadline = time.monotonic() + patience_s
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError, IndexError, TimeoutError):
                _, text = await asyncio.wait_for(self.ask("/metrics"), 5)
                if all(value == b"0" for value in re.findall(rb"^nanoinfer_num_requests_(?:running|waiting) (\S+)", text, re.M)):
                    return True
            await asyncio.sleep(0.2)
        return False


class Stream:
    """A well-behaved client: a short question, its answer token by token, and again."""

    def __init__(self, server, number):
        self.server, self.number = server, number
        self.first_ms, self.token_ms = [], []

    async def run(self):
        count = 0
        while True:
            count += 1
            body = {"prompt": f"{self.number}.{count} Once", "max_tokens": TOKENS, "ignore_eos": True, "stream": True}
            begun, first, last, tokens = time.monotonic(), None, None, 0
            try:
                reader, writer = await self.server.send("/v1/completions", body)
                try:
                    while line := await reader.readline():
                        if line.startswith(b"data: {"):
                            last = time.monotonic()
                            first = first or last
                            tokens += 1
                finally:
                    writer.close()
            except asyncio.CancelledError:
                now = time.monotonic()
                if first is None:
                    self.first_ms.append((now - begun) * 1e3)
                    self.token_ms.append((now - begun) * 1e3)
                else:
                    self.note(begun, first, now, tokens + 1)
                raise
            except OSError:
                pass
            if first is None:
                await asyncio.sleep(0.05)  # refused: it asks again
            else:
                self.note(begun, first, last, tokens)

    def note(self, begun, first, last, tokens):
        self.first_ms.append((first - begun) * 1e3)
        self.token_ms.append((last - first) * 1e3 / max(tokens - 1, 1))


async def again(server, path, body):
    """Asks for the same, whole, again and again."""
    while True:
        try:
            status, _ = await server.ask(path, body)
        except (OSError, IndexError):
            status = 0
        if status == 200:
            server.answers += 1
        else:
            await asyncio.sleep(0.05)


async def good(server, count):
    """As many sequences, each a request of its own."""
    async def one(number):
        body = {"prompt": f"Good {number}. Once", "max_tokens": 200, "ignore_eos": True}
        await again(server, "/v1/completions", body)
    await asyncio.gather(*map(one, range(count)))


async def prompts(server):
    await again(server, "/v1/completions", {"prompt": [[id] for id in range(1024)], "max_tokens": 255, "ignore_eos": True})


async def echo(server):
    await again(server, "/v1/completions", {"prompt": [[id] * 255 for id in range(1024)], "max_tokens": 1, "echo": True})


async def queued(server):
    body = {"prompt": "Once", "n": 128, "max_tokens": 240, "ignore_eos": True}
    await asyncio.gather(*(again(server, "/v1/completions", body) for _ in range(60)))


async def bodies(server):
    body = b'{"prompt":"x","zz":[' + b",".join([b'{"a":1}'] * 1_000_000) + b"]}"
    await asyncio.gather(*(again(server, "/tokenize", body) for _ in range(4)))


async def explain(server):
    await again(server, "/v1/chat/completions", FRANCE | {
        "n": 128, "max_tokens": 240, "ignore_eos": True, "logprobs": True, "top_logprobs": 20, "explain": True})


async def typical(server):
    await again(server, "/v1/completions", {
        "prompt": "Once", "n": 128, "max_tokens": 240, "ignore_eos": True, "typical_p": 0.9, "explain": True})


async def deaf(server):
    """Twelve that ask for much and never read."""
    async def one():
        plug = socket.socket()
        plug.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        plug.setblocking(False)
        try:
            await asyncio.get_running_loop().sock_connect(plug, (server.host, server.port))
            body = json.dumps({"prompt": "Once", "n": 128, "max_tokens": 250, "ignore_eos": True, "stream": True, "logprobs": 5}).encode()
            head = f"POST /v1/completions HTTP/1.1\r\nHost: {server.host}:{server.port}\r\nContent-Length: {len(body)}\r\n\r\n"
            await asyncio.get_running_loop().sock_sendall(plug, head.encode() + body)
            await asyncio.Event().wait()
        finally:
            plug.close()
    await asyncio.gather(*(one() for _ in range(12)))


async def idle(server):
    """Connections on which nothing is ever said."""
    async def one():
        while True:
            with contextlib.suppress(OSError):
                reader, writer = await asyncio.open_connection(server.host, server.port)
                try:
                    await reader.read()
                finally:
                    writer.close()
            await asyncio.sleep(0.5)  # turned away: it comes again
    await asyncio.gather(*(one() for _ in range(1100)))


# What the bad client does, beside how many good sequences the streams are compared, and the soft limit of descriptors.
SCENARIOS = {
    "prompts": (prompts, "one request of 1,024 prompts × 255 new tokens", PLACES - STREAMS, None),
    "echo": (echo, "one request of 1,024 prompts of 255 tokens", PLACES - STREAMS, None),
    "queued": (queued, "60 requests of n = 128", PLACES - STREAMS, None),
    "bodies": (bodies, "four bodies of 8 MB at once, 1,000,000 unknown objects in each", 0, None),
    "explain": (explain, "n = 128 with top_logprobs 20 and explain", PLACES - STREAMS, None),
    "typical": (typical, "n = 128 with typical_p and explain", PLACES - STREAMS, None),
    "deaf": (deaf, "12 clients of n = 128 that do not read", PLACES - STREAMS, None),
    "idle": (idle, "1,100 idle connections, 1,024 descriptors", 0, 1024),
}


async def livez(server, times_ms):
    """A probe every 50 ms, each on a connection of its own; one that fails counts as long as any is waited for."""
    while True:
        begun, status = time.monotonic(), None
        try:
            status, _ = await asyncio.wait_for(server.ask("/livez"), PROBE_S)
        except asyncio.CancelledError:
            if status is None and not times_ms:
                times_ms.append((time.monotonic() - begun) * 1e3)
            raise
        except (OSError, IndexError, TimeoutError):
            pass
        times_ms.append((time.monotonic() - begun if status == 200 else PROBE_S) * 1e3)
        await asyncio.sleep(0.05)


async def ended(tasks):
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def measure(server, neighbour, seconds, hold_s=0):
    """The eight streams and the probes' times, while `neighbour` goes on. It then may go on for `hold_s`, or until it has had an
    answer, as the memory that an answer takes is seen at its end."""
    beside = [asyncio.create_task(neighbour)]
    await asyncio.sleep(1)
    streams, probes_ms = [Stream(server, number) for number in range(STREAMS)], []
    tasks = [asyncio.create_task(stream.run()) for stream in streams] + [asyncio.create_task(livez(server, probes_ms))]
    answers = server.answers
    await asyncio.sleep(seconds)
    await ended(tasks)
    deadline = time.monotonic() + hold_s
    while time.monotonic() < deadline and server.answers == answers:
        await asyncio.sleep(0.1)
    failed = [task for task in beside if task.done()]
    await ended(beside)
    for task in failed:
        task.result()
    return streams, probes_ms


def medians(streams, what):
    """Of each stream."""
    return [statistics.median(getattr(stream, what)) for stream in streams]


async def run(name, options):
    bad, title, others, descriptors = SCENARIOS[name]
    server = Server(*options.arguments, descriptors=descriptors)
    try:
        await measure(server, good(server, others), 1)
        first, _ = await measure(server, good(server, others), options.seconds)
        await server.drained(DRAIN_S)
        before_mb = server.memory_mb("VmRSS")
        worst, probes_ms = await measure(server, bad(server), options.seconds, options.hold)
        is_drained = await server.drained(DRAIN_S)
        peak_mb, after_mb = server.memory_mb("VmHWM"), server.memory_mb("VmRSS")
        second = (await measure(server, good(server, others), options.seconds))[0] if is_drained else first
    finally:
        server.stop()
    result = {"scenario": name, "rss_mb": [round(mb) for mb in (before_mb, peak_mb, after_mb)], "drained": is_drained,
              "livez_ms": {"p50": round(statistics.median(probes_ms), 1), "most": round(max(probes_ms), 1)}}
    for what in ("token_ms", "first_ms"):
        beside_good = statistics.median(medians(first, what) + medians(second, what))
        beside_bad = medians(worst, what)
        result[what] = {"good": round(beside_good, 2), "bad": round(statistics.median(beside_bad), 2),
                        "ratio": round(max(beside_bad) / beside_good, 2)}
    print(f"{name}: {json.dumps(result)}", file=sys.stderr)
    tokens, firsts, probes = result["token_ms"], result["first_ms"], result["livez_ms"]
    row(title, f"{tokens['good']} → {tokens['bad']}", f"{tokens['ratio']}", f"{firsts['good']} → {firsts['bad']}", f"{firsts['ratio']}",
        f"{probes['p50']} ({probes['most']})", " / ".join(map(str, result["rss_mb"])) + ("" if is_drained else ", not drained"))
    return result


def row(*cells):
    print("| " + " | ".join(cells) + " |", flush=True)


def processor():
    return re.search(r"model name\s*: (.*)", pathlib.Path("/proc/cpuinfo").read_text())[1]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=8, help="for each measurement")
    parser.add_argument("--hold", type=float, default=60, help="seconds that the bad client may go on for after that, for its answer")
    parser.add_argument("--only", nargs="+", default=list(SCENARIOS), choices=list(SCENARIOS))
    parser.add_argument("--nproc", default="2")
    options, rest = parser.parse_known_args()
    # Our own ends of the connections.
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    options.arguments = ["--nproc", options.nproc, *(argument for argument in rest if argument != "--")]
    print(processor())
    print()
    row("while one client sends", "ms a token", "ratio", "ms to the first token", "ratio", "/livez p50 (most) ms", "RSS before / peak / after MB")
    row(*["---"] * 7)
    results = [asyncio.run(run(name, options)) for name in options.only]
    print()
    print(json.dumps({"cpu": processor(), "seconds": options.seconds, "scenarios": results}))


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Three servers behind a real HAProxy (configs/haproxy.cfg) under load: one is drained, one is killed, and both come back.

Every text is compared with what a server alone answers. No request may fail that had not begun to stream, and of those that had only
such as the killed server had under way; those that are back take load again. Prints a row a phase for docs/log.md.

Runs as hosts.py does, so that what it installs is gone afterwards. usage: .ci/long/replicas.py
"""

import collections
import http.client
import json
import os
import pathlib
import re
import signal
import sys
import tempfile
import threading
import time

from hosts import LAUNCH, PATIENCE_S, ROOT, Job, enter, install, run, wait_until

PORT, SERVERS = 22080, [22081, 22082, 22083]
CLIENTS, PHASE_S = 24, 5
PROMPTS = ["Once upon a time", "What is a cat?", "The capital of France", "What is 3 + 4?"]


def body(prompt, stream):
    return json.dumps({"prompt": prompt, "max_tokens": 60, "ignore_eos": True, "temperature": 0, "stream": stream})


def ask(port, prompt, stream, outcome):
    """Notes in `outcome` whether the answer has begun; returns the text."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)
    try:
        connection.request("POST", "/v1/completions", body(prompt, stream), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        if answer.status != 200:
            raise RuntimeError(f"{answer.status} {answer.read(200)}")
        if not stream:
            return json.loads(answer.read())["choices"][0]["text"]
        pieces = []
        for line in answer:
            outcome["begun"] = True
            if line.startswith(b"data: {"):
                event = json.loads(line[6:])
                if "error" in event:
                    raise RuntimeError(event["error"])
                pieces += [choice["text"] for choice in event["choices"]]
            elif line.startswith(b"data: [DONE]"):
                return "".join(pieces)
        raise RuntimeError("the stream was cut")
    finally:
        connection.close()


class Load:
    """Clients that ask again and again, every other one for a stream; their outcomes since the last look."""

    def __init__(self, expected):
        self.expected, self.counts, self.ends = expected, collections.Counter(), False
        self.threads = [threading.Thread(target=self.client, args=(i,), daemon=True) for i in range(CLIENTS)]
        [thread.start() for thread in self.threads]

    def client(self, number):
        turn = number
        while not self.ends:
            prompt, outcome, turn = PROMPTS[turn % len(PROMPTS)], {}, turn + 1
            try:
                text = ask(PORT, prompt, number % 2 == 0, outcome)
                self.counts["answered" if text == self.expected[prompt] else "ANOTHER TEXT"] += 1
            except (RuntimeError, OSError, http.client.HTTPException) as error:
                self.counts["cut" if outcome else "lost"] += 1
                if not outcome:
                    print(f"lost: {error!r}", file=sys.stderr)

    def phase(self, name):
        time.sleep(PHASE_S)
        counts, self.counts = self.counts, collections.Counter()
        print(f"| {name} | {counts['answered']} | {counts['ANOTHER TEXT']} | {counts['lost']} | {counts['cut']} |", flush=True)
        return counts


def server(port):
    return Job([LAUNCH, "--port", str(port), "--threads", "1"], {}).ready()


def main():
    enter()
    run("ip", "link", "set", "lo", "up")
    install("haproxy")
    servers = [server(port) for port in SERVERS]
    expected = {prompt: ask(SERVERS[0], prompt, False, {}) for prompt in PROMPTS}
    text = (ROOT / "configs/haproxy.cfg").read_text().replace("bind :8080", f"bind 127.0.0.1:{PORT}")
    for i, port in enumerate(SERVERS):
        text = text.replace(f"10.0.0.{i + 1}:8000", f"127.0.0.1:{port}")
    assert not re.search(r"10\.0\.0\.", text)
    config = pathlib.Path(tempfile.mkdtemp(), "haproxy.cfg")
    config.write_text(text)
    proxy = Job(["haproxy", "-db", "-f", config], {})
    wait_until(lambda: proxy.process.poll() is not None or can_connect(), "HAProxy")
    print("| phase | answered | with another text | lost before they began | cut |\n|---|---|---|---|---|", flush=True)
    load = Load(expected)
    all_counts = [load.phase("three servers")]
    servers[0].process.send_signal(signal.SIGTERM)
    all_counts.append(load.phase("one is drained (SIGTERM)"))
    assert servers[0].process.wait(PATIENCE_S) == 0, servers[0].log()
    os.kill(servers[1].process.pid, signal.SIGKILL)
    killed = load.phase("another is killed (SIGKILL)")
    servers[:2] = [server(port) for port in SERVERS[:2]]
    written = lambda: [job.metric("nanoinfer_generation_tokens_total") for job in servers]
    before = written()
    all_counts.append(load.phase("both are back"))
    shares = [now - then for now, then in zip(written(), before)]
    print("tokens of each while both were back: " + ", ".join(f"{tokens:.0f}" for tokens in shares))
    load.ends = True
    [thread.join(PATIENCE_S) for thread in load.threads]
    proxy.process.kill()
    [job.process.terminate() for job in servers]
    good = all(set(counts) == {"answered"} for counts in all_counts) and not killed["lost"] and not killed["ANOTHER TEXT"]
    good &= min(shares) > 0
    good &= all(job.process.wait(PATIENCE_S) == 0 for job in servers)
    sys.exit(not good)


def can_connect():
    try:
        http.client.HTTPConnection("127.0.0.1", PORT, timeout=1).connect()
        return True
    except OSError:
        return False


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""What a killed rank costs: from the kill until the server is ready again, and until each stream's next token. Prints a Markdown table.

usage: cargo build --release --bin nanoinfer-launch && benches/recovery.py [MODEL] [--rounds N] [OPTIONS OF nanoinfer-launch]
Without MODEL the demo. One of two ranks is killed while 1, 8 and 64 streams of some 100 positions run. Medians over the rounds; of
the streams' next tokens the last is meant. Needs Linux and Python's standard library."""
import argparse, http.client, json, os, pathlib, re, signal, statistics, subprocess, threading, time, urllib.error, urllib.request

ROOT = pathlib.Path(__file__).resolve().parents[1]
STREAMS = (1, 8, 64)
PROMPT_TOKENS, BEFORE, TOKENS = 90, 10, 50


class Server:
    def __init__(self, arguments):
        command = [ROOT / "target/release/nanoinfer-launch", "--port", "0", "--nproc", "2", "--max-seqs", "64",
                   "--rank-restarts", "1000/1m", *arguments]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
        for line in self.process.stderr:
            if ready := re.search(r"ready on http://(\S+)", line):
                self.address = ready[1]
                break
        else:
            raise SystemExit(f"{command} did not start")
        threading.Thread(target=self.process.stderr.read, daemon=True).start()

    def is_ready(self):
        try:
            return urllib.request.urlopen(f"http://{self.address}/readyz").status == 200
        except urllib.error.HTTPError:
            return False

    def last_rank(self):
        children = (path.read_text().split() for path in pathlib.Path(f"/proc/{self.process.pid}/task").glob("*/children"))
        ranks = [pid for of_thread in children for pid in of_thread]
        return max(ranks, key=lambda pid: int(pathlib.Path(f"/proc/{pid}/cmdline").read_bytes().split(b"--rank\0")[1].split(b"\0")[0]))

    def stream(self, number, times):
        """Notes when each token comes."""
        connection = http.client.HTTPConnection(self.address)
        body = {"prompt": [5 + number] * PROMPT_TOKENS, "max_tokens": TOKENS, "ignore_eos": True, "stream": True, "seed": number}
        connection.request("POST", "/v1/completions", json.dumps(body))
        for line in connection.getresponse():
            if line.startswith(b"data: {"):
                times.append(time.monotonic())


def lose(server, streams):
    """Seconds until all is ready, and until the last stream's next token."""
    times = [[] for _ in range(streams)]
    threads = [threading.Thread(target=server.stream, args=(number, of)) for number, of in enumerate(times)]
    for thread in threads:
        thread.start()
    # Some 100 positions each.
    while min(map(len, times)) < BEFORE:
        time.sleep(0.001)
    victim = int(server.last_rank())
    killed = time.monotonic()
    os.kill(victim, signal.SIGKILL)
    while server.is_ready():
        time.sleep(0.0005)
    while not server.is_ready():
        time.sleep(0.0005)
    ready = time.monotonic() - killed
    for thread in threads:
        thread.join()
    # A token may have been on its way when the rank was killed; the pause is the longest gap of each stream.
    gap = lambda of: max((after for before, after in zip(of, of[1:]) if after > killed), key=lambda after: after - of[of.index(after) - 1])
    return ready, max(gap(of) for of in times) - killed


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--streams", type=int, nargs="+", default=STREAMS)
    options, others = parser.parse_known_args()
    server = Server([*(["--model", options.model] if options.model else []), *others])
    print("| streams | ready again, s | next token of the last stream, s |\n|---|---|---|")
    for streams in options.streams:
        rounds = [lose(server, streams) for _ in range(options.rounds)]
        ready, token = (statistics.median(column) for column in zip(*rounds))
        print(f"| {streams} | {ready:.2f} | {token:.2f} |", flush=True)
    server.process.send_signal(signal.SIGTERM)
    server.process.wait()


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Ranks that die by the hundred: every answer must be, to the last log-probability, what it is without a death.

For every type, number of ranks and data link a server answers 64 clients without a pause, while its ranks are killed, stopped and aborted
at random moments, also while they load and recover. Prints a Markdown table; ends with 1 where a request was lost or changed.

usage: cargo build --release --bin nanoinfer-launch && .ci/long/kills.py [--kills N] [--soak MINUTES] [--seed N]
  --kills N       deaths of each combination (default 20: 360 in all)
  --soak MINUTES  instead: one server, a kill every 20 s; memory, descriptors and threads at its begin and end"""
import argparse, json, os, pathlib, random, re, signal, subprocess, sys, threading, time, urllib.request

ROOT = pathlib.Path(__file__).resolve().parents[2]
LAUNCH = ROOT / "target/release/nanoinfer-launch"
MODEL = ROOT / "tests/golden/heads5"
CLIENTS = 64
COMBINATIONS = [(dtype, ranks, comm) for dtype in ("f32", "bf16", "int8") for ranks in (2, 3, 5) for comm in ("shm", "tcp")]


class Server:
    """A server on a free port, and what it said."""

    def __init__(self, *options):
        command = [LAUNCH, "--port", "0", "--rank-restarts", "1000000/1s", "--max-queue", "1000", *options]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
        self.lines = []
        for line in self.process.stderr:
            self.lines.append(line)
            if ready := re.search(r"ready on (http://\S+)", line):
                self.url = ready[1]
                break
        else:
            raise SystemExit("the server did not start:\n" + "".join(self.lines))
        threading.Thread(target=lambda: self.lines.extend(self.process.stderr), daemon=True).start()

    def ask(self, body):
        request = urllib.request.Request(self.url + "/v1/completions", json.dumps(body).encode())
        with urllib.request.urlopen(request, timeout=300) as answer:
            return json.load(answer)["choices"]

    def metric(self, name):
        with urllib.request.urlopen(self.url + "/metrics", timeout=60) as answer:
            return float(re.search(rf"^{name} (\S+)$", answer.read().decode(), re.M)[1])

    def ranks(self):
        """Process ids by rank."""
        ranks = {}
        for task in pathlib.Path(f"/proc/{self.process.pid}/task").iterdir():
            try:
                children = (task / "children").read_text().split()
            except OSError:
                continue
            for pid in children:
                try:
                    words = pathlib.Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
                    ranks[int(words[words.index(b"--rank") + 1])] = int(pid)
                except (OSError, ValueError):
                    pass
        return ranks

    def usage(self):
        """Resident megabytes, descriptors and threads of the launcher and its ranks."""
        pids = [self.process.pid, *self.ranks().values()]
        status = [pathlib.Path(f"/proc/{pid}/status").read_text() for pid in pids]
        count = lambda name: sum(int(re.search(rf"^{name}:\s+(\d+)", text, re.M)[1]) for text in status)
        return count("VmRSS") / 1024, sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in pids), count("Threads")

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


def request(number):
    """Of every kind of draw; none ends early."""
    return {"prompt": [3 + number % 50] * (1 + number * 7 % 23), "max_tokens": 40, "ignore_eos": True, "seed": number, "logprobs": 2,
            "temperature": 0 if number % 4 == 0 else 1, "top_p": 0.9 if number % 3 == 0 else 1, "return_token_ids": True}


def disturb(server, dice):
    """Does something to one rank, at once."""
    ranks = list(server.ranks().values())
    if not ranks:
        return None
    pid, kind = dice.choice(ranks), dice.choices(("kill", "fault", "stop"), (70, 15, 15))[0]
    try:
        if kind == "stop":
            os.kill(pid, signal.SIGSTOP)
            time.sleep(dice.random() / 10)
            os.kill(pid, signal.SIGCONT)
        else:
            os.kill(pid, signal.SIGKILL if kind == "kill" else signal.SIGABRT)
    except ProcessLookupError:
        return None
    return kind


def live(server, expected, over, tally):
    """64 clients that ask until it is over."""
    def client(number):
        while not over.is_set():
            try:
                if server.ask(request(number)) != expected[number]:
                    tally["changed"] += 1
            except Exception as error:
                tally["lost"] += 1
                print(f"lost: {error}", file=sys.stderr)
            tally["asked"] += 1
    clients = [threading.Thread(target=client, args=(number,)) for number in range(CLIENTS)]
    for one in clients:
        one.start()
    return clients


def run(options, kills, dice):
    with_options = [f"--{name}={value}" for name, value in options.items()]
    server = Server("--model", MODEL, "--max-seqs", "64", *with_options)
    expected = [server.ask(request(number)) for number in range(CLIENTS)]
    tally, over = {"asked": 0, "lost": 0, "changed": 0, "kill": 0, "fault": 0, "stop": 0}, threading.Event()
    clients = live(server, expected, over, tally)
    begun = time.monotonic()
    while tally["kill"] + tally["fault"] + tally["stop"] < kills:
        # Often before the one before is over.
        time.sleep(dice.random() * 0.4)
        if kind := disturb(server, dice):
            tally[kind] += 1
    over.set()
    for one in clients:
        one.join()
    tally["restarts"] = int(server.metric("nanoinfer_rank_restarts_total"))
    tally["s"] = round(time.monotonic() - begun)
    tally["bug"] = int(server.metric("nanoinfer_scheduler_invariants_hold") != 1)
    tally["exit"] = server.stop()
    if tally["lost"] + tally["changed"] + tally["bug"] + tally["exit"]:
        print("".join(server.lines[-60:]), file=sys.stderr)
    return tally


def soak(minutes, dice):
    server = Server("--model", MODEL, "--nproc", "2", "--max-seqs", "64")
    expected = [server.ask(request(number)) for number in range(CLIENTS)]
    tally, over = {"asked": 0, "lost": 0, "changed": 0}, threading.Event()
    clients = live(server, expected, over, tally)
    time.sleep(5)
    print("| minute | kills | MB | descriptors | threads | asked | lost | changed |\n|---|---|---|---|---|---|---|---|")
    begun, kills = time.monotonic(), 0
    while True:
        minute = (time.monotonic() - begun) / 60
        if kills % 15 == 0 or minute >= minutes:
            memory, descriptors, threads = server.usage()
            print(f"| {minute:.0f} | {kills} | {memory:.0f} | {descriptors} | {threads} | {tally['asked']} | {tally['lost']} | {tally['changed']} |", flush=True)
        if minute >= minutes:
            break
        os.kill(dice.choice(list(server.ranks().values())), signal.SIGKILL)
        kills += 1
        time.sleep(20)
    over.set()
    for one in clients:
        one.join()
    return server.stop() + tally["lost"] + tally["changed"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--soak", type=float)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    dice = random.Random(options.seed)
    if options.soak:
        sys.exit(bool(soak(options.soak, dice)))
    print("| type | ranks | link | killed | faulted | stopped | ranks started again | requests | lost | changed | s |\n|---|---|---|---|---|---|---|---|---|---|---|")
    failed = False
    for dtype, ranks, comm in COMBINATIONS:
        t = run({"dtype": dtype, "nproc": ranks, "comm": comm}, options.kills, dice)
        print(f"| {dtype} | {ranks} | {comm} | {t['kill']} | {t['fault']} | {t['stop']} | {t['restarts']} | {t['asked']} | {t['lost']} | {t['changed']} | {t['s']} |", flush=True)
        failed |= bool(t["lost"] + t["changed"] + t["bug"] + t["exit"])
    sys.exit(failed)


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Ranks that die by the hundred: every answer must be, to the last log-probability, what it is without a death.

For every type, number of ranks and data link a server answers 64 clients without a pause, while its ranks are killed, stopped and aborted
at random moments, also while they load and recover. Then ranks die while a system gives nothing: no descriptors, no memory, a full
/dev/shm; and ranks of two hosts (network namespaces) while their cable is cut or slow. Prints Markdown tables; ends with 1 where a request
was lost or changed. The second table needs root and iproute2.

usage: cargo build --release --bin nanoinfer-launch && .ci/long/kills.py [--kills N] [--lacks [WORD]] [--soak MINUTES] [--seed N]
  --kills N       deaths of each combination (default 20: 360 in all)
  --lacks WORD    the second table alone; of it the rows whose name has WORD
  --soak MINUTES  instead: one server, a kill every 20 s; memory, descriptors and threads as it goes on"""
import argparse, atexit, http.client, json, os, pathlib, random, re, resource, signal, subprocess, sys, tempfile, threading, time

ROOT = pathlib.Path(__file__).resolve().parents[2]
LAUNCH = ROOT / "target/release/nanoinfer-launch"
MODEL = ROOT / "tests/golden/heads5"
CLIENTS = 64
COMBINATIONS = [(dtype, ranks, comm) for dtype in ("f32", "bf16", "int8") for ranks in (2, 3, 5) for comm in ("shm", "tcp")]


class Server:
    """A server on a free port, and what it said."""

    def __init__(self, *options, through=()):
        command = [*through, LAUNCH, *options, "--port", "0", "--max-queue", "1000"]
        if "--rank-restarts" not in options:
            command += ["--rank-restarts", "1000000/1s"]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
        atexit.register(self.process.kill)
        self.lines = []
        self.url = None
        threading.Thread(target=self.read, daemon=True).start()

    def read(self):
        for line in self.process.stderr:
            self.lines.append(line)
            if ready := re.search(r"ready on (http://\S+)", line):
                self.url = ready[1]

    def wait_for(self, pattern):
        """The first line with that, which it waits for."""
        while not (found := next((line for line in self.lines if re.search(pattern, line)), None)):
            if self.process.poll() is not None:
                raise SystemExit("the server ended:\n" + "".join(self.lines))
            time.sleep(0.01)
        return found

    def started(self):
        self.wait_for("ready on ")
        return self

    def ask(self, body):
        return ask(self.connection(), body)

    def connection(self):
        return http.client.HTTPConnection(self.url.removeprefix("http://"), timeout=300)

    def await_ready(self):
        while self.get("/readyz")[0] != 200:
            time.sleep(0.01)

    def get(self, path):
        connection = self.connection()
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()

    def metric(self, name):
        return float(re.search(rf"^{name} (\S+)$", self.get("/metrics")[1], re.M)[1])

    def blocks_held(self):
        cluster = json.loads(self.get("/api/cluster")[1])
        return cluster["blocks_total"] - cluster["blocks_free"]

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


def ask(connection, body):
    connection.request("POST", "/v1/completions", json.dumps(body))
    answer = json.load(connection.getresponse())
    return answer.get("choices") or answer


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


class Clients:
    """64 clients that ask until it is over, each over one connection; what the server says undisturbed is what they want to hear."""

    def __init__(self, server):
        self.server, self.over = server, threading.Event()
        self.expected = [server.ask(request(number)) for number in range(CLIENTS)]
        self.asked = self.lost = self.changed = 0
        self.threads = [threading.Thread(target=self.client, args=(number,), daemon=True) for number in range(CLIENTS)]
        for thread in self.threads:
            thread.start()

    def client(self, number):
        connection = self.server.connection()
        while not self.over.is_set():
            self.asked += 1
            try:
                answer = ask(connection, request(number))
            except Exception as error:
                self.lost += 1
                print(f"lost: {error}", file=sys.stderr)
                connection = self.server.connection()
                # One that is gone for good is not asked a million times.
                time.sleep(0.5)
                continue
            if isinstance(answer, dict):
                self.lost += 1
                print(f"lost: {answer}", file=sys.stderr)
            elif answer != self.expected[number]:
                self.changed += 1

    def end(self):
        """Whether all is well: none lost or changed, every block free, a clean end."""
        self.over.set()
        for thread in self.threads:
            thread.join()
        holds = self.server.metric("nanoinfer_scheduler_invariants_hold") == 1 and not self.server.blocks_held()
        status = self.server.stop()
        good = not self.lost and not self.changed and holds and status == 0
        if not good:
            print("".join(self.server.lines[-60:]), file=sys.stderr)
        return good


def run(options, kills, dice):
    server = Server("--model", MODEL, "--max-seqs", "64", *[f"--{name}={value}" for name, value in options.items()]).started()
    clients, done = Clients(server), {"kill": 0, "fault": 0, "stop": 0}
    begun = time.monotonic()
    while sum(done.values()) < kills:
        # Often before the one before is over.
        time.sleep(dice.random() * 0.4)
        if kind := disturb(server, dice):
            done[kind] += 1
    seconds, restarts = time.monotonic() - begun, int(server.metric("nanoinfer_rank_restarts_total"))
    good = clients.end()
    cells = [*options.values(), *done.values(), restarts, clients.asked, clients.lost, clients.changed, f"{seconds:.0f}"]
    print(f"| {' | '.join(map(str, cells))} |", flush=True)
    return good


# ---- what a system may lack ----

def bounded(pid, what, soft):
    """Sets a limit of a running process; returns how to lift it."""
    before = resource.prlimit(pid, what)
    resource.prlimit(pid, what, (soft, before[1]))
    return lambda: resource.prlimit(pid, what, before)


def kill_one(server, dice):
    ranks = server.ranks()
    rank = dice.choice(list(ranks))
    os.kill(ranks[rank], signal.SIGKILL)
    return rank, ranks


def only_kill(server, dice):
    kill_one(server, dice)


def launcher_without_descriptors(server, dice):
    """While a rank is missing and for 2 s after."""
    lift = bounded(server.process.pid, resource.RLIMIT_NOFILE, 8)
    kill_one(server, dice)
    time.sleep(2)
    lift()


def rank_without_descriptors(server, dice):
    """The ranks that are left get none any more: they can neither listen nor take the new segment."""
    rank, ranks = kill_one(server, dice)
    for other in ranks.keys() - {rank}:
        try:
            bounded(ranks[other], resource.RLIMIT_NOFILE, 3)
        except ProcessLookupError:
            pass


def rank_without_memory(server, dice):
    """A running one gets no page more, and then a peer of it is lost."""
    ranks = server.ranks()
    victim, other = dice.sample(list(ranks), 2)
    size = int(pathlib.Path(f"/proc/{ranks[victim]}/statm").read_text().split()[0]) * resource.getpagesize()
    bounded(ranks[victim], resource.RLIMIT_AS, size)
    os.kill(ranks[other], signal.SIGKILL)


def loading_without_memory(server, dice):
    """The one that takes the place of a lost one cannot load, and is lost too."""
    rank, ranks = kill_one(server, dice)
    until = time.monotonic() + 1
    while time.monotonic() < until:
        pid = server.ranks().get(rank)
        if pid and pid != ranks[rank]:
            try:
                bounded(pid, resource.RLIMIT_AS, 1 << 20)
            except ProcessLookupError:
                pass
            return


LACKS = {
    "a full /dev/shm": (only_kill, ["unshare", "--mount", "sh", "-c", "mount -t tmpfs -o size=4k tmpfs /dev/shm && head -c 4096 /dev/zero > /dev/shm/full && exec \"$@\"", "sh"]),
    "no descriptors in the launcher": (launcher_without_descriptors, []),
    "no descriptors in the other ranks": (rank_without_descriptors, []),
    "no memory in a running rank": (rank_without_memory, []),
    "no memory in a rank that loads": (loading_without_memory, []),
}


def row(name, comm, times, server, clients, disturb, dice):
    """Disturbs so often, and prints what came of it."""
    before, begun = int(server.metric("nanoinfer_rank_restarts_total")), time.monotonic()
    for _ in range(times):
        time.sleep(0.2 + dice.random() * 0.3)
        disturb(server, dice)
        # Until it is noticed, and over.
        time.sleep(0.3)
        server.await_ready()
    seconds, restarts = time.monotonic() - begun, int(server.metric("nanoinfer_rank_restarts_total")) - before
    good = clients.end()
    print(f"| {name} | {comm} | {times} | {restarts} | {clients.asked} | {clients.lost} | {clients.changed} | {seconds:.0f} |", flush=True)
    return good


def lacks(word, times, dice):
    print("| what | link | disturbances | ranks started again | requests | lost | changed | s |\n|---|---|---|---|---|---|---|---|", flush=True)
    good = True
    for name, (disturb, through) in LACKS.items():
        for comm in ("shm", "tcp"):
            if word in name:
                server = Server("--model", MODEL, "--max-seqs", "64", "--nproc", "3", "--comm", comm, through=through).started()
                good &= row(name, comm, times, server, Clients(server), disturb, dice)
    if word in "no descriptors for good":
        good &= ends_with_words()
    if any(word in name for name in CABLES):
        good &= on_two_hosts(word, times)
    return good


def ends_with_words():
    """Descriptors that never come back use the budget up: the right end is one that says why."""
    server = Server("--model", MODEL, "--nproc", "2", "--rank-restarts", "3/10m").started()
    bounded(server.process.pid, resource.RLIMIT_NOFILE, 8)
    os.kill(server.ranks()[1], signal.SIGKILL)
    status = server.process.wait(60)
    log = "".join(server.lines)
    said = "Too many open files" in log and "--rank-restarts" in log
    print(f"| no descriptors for good | shm | 1 | – | – | ended with {status}, {'saying why' if said else 'WITHOUT SAYING WHY'} | | |", flush=True)
    return status == 1 and said


# ---- two hosts and a cable ----

def cable(*words):
    subprocess.run(["ip", "-n", os.environ["OTHER_HOST"], "link", "set", "cable", *words], check=True)


def shape(*words):
    subprocess.run(["ip", "netns", "exec", os.environ["OTHER_HOST"], "tc", "qdisc", *words], check=True)


def cut(seconds):
    def disturb(server, dice):
        cable("down")
        time.sleep(seconds)
        cable("up")
    return disturb


def slow(server, dice):
    """A megabit a second: packets are up to 200 ms late, and lost where more of them wait."""
    shape("add", "dev", "cable", "root", "tbf", "rate", "1mbit", "burst", "8kb", "latency", "200ms")
    time.sleep(5)
    shape("del", "dev", "cable", "root")


# A cable that is cut for longer than 25 s is a host that is lost.
CABLES = {"cable cut for 3 s": (cut(3), 1), "cable cut for 40 s": (cut(40), 0.2), "slow cable for 5 s": (slow, 0.5)}
ADDRESSES = ["10.231.78.1", "10.231.78.2"]


def on_two_hosts(word, times):
    """Makes two namespaces and a cable, and runs this program again on one of them."""
    hosts = [f"nanoinfer-kills-{os.getpid()}-{end}" for end in "ab"]
    ip = lambda *words: subprocess.run(["ip", *words], check=True)
    try:
        for host in hosts:
            ip("netns", "add", host)
        ip("-n", hosts[0], "link", "add", "cable", "type", "veth", "peer", "name", "cable", "netns", hosts[1])
        for host, address in zip(hosts, ADDRESSES):
            ip("-n", host, "address", "add", f"{address}/24", "dev", "cable")
            ip("-n", host, "link", "set", "cable", "up")
            ip("-n", host, "link", "set", "lo", "up")
        command = ["ip", "netns", "exec", hosts[0], sys.executable, __file__, "--cables", word, "--kills", str(times)]
        return subprocess.run(command, env={**os.environ, "OTHER_HOST": hosts[1]}).returncode == 0
    finally:
        for host in hosts:
            subprocess.run(["ip", "netns", "delete", host])


class Host:
    """Starts a node on a host again whenever it ends, as systemd does."""

    def __init__(self, command):
        self.command, self.over, self.lines = command, False, []
        self.thread = threading.Thread(target=self.keep, daemon=True)
        self.thread.start()
        atexit.register(self.end)

    def keep(self):
        while not self.over:
            self.process = subprocess.Popen(self.command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
            self.lines.extend(self.process.stderr)
            self.process.wait()

    def end(self):
        self.over = True
        if self.process.poll() is None:
            self.process.kill()
        self.thread.join()


def cables(word, times, dice):
    """A node on each host, with a rank each."""
    good = True
    for name, (disturb, part) in CABLES.items():
        if word not in name:
            continue
        with tempfile.TemporaryDirectory() as folder:
            secret = pathlib.Path(folder, "secret")
            secret.write_text("a long enough shared secret\n")
            secret.chmod(0o600)
            server = Server("node", "--nodes", "2", "--listen", f"{ADDRESSES[0]}:0", "--secret-file", secret, "--model", MODEL,
                            "--nproc", "2", "--max-seqs", "64")
            address = re.search(rf"{ADDRESSES[0]}:\d+", server.wait_for("waiting at"))[0]
            second = [LAUNCH, "node", "--connect", address, "--secret-file", secret]
            host = Host(["ip", "netns", "exec", os.environ["OTHER_HOST"], *second])
            server.started()
            good &= row(name, "tcp, two hosts", max(1, round(times * part)), server, Clients(server), disturb, dice)
            host.end()
    return good


def soak(minutes, dice):
    server = Server("--model", MODEL, "--nproc", "2", "--max-seqs", "64").started()
    clients = Clients(server)
    time.sleep(5)
    print("| minute | kills | MB | descriptors | threads | asked | lost | changed |\n|---|---|---|---|---|---|---|---|")
    begun, kills = time.monotonic(), 0
    while True:
        minute = (time.monotonic() - begun) / 60
        if kills % 15 == 0 or minute >= minutes:
            memory, descriptors, threads = server.usage()
            print(f"| {minute:.0f} | {kills} | {memory:.0f} | {descriptors} | {threads} | {clients.asked} | {clients.lost} | {clients.changed} |", flush=True)
        if minute >= minutes:
            break
        os.kill(dice.choice(list(server.ranks().values())), signal.SIGKILL)
        kills += 1
        time.sleep(20)
    # A block that is held although nothing runs is a broken invariant.
    return clients.end()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--lacks", nargs="?", const="")
    parser.add_argument("--cables", help=argparse.SUPPRESS)
    parser.add_argument("--soak", type=float)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    dice = random.Random(options.seed)
    if options.soak:
        good = soak(options.soak, dice)
    elif options.cables is not None:
        good = cables(options.cables, options.kills, dice)
    elif options.lacks is not None:
        good = lacks(options.lacks, options.kills, dice)
    else:
        print("| type | ranks | link | killed | faulted | stopped | ranks started again | requests | lost | changed | s |\n|---|---|---|---|---|---|---|---|---|---|---|")
        good = all([run({"dtype": dtype, "nproc": ranks, "comm": comm}, options.kills, dice) for dtype, ranks, comm in COMBINATIONS])
        print()
        good &= lacks("", options.kills, dice)
    sys.exit(not good)


if __name__ == "__main__":
    main()

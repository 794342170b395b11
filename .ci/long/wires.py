#!/usr/bin/env python3
"""Nodes on two to five hosts with wires between them that are slow, lose packets and are cut: network namespaces, and a switch in user
space, as few kernels have netem.

Each layout serves the demo model with a rank on each host, and answers what one host with the same shares does. Steps are timed beside
a model: a step without a wire, and for each sum the way to the other hosts, once. A cable that is cut for a while loses nothing; one that
is cut for longer loses its node, which comes back. Prints rows for docs/log.md.

Runs as hosts.py does. Needs root and /dev/net/tun. usage: .ci/long/wires.py [HOSTS …]
"""

import ctypes
import fcntl
import heapq
import multiprocessing
import os
import random
import select
import statistics
import struct
import sys
import threading
import time

from hosts import LAUNCH, Job, enter, run, wait_until

TUNSETIFF, IFF_TUN_WITHOUT_HEADER, CLONE_NEWNET = 0x400454CA, 0x1001, 0x40000000
MTU = 9000
# Sums and width of the demo model, and one round trip of a plan and its answers.
SUMS, WIDTH, TOKENS = 2 * 6 + 1, 256, 100
BODY_BYTES, TIMES = WIDTH * 4, 3
# One way in seconds, bits a second, packets lost of all.
WIRES = {"none": (0, 0, 0), "0.2 ms": (2e-4, 0, 0), "1 ms": (1e-3, 0, 0), "5 ms": (5e-3, 0, 0), "1 ms, 10 Mbit/s": (1e-3, 10e6, 0),
         "1 ms, 1 % lost": (1e-3, 0, 0.01)}


def tun(namespace):
    """The wire's end in a namespace."""
    ends = []

    def opened():
        with open(f"/run/netns/{namespace}") as handle:
            assert ctypes.CDLL(None, use_errno=True).setns(handle.fileno(), CLONE_NEWNET) == 0
        end = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        fcntl.ioctl(end, TUNSETIFF, struct.pack("16sH22x", b"wire", IFF_TUN_WITHOUT_HEADER))
        ends.append(end)

    # A namespace is a thread's.
    thread = threading.Thread(target=opened)
    thread.start()
    thread.join()
    return ends[0]


def switch(ends, settings):
    """Hands packets on by the last byte of their address, as `settings` (delay, rate, loss, and a bit a cut cable) say."""
    queue, free, count, chance = [], {}, 0, random.Random(1)
    # A wire does not wait for its turn on a processor.
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(10))
    while True:
        now = time.monotonic()
        while queue and queue[0][0] <= now:
            _, _, to, packet = heapq.heappop(queue)
            try:
                os.write(ends[to], packet)
            except OSError:
                pass
        # Unlike poll, it does not count in milliseconds.
        for end in select.select(ends, [], [], max(queue[0][0] - now, 0) if queue else 1)[0]:
            delay, rate, loss, cut = settings[:]
            try:
                packet = os.read(end, 65536)
            except OSError:
                continue
            source, to = packet[15] - 1, packet[19] - 1
            if packet[0] >> 4 != 4 or not 0 <= to < len(ends) or int(cut) & (1 << source | 1 << to) or chance.random() < loss:
                continue
            now = time.monotonic()
            sent = max(now, free.get(source, 0)) + (len(packet) * 8 / rate if rate else 0)
            free[source] = sent
            count += 1
            heapq.heappush(queue, (sent + delay, count, to, packet))


class Net:
    """Hosts 10.77.0.1 … with a wire each to one switch. This process is on the first."""

    def __init__(self, hosts):
        self.settings = multiprocessing.Array("d", 4)
        ends = []
        for host in range(hosts):
            run("ip", "netns", "add", f"h{host}")
            ends.append(tun(f"h{host}"))
            within = lambda *command, host=host: run("ip", "-n", f"h{host}", *command)
            within("addr", "add", f"10.77.0.{host + 1}/24", "dev", "wire")
            within("link", "set", "wire", "mtu", str(MTU), "up")
            within("link", "set", "lo", "up")
        self.switch = multiprocessing.Process(target=switch, args=(ends, self.settings), daemon=True)
        self.switch.start()
        [os.close(end) for end in ends]
        with open("/run/netns/h0") as handle:
            assert ctypes.CDLL(None, use_errno=True).setns(handle.fileno(), CLONE_NEWNET) == 0
        self.hosts = hosts

    def wire(self, delay, rate, loss):
        self.settings[:3] = delay, rate, loss

    def cut(self, host, is_cut):
        self.settings[3] = 1 << host if is_cut else 0

    def down(self):
        self.switch.kill()
        self.switch.join()
        with open("/proc/1/ns/net") as handle:
            assert ctypes.CDLL(None, use_errno=True).setns(handle.fileno(), CLONE_NEWNET) == 0
        for host in range(self.hosts):
            run("ip", "netns", "del", f"h{host}")


def node(host, hosts, secret):
    within = ["ip", "netns", "exec", f"h{host}"]
    role = ["--nodes", str(hosts), "--node-rank", str(host), "--connect", "10.77.0.1:20123"]
    options = ["--nproc", str(hosts), "--threads", "1", "--port", "0", "--rank-restarts", "20/10m"]
    return Job([*within, LAUNCH, "node", *role, *options], {"NANOINFER_SECRET": secret})


def timed(server):
    begun = time.monotonic()
    text = server.ask()
    return (time.monotonic() - begun) / 200 * 1e3, text


def layout(hosts, expected):
    net, secret, good = Net(hosts), os.urandom(24).hex(), True
    nodes = [node(host, hosts, secret) for host in range(hosts)]
    server = nodes[0].ready()
    server.ask()
    bare = None
    for name, (delay, rate, loss) in WIRES.items():
        net.wire(delay, rate, loss)
        answers = [timed(server) for _ in range(TIMES)]
        net.wire(0, 0, 0)
        took, same = statistics.median(took for took, _ in answers), all(text == expected for _, text in answers)
        bare, good = bare or took, good and same
        on_wire = (hosts - 1) * BODY_BYTES * 8 / rate if rate else 0
        model = bare + ((SUMS + 2) * delay + SUMS * on_wire) * 1e3
        modelled = "" if loss else f"{model:.1f}"
        print(f"| {hosts} | {name} | {'the same' if same else 'ANOTHER'} | {took:.1f} | {modelled} |", flush=True)
    good &= cables(net, nodes, secret, expected)
    server.process.terminate()
    good &= server.process.wait(60) == 0
    wait_until(lambda: all(job.process.poll() is not None for job in nodes), "the end of all nodes")
    net.down()
    return good


def cables(net, nodes, secret, expected):
    """Cuts the last host's cable: for 3 s, and until its node is lost, which is then started again, as a service manager would."""
    server, last = nodes[0], len(nodes) - 1
    outcome = []

    def under(name, trouble):
        asking = threading.Thread(target=lambda: outcome.append(timed(server)))
        asking.start()
        time.sleep(0.05)
        trouble()
        asking.join()
        took, text = outcome[-1]
        lost = server.metric("nanoinfer_rank_restarts_total")
        print(f"| {len(nodes)} | {name} | {'the same' if text == expected else 'ANOTHER'} | {took * 0.2:.1f} s in all | {lost:.0f} lost |", flush=True)
        return text == expected

    def for_a_while():
        net.cut(last, True)
        time.sleep(3)
        net.cut(last, False)

    def for_long():
        net.cut(last, True)
        wait_until(lambda: "is gone with its ranks" in server.log(), "the loss of a node")
        net.cut(last, False)
        assert nodes[last].process.wait(60) == 1, nodes[last].log()
        nodes[last] = node(last, len(nodes), secret)

    good = under("cut for 3 s", for_a_while) and server.metric("nanoinfer_rank_restarts_total") == 0
    return under("cut until it is noticed", for_long) and good


def main():
    enter()
    run("ip", "link", "set", "lo", "up")
    good = True
    print("| hosts | wire | text | ms a token | model |\n|---|---|---|---|---|", flush=True)
    for hosts in [int(word) for word in sys.argv[1:]] or [2, 3, 4, 5]:
        one = Job([LAUNCH, "--nproc", str(hosts), "--threads", "1", "--port", "0"], {}).ready()
        expected = one.ask()
        one.process.terminate()
        one.process.wait(60)
        good &= layout(hosts, expected)
    sys.exit(not good)


if __name__ == "__main__":
    main()

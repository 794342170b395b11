#!/usr/bin/env python3
"""Nodes as real launchers start them: two nodes of a Slurm on this host, Open MPI, MPICH, and LeaderWorkerSet's variables.

Each serves the demo model on two nodes of a rank each, and answers what one host with the same shares does; what went over sockets is
counted, so that nothing passed by shared memory unnoticed; a rank of the second node is killed under a stream and had again; and
all ends when it is told to. Prints a row a launcher for docs/log.md.

Runs in mount and process namespaces of its own over an overlay of /, so that what it installs (slurm-wlm, munge, openmpi-bin, mpich) is
gone afterwards. Needs root and Debian's packages in reach. usage: .ci/long/hosts.py [WORD of the launchers to try]
"""

import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parents[2]
LAUNCH = ROOT / "target/release/nanoinfer-launch"
PATIENCE_S = 60
PORTS = (23000, 23099)
STAGE = "HOSTS_STAGE"
# Layers and width of the demo model: each sum is a row of f32 to the other node.
SUMS, WIDTH = 2 * 6 + 1, 256
BODY = {"prompt": "Once upon a time", "max_tokens": 200, "ignore_eos": True, "temperature": 0}

SLURM_CONF = """ClusterName=one
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
AuthType=auth/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
StateSaveLocation=/run/slurm/ctld
SlurmdSpoolDir=/run/slurm/%n
SlurmctldPidFile=/run/slurm/ctld.pid
SlurmdPidFile=/run/slurm/%n.pid
SlurmctldLogFile=/run/slurm/ctld.log
SlurmdLogFile=/run/slurm/%n.log
JobAcctGatherType=jobacct_gather/none
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port=17001 CPUs=2 State=UNKNOWN
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port=17002 CPUs=2 State=UNKNOWN
PartitionName=p Nodes=ALL Default=YES MaxTime=INFINITE State=UP OverSubscribe=YES
"""


def run(*command, **options):
    return subprocess.run(command, check=True, **options)


def enter():
    """Ends in the innermost of three: this script, in namespaces, below an overlay of /."""
    stage = os.environ.get(STAGE)
    if stage is None:
        os.environ[STAGE] = "outer"
        os.execvp("unshare", ["unshare", "--mount", "--pid", "--fork", "--kill-child", sys.executable, *sys.argv])
    if stage == "outer":
        base = tempfile.mkdtemp()
        run("mount", "-t", "tmpfs", "-o", "size=3g", "tmpfs", base)
        whole = f"{base}/whole"
        for folder in "upper", "work", "whole":
            os.mkdir(f"{base}/{folder}")
        run("mount", "-t", "overlay", "overlay", "-o", f"lowerdir=/,upperdir={base}/upper,workdir={base}/work", whole)
        run("mount", "-t", "proc", "proc", f"{whole}/proc")
        for folder in "dev", "sys":
            run("mount", "--rbind", f"/{folder}", f"{whole}/{folder}")
        run("mount", "-t", "tmpfs", "tmpfs", f"{whole}/run")
        if os.path.exists("/run/resolvconf"):
            shutil.copytree("/run/resolvconf", f"{whole}/run/resolvconf")
        os.environ[STAGE] = "inner"
        os.execvp("chroot", ["chroot", whole, sys.executable, str(pathlib.Path(sys.argv[0]).resolve()), *sys.argv[1:]])


def install(*packages):
    pathlib.Path("/usr/sbin/policy-rc.d").write_text("#!/bin/sh\nexit 101\n")
    os.chmod("/usr/sbin/policy-rc.d", 0o755)
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "env": os.environ | {"DEBIAN_FRONTEND": "noninteractive"}}
    run("apt-get", "update", **quiet)
    run("apt-get", "install", "-y", "--no-install-recommends", *packages, **quiet)


def slurm():
    """Brings up munge and Slurm with nodes n1 and n2, both this host."""
    install("slurm-wlm", "munge")
    host = subprocess.check_output(["hostname", "-s"], text=True).strip()
    with open("/etc/hosts", "a") as hosts:
        hosts.write(f"127.0.0.1 {host} n1 n2\n")
    for folder in "/run/munge", "/var/log/munge", "/var/lib/munge", "/run/slurm/ctld", "/run/slurm/n1", "/run/slurm/n2", "/etc/slurm":
        os.makedirs(folder, exist_ok=True)
    pathlib.Path("/etc/munge/munge.key").write_bytes(os.urandom(1024))
    run("chown", "-R", "munge:munge", "/run/munge", "/var/log/munge", "/var/lib/munge", "/etc/munge")
    os.chmod("/etc/munge/munge.key", 0o400)
    run("setpriv", "--reuid", "munge", "--regid", "munge", "--clear-groups", "munged", "--force")
    pathlib.Path("/etc/slurm/slurm.conf").write_text(SLURM_CONF.format(host=host))
    for daemon in ["slurmctld"], ["slurmd", "-N", "n1"], ["slurmd", "-N", "n2"]:
        run(*daemon)
    idle = lambda: subprocess.run(["sinfo", "-h", "-o", "%D", "-t", "idle"], capture_output=True, text=True).stdout.strip() == "2"
    wait_until(idle, "two idle nodes")


def wait_until(condition, what):
    deadline = time.monotonic() + PATIENCE_S
    while not (value := condition()):
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.02)
    return value


class Job:
    """What one launcher starts, and its output."""

    def __init__(self, command, environment):
        self.lines, keep = [], os.environ.get("PATH", "")
        clean = {name: value for name, value in os.environ.items() if not name.startswith("NANOINFER_")}
        clean |= {"PATH": f"{LAUNCH.parent}:{keep}", "NANOINFER_DEVICE": "cpu", "NANOINFER_DTYPE": "f32"} | environment
        self.process = subprocess.Popen([str(word) for word in command], env=clean, stdin=subprocess.DEVNULL,
                                        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        threading.Thread(target=lambda: self.lines.extend(self.process.stdout), daemon=True).start()

    def ready(self):
        def url():
            assert self.process.poll() is None, self.log()
            return re.search(r"ready on (http://\S+)", self.log())
        try:
            self.url = wait_until(url, "the server")[1].replace("0.0.0.0", "127.0.0.1")
        except AssertionError:
            print(self.log(), file=sys.stderr)
            raise
        return self

    def log(self):
        return "".join(self.lines)

    def get(self, path):
        return urllib.request.urlopen(self.url + path, timeout=PATIENCE_S).read().decode()

    def ask(self):
        request = urllib.request.Request(self.url + "/v1/completions", json.dumps(BODY).encode())
        return json.load(urllib.request.urlopen(request, timeout=PATIENCE_S))["choices"][0]["text"]

    def metric(self, name):
        return float(re.search(rf"^{name} (\S+)$", self.get("/metrics"), re.M)[1])


def ranks():
    """Process ids by rank."""
    found = {}
    for folder in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"worker" in words[:2] and b"--rank" in words:
            found[int(words[words.index(b"--rank") + 1])] = int(folder.name)
    return found


def second_node():
    """The process of node 1, as Slurm numbers it; none while there is none."""
    for folder in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            words, environment = ((folder / name).read_bytes().split(b"\0") for name in ("cmdline", "environ"))
        except OSError:
            continue
        if words[0].endswith(b"nanoinfer-launch") and words[1] == b"node" and b"SLURM_NODEID=1" in environment:
            return int(folder.name)
    return None


def sent():
    """Bytes that data links and control links of ranks have sent, by what the kernel counts of sockets."""
    text = subprocess.check_output(["ss", "-tinH", "state", "established"], text=True)
    total = 0
    for head, counts in re.findall(r"^(\S.*)\n\s+(.*)$", text, re.M):
        port = int(head.split()[2].rsplit(":", 1)[1])
        if PORTS[0] <= port <= PORTS[1] and (count := re.search(r"bytes_sent:(\d+)", counts)):
            total += int(count[1])
    return total


def row(name, job, end, expected, keeps_nodes=False):
    job.ready()
    source = re.search(r"this is node 0 of 2, by ([^;\n]*)", job.log())
    assert source, job.log()
    before, text = sent(), job.ask()
    wire = sent() - before
    # Of each token that is computed, at least its sums; there is no shared memory that could have taken them.
    assert wire >= BODY["max_tokens"] * SUMS * WIDTH * 4, (wire, job.log())
    same, killed = text == expected, []

    def kill():
        time.sleep(0.05)
        killed.append(os.kill(ranks()[1], signal.SIGKILL))

    killer = threading.Thread(target=kill)
    killer.start()
    under_kill = job.ask()
    killer.join()
    wait_until(lambda: job.metric("nanoinfer_rank_restarts_total") == 1, "the rank again")
    same &= under_kill == expected and job.ask() == expected
    again = job.metric("nanoinfer_recovery_seconds_sum")
    assert "pools=Kept" in job.log(), job.log()
    if keeps_nodes:
        # Whoever started it starts it again, and it its rank.
        os.kill(second_node(), signal.SIGKILL)
        same &= job.ask() == expected
        wait_until(lambda: job.metric("nanoinfer_rank_restarts_total") == 2, "the node again")
    begun = time.monotonic()
    end(job)
    code = job.process.wait(PATIENCE_S)
    wait_until(lambda: not ranks(), "the end of all ranks")
    print(f"| {name} | {source[1]} | {'the same' if same else 'ANOTHER'} | {wire / BODY['max_tokens'] / 1e3:.1f} | {again:.2f} | {time.monotonic() - begun:.1f} | {code} |", flush=True)
    return same


def main():
    word = sys.argv[1] if len(sys.argv) > 1 else ""
    enter()
    run("ip", "link", "set", "lo", "up")
    one = Job([LAUNCH, "--nproc", "2", "--port", "0"], {}).ready()
    expected = one.ask()
    one.process.terminate()
    one.process.wait(PATIENCE_S)
    # As it was unpacked; a folder of its own, so that a script that names a model has one without a network.
    demo = next(pathlib.Path(os.environ.get("HOME", "/root"), ".cache/nanoinfer").glob("nano-chat-*"))
    secret = {"NANOINFER_SECRET": os.urandom(24).hex(), "NANOINFER_DATA_PORTS": f"{PORTS[0]}-{PORTS[1]}"}
    options = ["node", "--nproc", "2", "--port", "0"]
    terminate = lambda job: job.process.terminate()
    good = True
    print("| started by | taken from | text | KB on sockets a token | rank again, s | end, s | exit code |\n|---|---|---|---|---|---|---|", flush=True)
    if "slurm" in word or not word:
        slurm()
        # A signal to srun itself kills its tasks at once.
        cancel = lambda job: run("scancel", "--signal=TERM", subprocess.check_output(["squeue", "-ho", "%i"], text=True).split()[0])
        good &= row("Slurm, srun", Job(["srun", "-N2", "--ntasks-per-node=1", "-K0", LAUNCH, *options], secret), cancel, expected)
        output = pathlib.Path("/run/sbatch.out")
        batch = Job(["sbatch", "-W", "-o", output, "--nodes=2", ROOT / "configs/slurm.sbatch"],
                    secret | {"MODEL": str(demo), "PORT": "18000"})
        batch.log = lambda: output.read_text() if output.exists() else ""
        good &= row("Slurm, configs/slurm.sbatch", batch, cancel, expected, keeps_nodes=True)
    at = ["--connect", "127.0.0.1:20123", "--nodes", "2"]
    if "openmpi" in word or not word:
        install("openmpi-bin")
        command = ["mpirun.openmpi", "--allow-run-as-root", "--oversubscribe", "-np", "2", "-x", "NANOINFER_SECRET", LAUNCH, *options, *at]
        good &= row("Open MPI", Job(command, secret), terminate, expected)
    if "mpich" in word or not word:
        install("mpich")
        good &= row("MPICH", Job(["mpiexec.mpich", "-n", "2", LAUNCH, *options, *at], secret), terminate, expected)
    if "lws" in word or not word:
        # The leader's name does not resolve before the leader is there.
        group = secret | {"LWS_LEADER_ADDRESS": "leader.nanoinfer", "LWS_GROUP_SIZE": "2"}
        second = Job([LAUNCH, *options], group | {"LWS_WORKER_INDEX": "1"})
        wait_until(lambda: "waits for the coordinator" in second.log(), "the second to knock")
        first = Job([LAUNCH, *options], group | {"LWS_WORKER_INDEX": "0"})
        with open("/etc/hosts", "a") as hosts:
            hosts.write("127.0.0.1 leader.nanoinfer\n")
        good &= row("LeaderWorkerSet's variables", first, terminate, expected)
        good &= second.process.wait(PATIENCE_S) == 0
    sys.exit(not good)


if __name__ == "__main__":
    main()

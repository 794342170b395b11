"""The real binary on a free loopback port."""

import pathlib
import re
import socket
import subprocess
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
LAUNCH = ROOT / "target/release/nanoinfer-launch"
PATIENCE_S = 60


class Server:
    """A running nanoinfer-launch; `url` is where it listens."""

    def __init__(self, *arguments, dtype="f32"):
        # The reference computes in f32, which the default is not on every CPU. A subcommand comes first.
        command = [LAUNCH, *arguments, "--port", "0", "--dtype", dtype]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True)
        self.log = []
        self.url = None
        ready = threading.Event()

        def read():
            for line in self.process.stderr:
                self.log.append(line)
                if found := re.match(r"ready on (http://\S+)", line):
                    self.url = found[1]
                    ready.set()
            ready.set()

        threading.Thread(target=read, daemon=True).start()
        assert ready.wait(PATIENCE_S) and self.url, "".join(self.log)

    def stop(self):
        self.process.terminate()
        self.process.wait(PATIENCE_S)


class TwoNodes:
    """The demo model on two nodes of a rank each; the second is away from when it is lost until it joins again."""

    def __init__(self, folder):
        self.secret = folder / "secret"
        self.secret.write_text("a long enough shared secret")
        self.secret.chmod(0o600)

    def __enter__(self):
        self.port = free_port()
        # It knocks until the door is open.
        self.join()
        self.server = Server("node", "--nodes", "2", "--listen", f"127.0.0.1:{self.port}", "--secret-file", self.secret, "--nproc", "2")
        return self

    def join(self):
        command = [LAUNCH, "node", "--connect", f"127.0.0.1:{self.port}", "--secret-file", self.secret]
        self.second = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL)

    def lose(self):
        self.second.kill()
        self.second.wait(PATIENCE_S)

    def __exit__(self, *_):
        self.server.stop()
        self.second.wait(PATIENCE_S)


def free_port():
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return bound.getsockname()[1]


def wait_until(condition, what, patience_s=PATIENCE_S):
    """Polls until `condition` holds, or fails."""
    deadline = time.monotonic() + patience_s
    while not (value := condition()):
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.02)
    return value

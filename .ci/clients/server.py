"""The real binary on a free loopback port."""

import pathlib
import re
import subprocess
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
LAUNCH = ROOT / "target/release/nanoinfer-launch"
PATIENCE_S = 60


class Server:
    """A running nanoinfer-launch; `url` is where it listens."""

    def __init__(self, *arguments, dtype="f32"):
        # The reference computes in f32, which the default is not on every CPU.
        command = [LAUNCH, "--port", "0", "--dtype", dtype, *arguments]
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


def wait_until(condition, what, patience_s=PATIENCE_S):
    """Polls until `condition` holds, or fails."""
    deadline = time.monotonic() + patience_s
    while not (value := condition()):
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.02)
    return value

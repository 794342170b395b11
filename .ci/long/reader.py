#!/usr/bin/env python3
"""A reader follows README.md and docs/learn in a fresh clone: every command of every block, in order, as it stands.

What crates there are is fetched first; then there is no network but loopback, in a namespace of its own, so that port 8000 is free too. A
server stays up, as in another terminal, until the next or the end of its document, and has to end well. Commands that need what only the
network has are named with the reason. Prints a row a document.

Needs root, for the namespace. usage: .ci/long/reader.py [--target FOLDER] [DOCUMENT...]
    --target    a built target/ to begin with; without, all is built, which takes some 15 minutes
    DOCUMENT    only these, such as docs/learn/4-build.md
"""

import argparse
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
DOCUMENTS = ["README.md", *(f"docs/learn/{name}.md" for name in ("README", "1-understand", "2-optimise", "3-serve", "4-build"))]
LEFT_OUT = {
    "HuggingFaceTB/": "fetches a model",
    "~/.cache/nanochat/": "needs a checkpoint of nanochat",
    "cargo test": "takes an hour, in .ci/run",
}
# What the text announces to fail: an answer that is wrong, and code that is not yet written.
FAILS = {"cargo run --release --example exercise -- 1 12", "cargo run --release --example check -- 1"}
ISOLATED = "READER_ISOLATED"
PATIENCE_S = 1800


def enter():
    """Ends in this script, in a network namespace with loopback alone."""
    if ISOLATED not in os.environ:
        os.environ[ISOLATED] = "yes"
        loopback = 'ip link set lo up && exec "$@"'
        os.execvp("unshare", ["unshare", "--net", "bash", "-c", loopback, "bash", sys.executable, *sys.argv])


def blocks(text):
    """Commands of the blocks of a document."""
    for block in re.findall(r"^```sh\n(.*?)^```$", text, re.M | re.S):
        yield from (line for line in block.splitlines() if line and not line.startswith("#"))


def is_server(command):
    return ("nanoinfer-launch" in command and "--plan" not in command) or "step_11_http" in command


class Terminal:
    """Runs commands one after another; what they export stays."""

    def __init__(self, clone, cache):
        self.clone = clone
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith("NANOINFER_")}
        self.environment |= {"CARGO_NET_OFFLINE": "true", "CARGO_TERM_COLOR": "never", "XDG_CACHE_HOME": str(cache), "NO_PROXY": "127.0.0.1"}
        self.server = None

    def run(self, command):
        """Fails where the command does."""
        if is_server(command):
            self.stop()
            self.server = Server(command, self.clone, self.environment)
            return
        with tempfile.NamedTemporaryFile() as kept:
            script = f"set -euo pipefail\n{command}\nenv -0 > {kept.name}"
            done = subprocess.run(["bash", "-c", script], cwd=self.clone, env=self.environment, stdin=subprocess.DEVNULL, text=True,
                                  stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=PATIENCE_S)
            expected = 1 if command in FAILS else 0
            assert done.returncode == expected, f"{command}\nended with {done.returncode}:\n{done.stdout[-4000:]}"
            if exported := pathlib.Path(kept.name).read_text():
                self.environment = dict(pair.split("=", 1) for pair in exported.split("\0") if "=" in pair)

    def stop(self):
        if self.server:
            self.server.stop()
        self.server = None


class Server:
    """A command that goes on until it is told to end."""

    def __init__(self, command, clone, environment):
        self.command, self.lines, ready = command, [], threading.Event()
        self.process = subprocess.Popen(["bash", "-c", f"exec {command}"], cwd=clone, env=environment, stdin=subprocess.DEVNULL, text=True,
                                        stdout=subprocess.PIPE, stderr=subprocess.STDOUT)

        def read():
            for line in self.process.stdout:
                self.lines.append(line)
                if re.match(r"(ready on )?http://127", line):
                    self.is_up = True
                    ready.set()
            ready.set()

        self.is_up = False
        threading.Thread(target=read, daemon=True).start()
        assert ready.wait(PATIENCE_S) and self.is_up, f"{command}\n{''.join(self.lines)[-4000:]}"

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        status = self.process.wait(PATIENCE_S)
        # The last program of the lessons knows no signals.
        expected = -signal.SIGTERM if "step_11_http" in self.command else 0
        assert status == expected, f"{self.command}\nended with {status}:\n{''.join(self.lines)[-4000:]}"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--target", type=pathlib.Path)
    parser.add_argument("documents", nargs="*")
    options = parser.parse_args()
    if ISOLATED not in os.environ:
        subprocess.run(["cargo", "fetch", "--locked", "--quiet"], cwd=ROOT, check=True)
    enter()
    with tempfile.TemporaryDirectory() as folder:
        clone, cache = pathlib.Path(folder) / "clone", pathlib.Path(folder) / "cache"
        cache.mkdir()
        subprocess.run(["git", "clone", "--quiet", ROOT, clone], check=True)
        if options.target:
            subprocess.run(["cp", "-a", "--reflink=auto", options.target, clone / "target"], check=True)
        terminal = Terminal(clone, cache)
        print("| document | commands | left out | s |\n|---|---|---|---|")
        for document in DOCUMENTS:
            is_followed = not options.documents or document in options.documents
            begun, left_out, count = time.monotonic(), [], 0
            for command in blocks((clone / document).read_text()):
                why = next((f"`{command}` {why}" for part, why in LEFT_OUT.items() if part in command), None)
                if why and is_followed:
                    left_out.append(why)
                elif is_followed or command.startswith("export "):
                    terminal.run(command)
                    count += 1
            terminal.stop()
            if is_followed:
                print(f"| {document} | {count} | {'; '.join(left_out)} | {time.monotonic() - begun:.0f} |", flush=True)


main()

#!/usr/bin/env python3
"""From packages to an answer: the wheel in an environment of its own, the Debian package and the archive in a clean Debian (debootstrap),
the image's files alone. Prints seconds and megabytes; what takes too long, is too large or differs from build to build is an error.

usage: .ci/long/packages.py [--built FOLDER]      FOLDER as in packaging/make.py
Needs root and debootstrap, which it installs where it is missing.
"""

import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parents[2]
PACKAGES = ROOT / "target/packages"
WORK = ROOT / "target/long/packages"
QUESTION, PARIS = "What is the capital of France?", "The capital of France is Paris."
# What a stranger waits at most, from the package to the answer.
PATIENCE_S = 30
IMAGE_BYTES = 60e6


def run(*command, **more):
    return subprocess.run([str(word) for word in command], check=True, text=True, **more)


def answers(*prefix):
    """What `nanoinfer generate` says there."""
    return run(*prefix, "generate", "--prompt", QUESTION, "--temperature", "0", capture_output=True).stdout.strip()


def timed(what, installed_and_asked):
    begun = time.monotonic()
    said = installed_and_asked()
    took = time.monotonic() - begun
    assert said == PARIS, (what, said)
    assert took < PATIENCE_S, f"{what} took {took:.1f} s"
    print(f"{what}: an answer after {took:.1f} s", flush=True)


def wheel():
    environment = WORK / "venv"
    shutil.rmtree(environment, ignore_errors=True)
    run(sys.executable, "-m", "venv", environment)
    [package] = PACKAGES.glob("*.whl")

    def installed_and_asked():
        run(environment / "bin/pip", "install", "--quiet", "--no-index", "--disable-pip-version-check", package)
        return answers(environment / "bin/nanoinfer")

    timed("the wheel", installed_and_asked)
    run(environment / "bin/nanoinfer-launch", "--version", stdout=subprocess.DEVNULL)


def debian():
    """A Debian with nothing but what all have."""
    root = WORK / "debian"
    if not (root / "usr/bin/dpkg").exists():
        if not shutil.which("debootstrap"):
            run("apt-get", "update", "--quiet=2")
            run("apt-get", "install", "--quiet=2", "--no-install-recommends", "debootstrap", stdout=subprocess.DEVNULL)
        shutil.rmtree(root, ignore_errors=True)
        run("debootstrap", "--variant=minbase", "bookworm", root, stdout=subprocess.DEVNULL)
    return root


def inside(root):
    """Runs a command in a root of its own, with processes and devices, and nothing of the environment."""
    script = 'mount -t proc proc "$0/proc" && mount --bind /dev "$0/dev" && exec chroot "$0" "$@"'
    clean = ["env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LC_ALL=C"]
    return [*clean, "unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", script, root]


def package_in_debian(root):
    [package] = PACKAGES.glob("*.deb")
    shutil.copy(package, root / "nanoinfer.deb")

    def installed_and_asked():
        run(*inside(root), "dpkg", "--install", "/nanoinfer.deb", stdout=subprocess.DEVNULL)
        return answers(*inside(root), "nanoinfer")

    timed("the Debian package in a clean Debian", installed_and_asked)
    run(*inside(root), "dpkg", "--purge", "nanoinfer", stdout=subprocess.DEVNULL)


def archive_in_debian(root):
    [package] = PACKAGES.glob("*.tar.gz")
    shutil.copy(package, root / package.name)

    def unpacked_and_asked():
        run(*inside(root), "tar", "-xzf", f"/{package.name}", "-C", "/opt")
        return answers(*inside(root), f"/opt/{package.name.removesuffix('.tar.gz')}/nanoinfer")

    timed("the archive in a clean Debian", unpacked_and_asked)


def image(root):
    """The files of packaging/Containerfile, made by its own command, as there is no registry to take a base from."""
    text = (ROOT / "packaging/Containerfile").read_text()
    [command] = re.findall(r"^RUN (.*?[^\\])$", text, re.MULTILINE | re.DOTALL)
    [package] = PACKAGES.glob("*.tar.gz")
    for folder in ["image", "packages"]:
        shutil.rmtree(root / folder, ignore_errors=True)
        (root / folder).mkdir()
    shutil.copy(package, root / "packages")
    run(*inside(root), "sh", "-euc", "cd /image\n" + command)
    files = root / "image"
    size = sum(path.lstat().st_size for path in files.rglob("*") if path.is_file() and not path.is_symlink())
    assert size < IMAGE_BYTES, f"the image has {size / 1e6:.1f} MB"
    # As every container has them.
    for folder in ["proc", "dev"]:
        (files / folder).mkdir()
    server = subprocess.Popen(
        ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c",
         'mount -t proc proc "$0/proc" && mount --bind /dev "$0/dev" && exec chroot --userspec 65532:65532 "$0" /bin/nanoinfer-launch --port 0 --nproc 2', files],
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "XDG_CACHE_HOME": "/cache"}, stderr=subprocess.PIPE, text=True, start_new_session=True)
    try:
        url = next(found[1] for line in server.stderr if (found := re.match(r"ready on (\S+)", line)))
        body = f'{{"prompt": "{QUESTION}", "temperature": 0}}'.encode()
        said = urllib.request.urlopen(f"{url}/api/chat", body, timeout=60).read().decode()
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()
    assert PARIS in said, said
    print(f"the image: {size / 1e6:.1f} MB, and answers without anything else of a system", flush=True)


def main():
    built = sys.argv[1:]
    sums = []
    for _ in range(2):
        run(ROOT / "packaging/make.py", *built, stdout=subprocess.DEVNULL)
        sums.append((PACKAGES / "SHA256SUMS").read_text())
    assert sums[0] == sums[1], "two packages of one commit differ"
    WORK.mkdir(parents=True, exist_ok=True)
    wheel()
    root = debian()
    package_in_debian(root)
    archive_in_debian(root)
    image(root)


if __name__ == "__main__":
    main()

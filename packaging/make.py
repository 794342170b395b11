#!/usr/bin/env python3
"""Makes the packages of a release in target/packages: an archive, a wheel, a Debian package. The same commit gives the same bytes.

usage: packaging/make.py [--built FOLDER]
    --built FOLDER    packs the two programs there as they are, instead of building them for glibc 2.17

Needs Rust, python 3.11 with venv, binutils and dpkg-deb; takes the linker, zig, from PyPI. No static program: one could not load CUDA's driver.
"""

import argparse
import base64
import csv
import gzip
import hashlib
import io
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import zipfile

ROOT = pathlib.Path(__file__).resolve().parents[1]
OUT = ROOT / "target/packages"
PROGRAMS = ["nanoinfer", "nanoinfer-launch"]
# The oldest C library that will do: of 2012, as manylinux2014 and Debian 8 have it.
GLIBC = "2.17"
LINKER = ["ziglang==0.16.0", "cargo-zigbuild==0.24.1"]
TEXTS = ["README.md", "CHANGELOG.md", "LICENSE-MIT", "LICENSE-APACHE", "THIRD-PARTY-NOTICES.md"]
SUMMARY = "A tensor-parallel inference server for language models, and its client."


def run(*command, **more):
    return subprocess.run(command, check=True, cwd=ROOT, text=True, **more)


def build():
    """Both programs, linked by zig against the names that the old C library has: what it has not is an error then."""
    tools = ROOT / "target/linker"
    if not (tools / "bin/cargo-zigbuild").exists():
        run(sys.executable, "-m", "venv", str(tools))
        run(str(tools / "bin/pip"), "install", "--quiet", "--disable-pip-version-check", *LINKER)
    # cargo-zigbuild knows which of rustc's words zig does not.
    linker = tools / "bin/cc-of-old"
    linker.write_text(f'#!/bin/sh\nPATH="{tools}/bin:$PATH" exec cargo-zigbuild zig cc -- -target x86_64-linux-gnu.{GLIBC} "$@"\n')
    linker.chmod(0o755)
    environment = os.environ | {"CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_LINKER": str(linker)}
    target = "x86_64-unknown-linux-gnu"
    run("cargo", "build", "--release", "--locked", "--workspace", "--bins", "--target", target, env=environment)
    return ROOT / "target" / target / "release"


def needed_glibc(program):
    """The newest symbol version that a program asks for."""
    symbols = run("objdump", "-T", str(program), capture_output=True).stdout
    versions = {tuple(map(int, version.split("."))) for version in re.findall(r"GLIBC_([\d.]+)", symbols)}
    return max(versions)


class Tree:
    """Files of a package: path, bytes, whether it is a program; all of one time and of root."""

    def __init__(self, time):
        self.time, self.files = time, []

    def add(self, path, data, program=False):
        self.files.append((path, data.encode() if isinstance(data, str) else data, 0o755 if program else 0o644))

    def tar(self, out, prefix):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as tar:
            folders = sorted({str(parent) for path, _, _ in self.files for parent in pathlib.PurePath(path).parents if str(parent) != "."})
            for folder in folders:
                tar.addfile(self.info(prefix + folder + "/", 0o755, tarfile.DIRTYPE))
            for path, data, mode in self.files:
                info = self.info(prefix + path, mode)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
        out.write_bytes(gzip.compress(buffer.getvalue(), 6, mtime=0))

    def info(self, path, mode, kind=tarfile.REGTYPE):
        info = tarfile.TarInfo(path)
        info.mode, info.mtime, info.uname, info.gname, info.type = mode, self.time, "root", "root", kind
        return info

    def wheel(self, out, name, version, tag):
        about = f"{name}-{version}.dist-info"
        readme = (ROOT / "README.md").read_text()
        self.add(f"{about}/METADATA", f"Metadata-Version: 2.3\nName: {name}\nVersion: {version}\nSummary: {SUMMARY}\n"
                 f"License-Expression: MIT OR Apache-2.0\nDescription-Content-Type: text/markdown\n\n{readme}")
        self.add(f"{about}/WHEEL", f"Wheel-Version: 1.0\nGenerator: packaging/make.py\nRoot-Is-Purelib: false\nTag: {tag}\n")
        for text in TEXTS[2:]:
            self.add(f"{about}/licenses/{text}", (ROOT / text).read_bytes())
        record = io.StringIO()
        rows = csv.writer(record, lineterminator="\n")
        for path, data, _ in self.files:
            digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
            rows.writerow([path, f"sha256={digest}", len(data)])
        rows.writerow([f"{about}/RECORD", "", ""])
        self.add(f"{about}/RECORD", record.getvalue())
        # The oldest time that a zip can say: the contents are what counts.
        with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as wheel:
            for path, data, mode in self.files:
                info = zipfile.ZipInfo(path, (1980, 1, 1, 0, 0, 0))
                info.external_attr, info.compress_type = (0o100000 | mode) << 16, zipfile.ZIP_DEFLATED
                wheel.writestr(info, data)


def debian(out, programs, version, time):
    """By dpkg-deb, from a folder."""
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder) / "root"
        os.umask(0o022)

        def place(path, data, mode=0o644):
            target = root / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)
            target.chmod(mode)

        for name, data in programs.items():
            place(f"usr/bin/{name}", data, 0o755)
        place("usr/lib/systemd/system/nanoinfer.service", (ROOT / "configs/nanoinfer.service").read_bytes())
        place("etc/nanoinfer.toml", (ROOT / "configs/nanoinfer.toml").read_bytes())
        notices = "".join((ROOT / text).read_text() + "\n" for text in TEXTS[2:])
        place("usr/share/doc/nanoinfer/copyright", notices.encode())
        place("usr/share/doc/nanoinfer/README.md", (ROOT / "README.md").read_bytes())
        size = sum(path.stat().st_size for path in root.rglob("*") if path.is_file()) // 1024
        place("DEBIAN/conffiles", b"/etc/nanoinfer.toml\n")
        place("DEBIAN/control", f"""Package: nanoinfer
Version: {version}
Architecture: amd64
Maintainer: The NanoInfer authors <nanoinfer@localhost>
Installed-Size: {size}
Depends: libc6 (>= {GLIBC}), libgcc-s1 | libgcc1
Section: science
Priority: optional
Description: {SUMMARY}
 Serves GPT-2, Llama, SmolLM2, Mistral and Qwen over HTTP, split over as many
 processes as wanted. The service is not started by itself:
 systemctl enable --now nanoinfer, after a look at /etc/nanoinfer.toml.
""".encode())
        run("dpkg-deb", "--root-owner-group", "-Zgzip", "--build", str(root), str(out), env=os.environ | {"SOURCE_DATE_EPOCH": str(time)},
            stdout=subprocess.DEVNULL)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--built", type=pathlib.Path)
    arguments = parser.parse_args()
    built = arguments.built or build()
    version = tomllib.loads((ROOT / "Cargo.toml").read_text())["workspace"]["package"]["version"]
    time = int(run("git", "log", "-1", "--format=%ct", capture_output=True).stdout)
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir(parents=True)
    programs = {}
    for name in PROGRAMS:
        stripped = OUT / name
        # Names of functions stay, for what a crash tells.
        run("strip", "--strip-debug", "-o", str(stripped), str(built / name))
        programs[name] = stripped.read_bytes()
        needed = needed_glibc(stripped)
        print(f"{name}: {len(programs[name]) / 1e6:.1f} MB, needs glibc {'.'.join(map(str, needed))}")
        assert arguments.built or needed <= tuple(map(int, GLIBC.split("."))), f"{name} needs more than glibc {GLIBC}"
        stripped.unlink()

    archive = Tree(time)
    for name, data in programs.items():
        archive.add(name, data, program=True)
    for text in TEXTS:
        archive.add(text, (ROOT / text).read_bytes())
    for config in sorted((ROOT / "configs").rglob("*")):
        if config.is_file():
            archive.add(str(config.relative_to(ROOT)), config.read_bytes())
    name = f"nanoinfer-{version}-linux-x86_64"
    archive.tar(OUT / f"{name}.tar.gz", name + "/")

    wheel = Tree(time)
    for name, data in programs.items():
        wheel.add(f"nanoinfer-{version}.data/scripts/{name}", data, program=True)
    tag = "py3-none-manylinux2014_x86_64"
    wheel.wheel(OUT / f"nanoinfer-{version}-{tag}.whl", "nanoinfer", version, tag)

    debian(OUT / f"nanoinfer_{version}_amd64.deb", programs, version, time)
    sums = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in sorted(OUT.iterdir())]
    (OUT / "SHA256SUMS").write_text("".join(sums))
    print("".join(sums), end="")


if __name__ == "__main__":
    main()

#!/usr/bin/env bash
# Lines of the product's code by folder: without blank lines, comments, tests and generated files.
#
#     benches/lines.sh [COMMIT]
set -euo pipefail
cd "$(dirname "$0")/.."
exec python3 - "${1:-HEAD}" <<'PYTHON'
import collections, re, subprocess, sys

COMMIT = sys.argv[1]
FOLDERS = "shared worker/checkpoint worker/reference worker/kernels worker coordinator launcher client eval".split()
CODE = re.compile(r"\.(rs|cu|h|py|js|css|html)$")
# Files that only tests compile, and what makes the demo model.
NOT_PRODUCT = re.compile(r"/tests/|[/_]tests\.rs$|/simulation(/|\.rs$)|/(testing|fake_rank)\.rs$|/demo/")
C_COMMENT = re.compile(r"/\*.*?\*/", re.S)
# What is marked for tests ends where its indentation comes back; a marked line that opens nothing is that line.
FOR_TESTS = re.compile(r"^( *)#\[cfg\(test\)\]\n(?: *#\[.*\n)*(?:.*\{\n(?:.*\n)*?\1\}\n|.*\n)", re.M)


def show(path):
    return subprocess.run(["git", "show", f"{COMMIT}:{path}"], capture_output=True, check=True).stdout.decode()


def count(path, text):
    if path.endswith(".py"):
        return sum(1 for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#"))
    if path.endswith(".rs"):
        text = FOR_TESTS.sub("", text)
    elif path.endswith(".html"):
        text = re.sub(r"<!--.*?-->", "", text, flags=re.S)
    else:
        text = C_COMMENT.sub("", text)
    return sum(1 for line in text.splitlines() if line.strip() and not line.lstrip().startswith("//"))


lines, files = collections.Counter(), collections.Counter()
for path in subprocess.run(["git", "ls-tree", "-r", "--name-only", COMMIT], capture_output=True, check=True, text=True).stdout.split():
    folder = next((folder for folder in FOLDERS if path.startswith(folder + "/")), None)
    if folder and CODE.search(path) and not NOT_PRODUCT.search("/" + path):
        lines[folder] += count(path, show(path))
        files[folder] += 1
for folder in FOLDERS:
    if files[folder]:
        print(f"{folder:18} {lines[folder]:6,} lines  {files[folder]:3} files")
print(f"{'all':18} {lines.total():6,} lines  {files.total():3} files")
PYTHON

"""The official JSON Schema test suite's schemas, as what answers must be.

The demo model draws nearly at random (a temperature of 100), a little drawn to what ends things: whatever it is told to be, an answer that ends
by itself must be. The suite comes in the source package of jsonschema.
"""

import json
import pathlib
import re
import subprocess
import sys
import tarfile

import httpx
from jsonschema import Draft202012Validator

PACKAGE = "jsonschema-4.26.0"
FOLDER = f"{PACKAGE}/json/tests/draft2020-12/"
# What makes strings, lists and objects end now and then.
ENDS = ['"', "}", "]", '"}', '"]', "{", "[", ":", ",", "1", "0", " "]


def suite(cache: pathlib.Path):
    """Every schema of the draft by file and description; what needs other documents is among them."""
    archive = cache / f"{PACKAGE}.tar.gz"
    if not archive.exists():
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        subprocess.run([*command, "--no-binary", ":all:", "--dest", cache, PACKAGE.replace("-", "==")], check=True)
    with tarfile.open(archive) as files:
        for member in sorted(files.getmembers(), key=lambda member: member.name):
            name = member.name.removeprefix(FOLDER)
            if member.name.startswith(FOLDER) and name.endswith(".json"):
                for case in json.load(files.extractfile(member)):
                    yield f"{name.removesuffix('.json')}: {case['description']}", case["schema"]


def ending_bias(url):
    """Token ids of what ends things, with what is added to their logits: at a temperature of 100 much is little."""
    ids = [httpx.post(f"{url}/tokenize", json={"prompt": text, "add_special_tokens": False}).json()["tokens"] for text in ENDS]
    return {str(one[0]): 100 for one in ids if len(one) == 1}


def answers(url, schema, n, bias, temperature=20, max_tokens=120, seed=1):
    """What the model says to a schema: texts with how each ended, or the words of a refusal."""
    body = {"prompt": "", "n": n, "temperature": temperature, "seed": seed, "max_tokens": max_tokens, "logit_bias": bias,
            "structured_outputs": {"json": schema}}
    reply = httpx.post(f"{url}/v1/completions", json=body, timeout=120)
    if reply.status_code == 400:
        return None, reply.json()["error"]["message"]
    assert reply.status_code == 200, (schema, reply.text)
    return [(choice["text"], choice["finish_reason"]) for choice in reply.json()["choices"]], None


def run(url, cases, n, **how):
    """Refusals by case, how answers ended, and those that ended by themselves and are not what they were to be."""
    bias = ending_bias(url)
    refusals, ended, wrong = {}, {"stop": 0, "length": 0}, []
    for name, schema in cases:
        texts, refusal = answers(url, schema, n, bias, **how)
        if refusal:
            refusals[name] = refusal
            continue
        validator = Draft202012Validator(schema, format_checker=Draft202012Validator.FORMAT_CHECKER)
        for text, reason in texts:
            ended[reason] += 1
            if reason != "stop":
                continue
            try:
                validator.validate(json.loads(text))
            except re.error:
                pass  # Python knows fewer regular expressions.
            except Exception as error:  # noqa: BLE001: whatever it is, it is told
                wrong.append((name, text, str(error).splitlines()[0]))
    return refusals, ended, wrong

"""The file of recorded requests: each once, and lists of tools, which are long and always the same, once beside them.

Fields, values and sizes are those that were sent. Prose of Open WebUI's own (what tools are for, how titles are asked for) is
masked, letter by letter: it is not ours to pass on, and no server looks at what it says.
"""

import json
import re

from server import ROOT

FILE = ROOT / ".ci/clients/recorded/open_webui.json"


# What the prompts for titles, tags and their kind begin with.
TASK = "### Task:"


def masked(text):
    return re.sub(r"[A-Za-z]", "x", text)


def without_prose(value, name=None):
    """Of a request's body or a part of it, that is called `name`."""
    if isinstance(value, dict):
        return {name: without_prose(part, name) for name, part in value.items()}
    if isinstance(value, list):
        return [without_prose(part, name) for part in value]
    if isinstance(value, str) and name == "description":
        return masked(value)
    if isinstance(value, str) and name == "content" and value.startswith(TASK):
        return TASK + masked(value.removeprefix(TASK))
    return value


def write(notes):
    tools, requests, seen = {}, [], set()
    for note in notes:
        entry = {name: note[name] for name in ("connection", "doing", "method", "path", "headers", "body", "status") if name in note}
        body = without_prose(entry.get("body", {}))
        if offered := body.get("tools"):
            text = json.dumps(offered)
            body["tools"] = tools.setdefault(text, f"tools {len(tools) + 1}")
        if body:
            entry["body"] = body
        key = json.dumps([entry[name] for name in ("connection", "method", "path")] + [body])
        if key not in seen:
            seen.add(key)
            requests.append(entry)
    lists = {name: json.loads(text) for text, name in tools.items()}
    FILE.parent.mkdir(exist_ok=True)
    recorded = {"client": "Open WebUI 0.12.4", "tools": lists, "requests": requests}
    FILE.write_text(json.dumps(recorded, indent=1, ensure_ascii=False) + "\n")

#!/usr/bin/env python3
"""Chat templates and what transformers renders from them: ../data/vectors/chat_templates.json.

    VENV/bin/python make_templates.py           # VENV: see README.md

Three kinds: TEMPLATES are small but whole, and see several conversations; those of family_templates.py are as long as models have
them, and see conversations with thinking and settings of requests too; one_line_templates.txt has one expression or statement a line, each
method, filter, test, global, operator and statement of Jinja2's sandbox, and sees one.
"""

import json
import os
import platform
import time
from datetime import datetime, timezone
from pathlib import Path

import jinja2
import transformers
from transformers.utils.chat_template_utils import _compile_jinja_template

import family_templates as families

SYSTEM = {"role": "system", "content": "Be <kind> & 'brief'."}
USER = {"role": "user", "content": "  Héllo \"you\" <b>\n\ttab \\ 日本 \u0001 "}
ASSISTANT = {"role": "assistant", "content": "Hi!"}
BYE = {"role": "user", "content": "Bye"}
CHAT = [SYSTEM, USER, ASSISTANT, BYE]
SHORT = [{"role": "user", "content": "Hi"}]

TEMPLATES = {
    "turns with markers": """{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}""",
    "only separators": "{% for message in messages %}{{ message.content }}{{ eos_token }}{% endfor %}",
    "system folded into the first turn": """{% if messages[0]['role'] == 'system' %}{% set system_message = messages[0]['content'] | trim + '\\n\\n' %}{% set loop_messages = messages[1:] %}{% else %}{% set system_message = '' %}{% set loop_messages = messages %}{% endif %}
{% for message in loop_messages %}
    {% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{ raise_exception('roles must alternate') }}
    {% endif %}
    {% if loop.first %}{% set content = system_message + message['content'] %}{% else %}{% set content = message['content'] %}{% endif %}
    {% if message['role'] == 'user' %}
        {{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}
    {% elif message['role'] == 'assistant' %}
        {{ ' ' + content | trim + ' ' + eos_token }}
    {% endif %}
{% endfor %}""",
    "whitespace control": """{%- for message in messages -%}
    {%- if not loop.first %}

    {% endif -%}
    {{- '### ' ~ message.role | capitalize ~ ':' }}
{{ message.content | trim -}}
{%- endfor %}
{%- if add_generation_prompt %}

### Assistant:
{% endif %}""",
    "generation marks": """{% for m in messages %}{% if m.role == 'assistant' %}A: {% generation %}{{ m.content }}{{ eos_token }}{% endgeneration %}{% else %}{{ m.role }}: {{ m.content }}
{% endif %}{% endfor %}""",
    "generation marks that trim": "{% for m in messages %}[ {%- generation -%}  {{ m.role }}  {%- endgeneration -%} ]{% endfor %}",
    "tojson": "{{ messages | tojson }}",
    "tojson of everything": "{{ {'b': [1, 2.0, 1e16, 1.5e-7, -0.0, 0.1, 100000.0, true, none], 'a': {}, 'é<&>': [], \"q'\": 'x\u2028/'} | tojson }}",
    "tojson indented": "{{ {'b': [1, {'c': []}], 'a': {'é': 'ü'}} | tojson(indent=4) }}",
    "tojson ascii": "{{ 'é日\U0001f600' | tojson(ensure_ascii=true) }}",
    "tojson sorted": "{{ {'b': 1, 'a': {'d': 1, 'c': 2}} | tojson(sort_keys=true) }}",
    "tojson separators": "{{ {'b': [1, 2], 'a': 'x'} | tojson(separators=(',', ':')) }}",
    "loop controls": "{% for m in messages %}{% if m.role == 'system' %}{% continue %}{% endif %}{% if loop.index > 2 %}{% break %}{% endif %}{{ loop.index }}{{ m.role }};{% endfor %}",
    "namespace": "{% set ns = namespace(n=0, last='') %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% set ns.last = m.role %}{% endfor %}{{ ns.n }}{{ ns.last }}",
    "python methods": "{% for m in messages %}{{ m['content'].strip().upper().replace('I', 'i').split(' ')[0] }}|{{ m.get('name', 'none') }}|{{ m.role.startswith('u') }}|{{ m.role.title() }};{% endfor %}{{ messages[0].items() | list | length }}",
    "slices and tests": "{{ messages[-1].content }}{{ messages[1:3] | length }}{{ messages[::-1][0].role }}{% if tools is none %}T{% endif %}{% if x is not defined %}D{% endif %}{% if messages[0].content is string %}S{% endif %}{% if messages is iterable and messages is not mapping %}I{% endif %}",
    "macros and filters": "{% macro turn(m, tag='x') %}<{{ tag }}>{{ m.content | trim | replace('\\n', ' ') | length }}</{{ tag }}>{% endmacro %}{% for m in messages %}{{ turn(m, tag=m.role) }}{% endfor %}{{ messages | map(attribute='role') | join(',') }}{{ messages | selectattr('role', 'equalto', 'user') | list | length }}",
    "conditions": "{{ 'a' if messages | length > 2 else 'b' }}{{ messages[0].name | default('anon') }}{{ (messages[9] is defined) }}{% if 'kind' in messages[0].content %}in{% endif %}",
    "special tokens": "{{ bos_token }}{{ eos_token }}{{ unk_token }}{{ pad_token }}",
    "no escaping": "{{ messages[0].content }}{{ '<b>' ~ \"&\" }}",
    "comments and blocks": "a\n{# a comment #}\n  {% if true %}\n  b\n  {% endif %}\nc{{ '\\n' }}",
}

CASES = {"chat": (CHAT, True), "short": (SHORT, False)}
TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}

# Moments around which weeks and years change, in seconds since 1970, and every directive of glibc's C locale.
MOMENTS = (0, 951782400, 1104537600, 1230768000, 1262304000, 1483228799, 1609459200, 1735603200, 1735689599, 1764327600, 1782864000)
FORMATS = ["%-d %B %Y", "%d %b %Y", "%A, %-m/%-d/%y %-I:%M %p", "%Y-%m-%d %H:%M:%S.%f"]
FORMATS += [" ".join(f"%{letter}" for letter in "aAbBcCdDeFgGhHIjklmMnpPrRsStTuUVwWxXyYzZ%")]
FORMATS += [" ".join(f"%{flag}{letter}" for letter in "aBdegHIjklmMpsSuUVwWyYC") for flag in ("-", "_", "0", "^", "#", "5", "_6", "08", "E", "O")]


def render(template: str, messages: list, add_generation_prompt: bool, **variables) -> dict:
    try:
        variables = {"tools": None} | TOKENS | variables
        text = _compile_jinja_template(template).render(messages=messages, documents=None,
                                                        add_generation_prompt=add_generation_prompt, **variables)
        return {"text": text}
    except Exception as error:  # Jinja's own, and whatever Python's methods raise
        return {"error": f"{type(error).__name__}: {error}"}


def one_liners() -> list:
    """One a line below headings, of which those of the last three parts say what the server makes of it: `here`."""
    lines = (Path(__file__).resolve().parent / "one_line_templates.txt").read_text(encoding="utf-8").splitlines()
    here, cases = {}, []
    for line in lines:
        if line.startswith("# "):
            part = line[2:].partition(":")[0]
            here = {"here": part} if part in ("refused", "passes", "differs") else {}
        else:
            cases.append({"template": line} | here | render(line, CHAT, True))
    return cases


def of_families() -> list:
    """Where a template asks for the date, the text has the format within braces."""
    date = {"strftime_now": lambda form: "{" + form + "}"}
    cases = []
    for name, template in families.TEMPLATES.items():
        for conversation, messages in families.CONVERSATIONS.items():
            for setting, variables in families.VARIABLES.items():
                # What a template does not name changes nothing: once is enough.
                if all(variable in template for variable in variables):
                    for prompt in (True, False):
                        rendered = render(template, messages, prompt, **date, **variables)
                        cases.append({"template": name, "conversation": conversation, "variables": variables, "add_generation_prompt": prompt} | rendered)
    return cases


def dates() -> list:
    moment = lambda seconds: datetime.fromtimestamp(seconds, timezone.utc).replace(tzinfo=None, microsecond=123456)
    return [{"seconds": seconds, "format": form, "text": moment(seconds).strftime(form)} for seconds in MOMENTS for form in FORMATS]


def main():
    os.environ["TZ"] = "UTC"  # `%s` goes through the host's zone
    time.tzset()
    cases = [{"name": f"{name}, {case}", "template": template, "messages": messages,
              "add_generation_prompt": prompt} | render(template, messages, prompt)
             for name, template in TEMPLATES.items() for case, (messages, prompt) in CASES.items()]
    out = {"made_by": "make_templates.py",
           "versions": {"python": platform.python_version(), "transformers": transformers.__version__,
                        "jinja2": jinja2.__version__},
           "tokens": TOKENS, "cases": cases, "messages": CHAT, "one_liners": one_liners(),
           "families": {"templates": families.TEMPLATES, "conversations": families.CONVERSATIONS, "cases": of_families()},
           "dates": dates()}
    path = Path(__file__).resolve().parent.parent / "data/vectors/chat_templates.json"
    path.write_text(json.dumps(out, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    for name, cases in (("cases", out["cases"]), ("one_liners", out["one_liners"]), ("families", out["families"]["cases"])):
        print(len(cases), name, "of which errors:", sum("error" in case for case in cases))


if __name__ == "__main__":
    main()

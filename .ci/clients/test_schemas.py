"""JSON Schema's official suite, a few answers a schema; `.ci/long` asks for more."""

import json
import pathlib

from schemas import run, suite
from server import ROOT

REFUSED = pathlib.Path(__file__).with_name("schemas_refused.json")


def test_every_answer_that_ends_by_itself_is_what_it_was_to_be(server):
    cases = list(suite(ROOT / "target/clients"))
    refusals, ended, wrong = run(server.url, cases, n=2)
    print(f"{len(cases)} schemas, {len(refusals)} refused; answers: {ended}; wrong: {len(wrong)}")
    assert not wrong, wrong[:10]
    assert ended["stop"] > len(cases) // 5, "many come to their end; strings without one, and numbers, are cut off"
    expected = json.loads(REFUSED.read_text())
    assert refusals == expected, "what is refused, and why, is known"

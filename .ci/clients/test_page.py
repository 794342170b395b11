"""The chat page in a real browser: chats that are kept, tokens, Markdown, settings, a lost rank, a key, a server that ends."""

import json
import pathlib
import re

import axe_playwright_python
import httpx
import pytest
import slow_model
from browser import new_browser
from selenium.webdriver import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from server import ROOT, Server, TwoNodes, wait_until

PARIS = "The capital of France is Paris."
FRANCE = "What is the capital of France?"
PHONE = {"width": 360, "height": 700, "deviceScaleFactor": 1, "mobile": True}
AXE = (pathlib.Path(axe_playwright_python.__file__).parent / "axe.min.js").read_text()

MARKDOWN = """\
# Lists

Three **ways**, and [a link](https://example.org/x) and [a bad one](javascript:alert(1)):

1. `xs[::-1]` copies
2. it *stays*

```python
def back(xs):
    return xs[::-1]  # a copy
```

| way | cost |
|---|--:|
| slice | O(n) |

<img src=x onerror=alert(1)> is text, 1 &lt; 2.
"""

# An answer of the server's form, a token each few letters, with a pause before each.
SCRIPTED = """
const [text, pause] = arguments, real = window.fetch;
window.fetch = (path, options) => {
  if (!path.startsWith("v1")) return real(path, options);
  const pieces = text.match(/[^]{1,4}/gu), encoder = new TextEncoder();
  const send = (object) => encoder.encode(`data: ${object}\\n\\n`);
  const chunk = (token) => send(JSON.stringify({choices: [{delta: {content: token}, finish_reason: null,
    logprobs: {content: [{token, logprob: -0.5, top_logprobs: [{token, logprob: -0.5}]}]}}]}));
  return Promise.resolve(new Response(new ReadableStream({async start(stream) {
    for (const piece of pieces) {
      await new Promise((resolve) => setTimeout(resolve, pause));
      if (options.signal.aborted) return stream.error(new Error("aborted"));
      stream.enqueue(chunk(piece));
    }
    stream.enqueue(send("[DONE]"));
    stream.close();
  }})));
};
"""

# A pool of thousands of blocks: texts that each hold as many, begin alike, and have left others behind.
LARGE_POOL = """
const real = window.fetch, [texts, each, kept, total] = arguments, json = (object) => new Response(JSON.stringify(object));
const range = (from, count) => Array.from({length: count}, (_, i) => from + i);
const tokens = 16 * each, before = {blocks_idle: range(texts * each, kept), sequences: range(0, texts).map((id) => (
  {id, prompt_tokens: 16, tokens, computed: tokens, blocks: [0, ...range(id * each + 1, each - 1)]}))};
const part = {id: 0, prompt_tokens: 16, tokens: tokens + 1, start: tokens - 1, end: tokens, blocks: []};
window.fetch = async (path, options) => {
  if (path.startsWith("api/steps")) return json({before, entries: [{kind: "step", step: 1, ms: 1, parts: [part]}], next: 1});
  const response = await real(path, options);
  return path === "api/cluster" ? json({...await response.json(), blocks_total: total}) : response;
};
"""


class Page:
    """What a person does with the page."""

    def __init__(self, browser, url):
        self.browser = browser
        browser.get(url)

    def find(self, selector):
        return self.browser.find_element(By.CSS_SELECTOR, selector)

    def all(self, selector):
        return self.browser.find_elements(By.CSS_SELECTOR, selector)

    def click(self, selector):
        wait_until(lambda: self.find(selector).is_displayed(), selector)
        self.find(selector).click()

    def type(self, text):
        self.find("#prompt").send_keys(text, Keys.ENTER)

    def is_idle(self):
        return self.find("#send").is_displayed()

    def ask(self, text):
        before = len(self.answers())
        self.type(text)
        wait_until(lambda: len(self.answers()) > before and self.is_idle(), "the answer")
        return self.answers()[-1]

    def answers(self):
        """Texts of the answers, without the mark at the end of a text."""
        script = "return [...document.querySelectorAll('.message.assistant > .text')].map(one => one.innerText)"
        return [text.replace("■", "").strip() for text in self.browser.execute_script(script)]

    def listed(self):
        return self.browser.execute_script("return [...document.querySelectorAll('#conversations .open')].map(one => one.innerText)")

    def press(self, name, which=-1):
        """The button of a message that says this."""
        [one for one in self.all(".foot button") if one.text == name][which].click()

    def set(self, **sampling):
        """Sampling as the settings dialog has it."""
        self.click("#show-settings")
        names = [label.text for label in self.all("#controls label")]
        for label, value in sampling.items():
            box = self.all("#controls input")[names.index(label.replace("_", " "))]
            box.clear()
            box.send_keys(str(value))
        self.find("#settings button.primary").click()

    def keep(self, **items):
        """Puts into the browser what the page keeps there, and begins anew."""
        for name, value in items.items():
            self.browser.execute_script("localStorage.setItem(...arguments)", name, json.dumps(value))
        self.browser.refresh()

    def state(self):
        """How the server is, as the dot before the model's name says."""
        return self.find("#state").get_attribute("data-state")

    def faults(self):
        """What axe has against what is shown."""
        self.browser.execute_script(AXE)
        run = """axe.run().then(({violations}) => arguments[0](violations.map(({id, nodes}) =>
            [id, nodes.map(({html, failureSummary}) => [html.slice(0, 200), failureSummary])])))"""
        return self.browser.execute_async_script(run)


@pytest.fixture
def browser():
    browser = new_browser()
    yield browser
    browser.quit()


def complaints(browser):
    """What the browser holds against the page; a refused request is no fault of it."""
    return [entry["message"] for entry in browser.get_log("browser") if "Failed to load resource" not in entry["message"]]


def test_a_chat_its_tokens_and_a_reload(browser, server):
    page = Page(browser, server.url)
    page.set(Temperature=0)
    assert page.ask(FRANCE) == PARIS
    pieces = page.all(".message.assistant .piece")
    assert len(pieces) > 4
    ActionChains(browser).move_to_element(pieces[2]).perform()
    rows = wait_until(lambda: page.all("#hover tr"), "the token's table")
    assert len(rows) >= 5 and "%" in rows[0].text
    assert len(page.all(".rank")) == 2 and len(page.all(".rank:first-child .own")) == 4

    pieces[2].click()
    wait_until(lambda: page.all("#token .step"), "the token explained")
    page.click("#token summary")
    text = page.find("#token").text
    assert all(word in text for word in ("temperature 0", "all-reduces", "QKV", "all-reduce: MLP projection", "LM head")), text
    # A bar for each of both ranks, and room for the conversation beside them.
    assert len(page.all("#token .step")[0].find_elements(By.CSS_SELECTOR, "tr:first-child .bars div")) == 2
    assert pieces[2].is_displayed() and page.find("#panel").location["x"] >= page.find("main").rect["x"] + page.find("main").rect["width"]
    assert page.faults() == []
    ActionChains(browser).send_keys(Keys.ESCAPE).perform()
    assert not page.find("#panel").is_displayed()

    page.ask("Hello!")
    said = page.answers()
    browser.refresh()
    wait_until(lambda: page.answers() == said and len(said) == 2, "what was said before")
    assert complaints(browser) == []


def test_stop_go_on_retry_and_edit(browser, server, metric):
    page = Page(browser, server.url)
    page.set(Temperature=5, Seed=3, Most_tokens=200)
    page.type("Tell me everything.")
    wait_until(lambda: page.all(".message.assistant .piece"), "the first token")
    before = metric("generation_tokens_total")
    page.find("#prompt").send_keys(Keys.ESCAPE)
    wait_until(page.is_idle, "the stop")
    wait_until(lambda: metric("num_requests_running") == 0, "the end of the sequence")
    assert metric("generation_tokens_total") - before < 190, "it was stopped, not finished"
    page.set(Temperature=0, Seed="", Most_tokens="")
    stopped = page.answers()
    page.press("Retry")
    wait_until(lambda: page.is_idle() and page.answers() not in ([], [""], stopped), "another answer")
    wait_until(lambda: len(page.listed()) == 2, "the one before in its own conversation")
    assert len(page.answers()) == 1 and "(before)" in "".join(page.listed())
    page.find(".message.user .foot button").click()
    box = page.find(".message.user textarea")
    box.clear()
    box.send_keys(FRANCE, Keys.ENTER)
    wait_until(lambda: page.is_idle() and page.answers() == [PARIS], "the answer to what was edited")
    assert complaints(browser) == []


def test_an_answer_that_the_page_was_left_in_is_kept_and_gone_on_with(browser, server):
    page = Page(browser, server.url)
    browser.execute_script(SCRIPTED, "The capital of France is " + "so far away " * 40, 30)
    page.type(FRANCE)
    wait_until(lambda: "far away so" in "".join(page.answers()), "some of the answer")
    browser.refresh()
    kept = wait_until(page.answers, "what came of it")[0]
    assert kept.startswith("The capital of France is so far away so") and len(kept) < 500
    assert "while this answer came" in page.find(".message.assistant .warning").text and page.is_idle()
    # The server goes on in the same turn.
    browser.execute_script(SCRIPTED, "and back.", 0)
    page.press("Go on")
    wait_until(lambda: page.answers()[0].endswith("and back.") and page.is_idle(), "the rest")
    assert page.answers()[0].startswith(kept) and not page.all(".message.assistant .warning")
    # Enter while an answer comes says why nothing happens.
    browser.execute_script(SCRIPTED, "slowly " * 40, 30)
    page.type("Again")
    wait_until(lambda: not page.is_idle(), "the answer")
    page.type("and again")
    assert "Esc stops it" in page.find("#hints").text
    page.find("#stop").click()
    assert complaints(browser) == []


def test_conversations_are_kept_found_named_moved_and_deleted_when_asked(browser, server, tmp_path):
    page = Page(browser, server.url)
    page.set(Temperature=0)
    page.ask(FRANCE)
    page.click("#new")
    assert page.answers() == [] and page.listed() == [FRANCE]
    page.ask("What is a cat?")
    assert page.listed() == ["What is a cat?", FRANCE]
    page.find("#search").send_keys("paris")
    assert page.listed() == [FRANCE]
    page.find("#conversations .open").click()
    wait_until(lambda: page.answers() == [PARIS], "the other conversation")
    page.find("#search").send_keys(Keys.CONTROL, "a", Keys.DELETE)
    row = page.all("#conversations li")[-1]
    ActionChains(browser).move_to_element(row).perform()
    row.find_element(By.CSS_SELECTOR, "[title=Rename]").click()
    page.find("#conversations input").send_keys(Keys.CONTROL, "a")
    page.find("#conversations input").send_keys("Capitals", Keys.ENTER)
    wait_until(lambda: "Capitals" in page.listed(), "the new name")

    browser.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "deny"})
    spy = "const real = URL.createObjectURL; URL.createObjectURL = blob => (blob.text().then(text => window.saved = text), real.call(URL, blob))"
    browser.execute_script(spy)
    page.click("#export")
    saved = wait_until(lambda: browser.execute_script("return window.saved"), "the file")
    titles = [one["title"] for one in json.loads(saved)["conversations"]]
    assert sorted(titles) == ["Capitals", "What is a cat?"]
    assert page.faults() == []

    row = page.all("#conversations li")[page.listed().index("Capitals")]
    ActionChains(browser).move_to_element(row).perform()
    row.find_element(By.CSS_SELECTOR, "[title=Delete]").click()
    page.click("#sure button[value='']")
    assert len(page.listed()) == 2, "it was only asked"
    row = page.all("#conversations li")[page.listed().index("Capitals")]
    ActionChains(browser).move_to_element(row).perform()
    row.find_element(By.CSS_SELECTOR, "[title=Delete]").click()
    page.click("#sure-yes")
    wait_until(lambda: page.listed() == ["What is a cat?"], "the end of it")

    file = tmp_path / "saved.json"
    file.write_text(saved)
    page.find("#file").send_keys(str(file))
    wait_until(lambda: len(page.listed()) == 3, "what was in the file")
    for broken, why in ('{"conversations": 3}', "holds no conversations"), ("null", "holds no conversations"), ('{"format": ', "is no JSON"):
        file.write_text(broken)
        page.find("#file").send_keys(str(file))
        wait_until(lambda: why in page.find("#sure-question").text, f"the refusal of {broken}")
        page.click("#sure-yes")
    # A list of another program's messages; what was thought is there too.
    file.write_text(json.dumps([{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So.", "reasoning_content": "Hm."}]))
    page.find("#file").send_keys(str(file))
    wait_until(lambda: page.listed()[0] == "Why?", "the list of messages")
    page.find("#conversations .open").click()
    wait_until(lambda: page.answers() == ["So."], "its answer")
    page.click(".message.assistant summary")
    assert page.find(".message.assistant details .markdown").text == "Hm."
    assert complaints(browser) == []


def test_a_conversation_that_is_deleted_while_it_is_answered_stays_deleted(browser, server):
    page = Page(browser, server.url)
    browser.execute_script(SCRIPTED, "on and on " * 400, 10)
    page.type("Talk.")
    wait_until(lambda: "on and on" in "".join(page.answers()), "some of the answer")
    # From one conversation to the same: what came of it is kept, and nothing is lost.
    page.find("#conversations .open").click()
    wait_until(lambda: page.is_idle() and "on and on" in "".join(page.answers()), "what came of it")
    page.press("Go on")
    wait_until(lambda: not page.is_idle(), "the rest")
    ActionChains(browser).move_to_element(page.find("#conversations li")).perform()
    page.find("#conversations [title=Delete]").click()
    page.click("#sure-yes")
    wait_until(lambda: page.is_idle() and page.listed() == [], "the end of it")
    browser.refresh()
    wait_until(lambda: page.all("#examples button"), "the page")
    assert page.listed() == []


def test_what_the_browser_cannot_keep_is_answered_and_said_to_be_lost(browser, server):
    page = Page(browser, server.url)
    page.set(Temperature=0)
    assert page.ask(FRANCE) == PARIS and not page.find("#unkept").is_displayed()
    full = "window.put = IDBObjectStore.prototype.put; IDBObjectStore.prototype.put = () => { throw new DOMException('full', 'QuotaExceededError'); }"
    browser.execute_script(full)
    assert page.ask("Hello!") and page.is_idle() and page.find("#unkept").is_displayed()
    assert page.faults() == []
    # Room again: all of it is kept.
    browser.execute_script("IDBObjectStore.prototype.put = window.put")
    page.ask(FRANCE)
    assert not page.find("#unkept").is_displayed()
    browser.refresh()
    wait_until(lambda: len(page.answers()) == 3, "all that was said")
    assert complaints(browser) == []


def test_two_tabs_show_the_same(browser, server):
    page = Page(browser, server.url)
    page.set(Temperature=0)
    page.ask("Hello!")
    first = browser.current_window_handle
    browser.switch_to.new_window("tab")
    second = Page(browser, server.url)
    wait_until(lambda: len(second.answers()) == 1, "what was said in the other tab")
    second.ask(FRANCE)
    browser.switch_to.window(first)
    wait_until(lambda: page.answers()[-1] == PARIS, "what was said in the second")
    page.ask("What is a cat?")
    browser.refresh()
    wait_until(lambda: len(page.answers()) == 3 and page.answers()[1] == PARIS, "all three")
    ActionChains(browser).move_to_element(page.find("#conversations li")).perform()
    page.find("#conversations [title=Delete]").click()
    page.click("#sure-yes")
    wait_until(lambda: page.listed() == [], "the end of it")
    browser.switch_to.window(browser.window_handles[-1])
    wait_until(lambda: second.listed() == [] and second.answers() == [], "its end in the other tab")
    assert complaints(browser) == []


@pytest.mark.parametrize("text", [">" * 2500 + " deep", "- " * 400 + "deep", "&toString; &constructor; deep"], ids=["quotes", "lists", "entities"])
def test_text_that_breaks_a_parser_is_shown_as_it_is(browser, server, text):
    page = Page(browser, server.url)
    browser.execute_script(SCRIPTED, text, 0)
    assert "deep" in page.ask("Go on.")
    browser.refresh()
    shown = wait_until(page.answers, "what was said")[0]
    assert "deep" in shown and "native code" not in shown
    depth = "let most = 0; for (let one of document.querySelectorAll('.message *')) { let n = 0; while (one = one.parentElement) n++; most = Math.max(most, n); } return most"
    assert browser.execute_script(depth) < 100
    assert complaints(browser) == []


def test_markdown_is_shown_safely_and_every_token_of_it_is_found(browser, server):
    page = Page(browser, server.url)
    browser.execute_script(SCRIPTED, MARKDOWN, 1)
    page.ask("How do I reverse a list?")
    text = ".message.assistant > .text"
    assert page.find(f"{text} h2").text == "Lists"
    assert [one.get_attribute("href") for one in page.all(f"{text} a")] == ["https://example.org/x"]
    assert page.find(f"{text} strong").text == "ways" and len(page.all(f"{text} ol li")) == 2
    wait_until(lambda: page.all(f"{text} .hljs-keyword"), "the colours")
    assert [one.text for one in page.all(f"{text} .hljs-keyword")] == ["def", "return"]
    assert page.find(f"{text} td.right").text == "O(n)"
    assert not page.all(f"{text} img, {text} script")
    shown = page.find(text).get_attribute("innerText")
    assert "<img src=x onerror=alert(1)> is text, 1 < 2." in shown and "def back(xs):\n    return xs[::-1]  # a copy" in shown
    # What was drawn as the piece at a letter is what the source has there.
    script = """return [...document.querySelectorAll('.message.assistant .piece')].map(one => [one.textContent, one.piece.text])"""
    pieces = browser.execute_script(script)
    assert len(pieces) > 60
    strange = [(part, whole) for part, whole in pieces if part.strip() not in whole and part not in ("■", " <", "<", " < ", "< 2.", " < 2.")]
    assert len(strange) <= 2, strange
    page.press("Source")
    assert page.find(text).get_attribute("innerText").replace("■", "") == MARKDOWN
    assert page.faults() == []
    assert complaints(browser) == []


def test_an_error_and_another_try(browser, server):
    page = Page(browser, server.url)
    browser.execute_script("window.real = fetch; window.fetch = (path, o) => path.startsWith('v1') ? Promise.reject(new Error('no route')) : real(path, o)")
    page.type(FRANCE)
    assert wait_until(lambda: page.all(".message .error"), "the error")[0].text == "the server does not answer"
    browser.execute_script("window.fetch = window.real")
    page.set(Temperature=0)
    page.press("Try again")
    wait_until(lambda: page.is_idle() and page.answers() == [PARIS], "the answer")
    assert not page.all(".message .error")


def test_settings_show_what_holds_and_take_what_people_write(browser, server):
    page = Page(browser, server.url)
    defaults = httpx.get(f"{server.url}/api/model_info").json()["defaults"]
    placeholder = "return document.querySelector('#controls [name=temperature]').placeholder"
    wait_until(lambda: browser.execute_script(placeholder) == str(defaults["temperature"]), "the default")
    page.set(Temperature=0.33, Top_p=0.95, Min_p=0.05, Repetition_penalty=1.1)
    wait_until(lambda: not page.find("#settings").is_displayed(), "the end of the dialog")
    kept = browser.execute_script("return JSON.parse(localStorage.settings).sampling")
    assert kept == {"temperature": 0.33, "top_p": 0.95, "min_p": 0.05, "repetition_penalty": 1.1}
    page.click("#show-settings")
    assert page.faults() == []
    page.find("#theme").send_keys("Dark")
    wait_until(lambda: browser.execute_script("return document.documentElement.dataset.theme") == "dark", "the dark theme")
    page.find("#defaults").click()
    page.click("#sure-yes")
    wait_until(lambda: browser.execute_script("return localStorage.settings") == '{"tint":false,"sampling":{},"theme":""}', "the defaults")


def test_the_model_says_what_it_is_and_a_system_text_belongs_to_its_conversation(browser, server):
    page = Page(browser, server.url)
    page.click("#state")
    card = wait_until(lambda: "nano-chat" in page.find("#card").text and page.find("#card").text, "the model's card")
    assert "256 tokens" in card and "the template has no place for one" in card
    assert [one.get_attribute("href").rsplit("/", 1)[1] for one in page.all("#card a")] == ["learn", "docs", "openapi.json", "metrics"]
    page.click("#system-box summary")
    assert "no place for a system text" in page.find("#system-note").text
    page.find("#system").send_keys("Be short.")
    page.ask("Hello!")
    page.click("#new")
    assert page.find("#system").get_attribute("value") == ""
    page.find("#conversations .open").click()
    wait_until(lambda: page.find("#system").get_attribute("value") == "Be short.", "its system text")
    assert page.faults() == []


def test_steps_are_replayed(browser, server):
    page = Page(browser, server.url)
    page.set(Temperature=0)
    page.ask("What is a cat?")
    wait_until(lambda: int(page.find("#scrub").get_attribute("max")) > 8, "the steps")
    wait_until(lambda: page.all("#sequences .held"), "a block that fills")
    page.click("#play")
    browser.execute_script("const s = document.querySelector('#scrub'); s.value = s.max; s.oninput()")
    assert "has ended" in page.find("#happening").text
    assert "kept for prompts" in page.find("#blocks-note").text and "of 512 blocks" in page.find("#blocks-note").text
    assert not page.all("#sequences .held")
    browser.execute_script("const s = document.querySelector('#scrub'); s.value = s.max - 2; s.oninput()")
    assert page.all("#sequences .held") and page.find("#happening").text.startswith("Step ")
    assert page.faults() == []
    assert complaints(browser) == []


@pytest.mark.parametrize("each,per", [(30, 1), (300, 8), (2000, 64)])
def test_a_pool_of_thousands_of_blocks_is_shown_as_squares_of_several(browser, server, each, per):
    texts, kept = 20, 10 * each
    page = Page(browser, server.url)
    browser.execute_script(LARGE_POOL, texts, each, kept, 80000)
    held = texts * (each - 1) + 1
    note = wait_until(lambda: "of 80000 blocks" in page.find("#blocks-note").text and page.find("#blocks-note").text, "the large pool")
    assert f"{held} of 80000 blocks of 16 positions are held, 1 of them shared; {kept} are kept" in note
    assert (f"a square is {per} blocks side by side" in note) == (per > 1)
    # It is as large as an eye takes in, and its squares too.
    assert page.find("#blocks").size["height"] < 450
    point = """const box = document.querySelector("#blocks"), {left, top} = box.getBoundingClientRect();
        box.dispatchEvent(new PointerEvent("pointermove", {clientX: left + 4, clientY: top + 4})); return box.title"""
    title = browser.execute_script(point)
    assert title.startswith(f"blocks 0 to {per - 1}: {per} held by #0, #1" if per > 1 else "block 0: from position 0 of text #0, #1"), title
    colours = """const {width, height} = document.querySelector("#blocks"), seen = new Set();
        const {data} = document.querySelector("#blocks").getContext("2d").getImageData(0, 0, width, height);
        for (let i = 0; i < data.length; i += 4) seen.add(`${data[i]} ${data[i + 1]} ${data[i + 2]}`); return seen.size"""
    assert browser.execute_script(colours) > texts, "a colour a text, and more"
    assert page.faults() == []


def test_a_drain_is_told_while_the_answer_goes_on(browser):
    folder = ROOT / "target/clients/slow"
    slow_model.write(ROOT / "launcher/demo/nano-chat", folder)
    server = Server("--model", str(folder), "--nproc", "2")
    try:
        page = Page(browser, server.url)
        page.set(Temperature=0, Most_tokens=150)
        wait_until(lambda: page.state() == "ready", "the server's state")
        page.type(FRANCE)
        wait_until(lambda: page.all(".message.assistant .piece"), "the first token")
        server.process.terminate()
        wait_until(lambda: page.state() == "drain", "the drain")
        assert not page.is_idle(), "the answer goes on"
        assert page.find("#model").text == "the server is shutting down"
        assert "stale" in page.find("#live").get_attribute("class")
        assert re.match("The server is shutting down. What is shown below is how it was at ", page.find("#stale").text)
        assert httpx.post(f"{server.url}/v1/completions", json={"prompt": "x"}).status_code == 503
        wait_until(page.is_idle, "the rest of the answer")
        assert not page.all(".message .error") and "150 tokens" in page.find(".message.assistant .foot").text
        assert server.process.wait(60) == 0
        wait_until(lambda: page.state() == "down", "the end")
        assert "does not answer" in page.find("#model").text and "stale" in page.find("#live").get_attribute("class")
        page.type("And now?")
        assert wait_until(lambda: page.all(".message .error"), "the error")[0].text == "the server does not answer"
    finally:
        server.stop()
    assert complaints(browser) == []


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_narrow_window_in_chinese_and_the_reference(browser, server, theme):
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", PHONE)
    page = Page(browser, server.url)
    page.keep(language="zh", settings={"theme": theme})
    page.ask("What is a cat?")
    fits = "return document.documentElement.scrollWidth"
    assert browser.execute_script(fits) == 360 and not page.find("#panel").is_displayed()
    assert page.find("#send").text == "发送" and page.faults() == []
    page.find("#show-live").click()
    wait_until(lambda: page.find("#live").is_displayed() and page.all(".rank"), "the live view")
    # Below the chat, not over it.
    box = "const {top, bottom} = document.querySelector(arguments[0]).getBoundingClientRect(); return [top, bottom]"
    assert browser.execute_script(box, "#panel")[0] >= browser.execute_script(box, "main")[1]
    page.find("#show-list").click()
    assert page.find("#conversations .open").is_displayed() and browser.execute_script(fits) == 360
    page.click("#show-settings")
    assert complaints(browser) == [], "all of it is in Chinese"
    reference = Page(browser, f"{server.url}/docs")
    wait_until(lambda: len(reference.all("details")) > 25, "the routes")
    assert reference.faults() == [] and complaints(browser) == []


def test_a_rank_is_lost_and_comes_back(browser, tmp_path):
    with TwoNodes(tmp_path) as cluster:
        page = Page(browser, cluster.server.url)
        page.set(Temperature=0)
        assert page.ask(FRANCE) == PARIS
        assert not page.all(".rank .life")
        cluster.lose()
        lost = wait_until(lambda: page.all(".rank.lost"), "the loss")
        assert len(lost) == 1 and "Rank 1" in lost[0].text and "another takes its place" in lost[0].text
        assert page.find("#state").get_attribute("data-state") == "down" and "rank 1 lost" in page.find("#model").text
        wait_until(lambda: "Rank 1 is lost" in page.find("#happening").text, "the loss in the replay")
        # Asked while it is away: it waits, and is answered.
        page.type(FRANCE)
        cluster.join()
        back = wait_until(lambda: page.all(".rank.back"), "the return")
        assert len(back) == 1 and re.search(r"lost once, last back after [\d.]+ m?s", back[0].text), back[0].text
        wait_until(page.is_idle, "the answer")
        assert page.answers() == [PARIS, PARIS]
        assert page.find("#state").get_attribute("data-state") == "ready" and "lost" not in page.find("#model").text
        kinds = [entry["kind"] for entry in httpx.get(f"{cluster.server.url}/api/steps").json()["entries"]]
        assert [kind for kind in kinds if kind in ("lost", "back")] == ["lost", "back"]
        cluster.server.stop()
        # Nothing is shown as alive when nobody answers.
        wait_until(lambda: page.find("#stale").is_displayed(), "the end of the server")
        assert page.find("#state").get_attribute("data-state") == "down" and "stale" in page.find("#live").get_attribute("class")
        assert "is how it was at" in page.find("#stale").text
    assert complaints(browser) == []


def test_a_key_is_asked_for_and_a_wrong_one_said_to_be(browser):
    locked = Server("--api-key", "s3cret")
    try:
        page = Page(browser, locked.url)
        wait_until(lambda: page.find("#key").is_displayed(), "the question")
        assert not page.find("#key-wrong").is_displayed()
        page.find("#key-value").send_keys("another", Keys.ENTER)
        wait_until(lambda: page.find("#key").is_displayed() and page.find("#key-wrong").is_displayed(), "the refusal")
        page.find("#key-value").send_keys("s3cret", Keys.ENTER)
        wait_until(lambda: "nano-chat" in page.find("#model").text, "the model's name")
        page.set(Temperature=0)
        assert page.ask(FRANCE) == PARIS
        assert httpx.get(f"{locked.url}/api/tags").status_code == 401
    finally:
        locked.stop()


@pytest.mark.parametrize("language,heading", [("en", "Learn how a language model is served"), ("zh", "学习：语言模型是怎样提供服务的")])
def test_the_lessons_are_pages_of_the_server(browser, server, language, heading):
    page = Page(browser, f"{server.url}/learn")
    page.keep(language=language, settings={"theme": "light"})
    wait_until(lambda: page.all("main h2"), "the first page")
    assert page.find("main h2").text == heading
    for link in [one.get_attribute("href") for one in page.all("nav a")]:
        browser.get(link)
        wait_until(lambda: page.all("main h2"), link)
        assert page.faults() == [] and "<!--" not in page.find("main").text
        pictures = "return [...document.images].every(one => one.complete && one.naturalWidth > 0)"
        wait_until(lambda: browser.execute_script(pictures), f"the pictures of {link}")
    assert complaints(browser) == []

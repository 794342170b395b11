"""The chat page in a real browser: a chat, its tokens, stop, edit, an error, a reload, a lost rank, a key."""

import re

import httpx
import pytest
from browser import new_browser
from selenium.webdriver import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from server import TwoNodes, Server, wait_until

PARIS = "The capital of France is Paris."


class Page:
    """What a person does with the page."""

    def __init__(self, browser, url):
        self.browser = browser
        browser.get(url)

    def find(self, selector):
        return self.browser.find_element(By.CSS_SELECTOR, selector)

    def all(self, selector):
        return self.browser.find_elements(By.CSS_SELECTOR, selector)

    def type(self, text):
        self.find("#prompt").send_keys(text, Keys.ENTER)

    def is_idle(self):
        return self.find("#send").is_displayed()

    def ask(self, text):
        self.type(text)
        wait_until(self.is_idle, "the answer")
        return self.answers()[-1]

    def answers(self):
        """Texts of the answers, without the mark at the end of a text."""
        return [answer.text.removesuffix("■").strip() for answer in self.all(".message.assistant .text")]

    def set(self, **sampling):
        """Sampling as the settings dialog has it."""
        self.find("#show-settings").click()
        names = [label.text for label in self.all("#controls label")]
        for label, value in sampling.items():
            box = self.all("#controls input")[names.index(label.replace("_", " "))]
            box.clear()
            box.send_keys(str(value))
        self.find("#settings button.primary").click()


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
    assert page.ask("What is the capital of France?") == PARIS
    pieces = page.all(".message.assistant .piece")
    assert len(pieces) > 4
    ActionChains(browser).move_to_element(pieces[2]).perform()
    rows = wait_until(lambda: page.all("#token tr"), "the token's table")
    assert len(rows) >= 5 and "%" in rows[0].text
    assert len(page.all(".rank")) == 2 and len(page.all(".rank:first-child .own")) == 4
    assert "of 512 blocks" in page.find("#blocks-note").text

    pieces[2].click()
    wait_until(lambda: len(page.all("#token.pinned section")) == 1, "the token explained")
    text = page.find("#token").text
    assert all(word in text for word in ("temperature 0", "rank 1", "QKV", "all-reduce: MLP projection", "LM head"))
    ActionChains(browser).send_keys(Keys.ESCAPE).perform()
    assert not page.all("#token.pinned")

    page.ask("Hello!")
    said = page.answers()
    browser.refresh()
    assert page.answers() == said and len(said) == 2
    assert complaints(browser) == []


def test_stop_retry_and_edit(browser, server, metric):
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
    page.all(".message.assistant .foot button")[0].click()
    wait_until(page.is_idle, "the answer")
    assert len(page.answers()) == 1
    page.find(".message.user .foot button").click()
    box = page.find(".message.user textarea")
    box.clear()
    box.send_keys("What is the capital of France?", Keys.ENTER)
    wait_until(lambda: page.is_idle() and page.answers() == [PARIS], "the answer to what was edited")
    assert complaints(browser) == []


def test_an_error_and_another_try(browser, server):
    page = Page(browser, server.url)
    browser.execute_script("window.real = fetch; window.fetch = (path, o) => path.startsWith('v1') ? Promise.reject(new Error('no route')) : real(path, o)")
    page.type("What is the capital of France?")
    assert wait_until(lambda: page.all(".error"), "the error")[0].text == "the server does not answer"
    browser.execute_script("window.fetch = window.real")
    page.set(Temperature=0)
    page.find(".message.assistant .foot button").click()
    wait_until(lambda: page.is_idle() and page.answers() == [PARIS], "the answer")
    assert not page.all(".error")


def test_settings_take_what_people_write(browser, server):
    page = Page(browser, server.url)
    page.set(Temperature=0.33, Top_p=0.95, Min_p=0.05, Repetition_penalty=1.1)
    wait_until(lambda: not page.find("#settings").is_displayed(), "the end of the dialog")
    kept = browser.execute_script("return JSON.parse(localStorage.settings).sampling")
    assert kept == {"temperature": 0.33, "top_p": 0.95, "min_p": 0.05, "repetition_penalty": 1.1}


def test_a_narrow_window_and_the_reference(browser, server):
    metrics = {"width": 360, "height": 700, "deviceScaleFactor": 1, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    page = Page(browser, server.url)
    page.ask("What is a cat?")
    assert browser.execute_script("return document.documentElement.scrollWidth") == 360
    assert not page.find("#live").is_displayed()
    page.find("#show-live").click()
    wait_until(lambda: page.find("#live").is_displayed() and page.all(".rank"), "the live view")
    reference = Page(browser, f"{server.url}/docs")
    wait_until(lambda: len(reference.all("details")) > 25, "the routes")
    assert complaints(browser) == []


def test_a_rank_is_lost_and_comes_back(browser, tmp_path):
    with TwoNodes(tmp_path) as cluster:
        page = Page(browser, cluster.server.url)
        page.set(Temperature=0)
        assert page.ask("What is the capital of France?") == PARIS
        assert not page.all(".rank .life")
        cluster.lose()
        lost = wait_until(lambda: page.all(".rank.lost"), "the loss")
        assert len(lost) == 1 and "Rank 1" in lost[0].text and "another takes its place" in lost[0].text
        assert page.find("#state").get_attribute("data-state") == "down" and "rank 1 lost" in page.find("#model").text
        # Asked while it is away: it waits, and is answered.
        page.type("What is the capital of France?")
        cluster.join()
        back = wait_until(lambda: page.all(".rank.back"), "the return")
        assert len(back) == 1 and re.search(r"lost once, last back after [\d.]+ m?s", back[0].text), back[0].text
        wait_until(page.is_idle, "the answer")
        assert page.answers() == [PARIS, PARIS]
        assert page.find("#state").get_attribute("data-state") == "ready" and "lost" not in page.find("#model").text
    assert complaints(browser) == []


def test_a_key_is_asked_for(browser):
    locked = Server("--api-key", "s3cret")
    try:
        page = Page(browser, locked.url)
        wait_until(lambda: page.find("#key").is_displayed(), "the question")
        page.find("#key-value").send_keys("s3cret", Keys.ENTER)
        wait_until(lambda: "nano-chat" in page.find("#model").text, "the model's name")
        page.set(Temperature=0)
        assert page.ask("What is the capital of France?") == PARIS
        assert httpx.get(f"{locked.url}/api/tags").status_code == 401
    finally:
        locked.stop()

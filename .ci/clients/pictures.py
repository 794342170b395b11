"""Every state of the page, light and dark, on a desktop and a phone, as pictures in a folder; and docs/chat.png.

    target/clients/bin/python .ci/clients/pictures.py FOLDER          (after .ci/clients/run, which makes that environment)
"""

import pathlib
import sys
import tempfile

import httpx
from browser import new_browser
from selenium.webdriver import ActionChains
from server import ROOT, Server, TwoNodes, wait_until
from test_page import MARKDOWN, PHONE, SCRIPTED, Page

OTHERS = ["What is a violin?", "What is a river?", "What is gold?", "Hello! What do you know about music and the sea?"]
# Blocks of a large pool, as many texts at once.
CROWD = 24


class Album:
    """Pictures of one theme and size."""

    def __init__(self, folder, url, theme, phone, language="en"):
        self.folder, self.name = folder, f"{'phone' if phone else 'desktop'}-{theme}{'' if language == 'en' else '-' + language}"
        self.browser = new_browser(1280, 940)
        if phone:
            self.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {**PHONE, "width": 390, "height": 844, "deviceScaleFactor": 2})
        self.page = Page(self.browser, url)
        self.page.keep(settings={"theme": theme, "sampling": {"temperature": 0}}, language=language)
        wait_until(lambda: self.page.all("#examples button"), "the page")

    def take(self, state):
        self.browser.save_screenshot(str(self.folder / f"{self.name}-{state}.png"))

    def scroll(self, share):
        """Moves the replay to a share of its steps."""
        self.browser.execute_script("const s = document.querySelector('#scrub'); s.value = s.max * arguments[0]; s.oninput()", share)


def states(album, server):
    """All that one server shows."""
    page, browser = album.page, album.browser
    album.take("1-empty")
    browser.execute_script(SCRIPTED, MARKDOWN, 15)
    page.type("How do I reverse a list in Python?")
    wait_until(lambda: page.all(".hljs-keyword"), "code")
    album.take("2-answering")
    wait_until(page.is_idle, "the answer")
    album.take("3-markdown")
    browser.refresh()
    wait_until(page.answers, "what was said")
    page.click("#show-list") if page.find("#show-list").is_displayed() else None
    page.click("#new")
    page.ask("What is a cat?")
    page.ask("What is the capital of France?")
    page.all(".message.assistant .piece")[7].click()
    wait_until(lambda: page.all("#token .step"), "the token explained")
    album.take("4-token")
    page.click("#tab-live")
    wait_until(lambda: int(page.find("#scrub").get_attribute("max")) > 20, "steps")
    for prompt in OTHERS:
        httpx.post(f"{server.url}/api/chat", json={"prompt": prompt, "temperature": 0}).raise_for_status()
    wait_until(lambda: int(page.find("#scrub").get_attribute("max")) > 60, "more steps")
    album.scroll(0.93)
    album.take("5-live")
    page.click("#tab-about")
    album.take("6-model")
    page.click("#close-panel")
    if page.find("#show-list").is_displayed():
        page.click("#show-list")
    else:
        ActionChains(browser).move_to_element(page.all("#conversations li")[-1]).perform()
    album.take("7-conversations")
    page.click("#show-settings")
    album.take("8-settings")
    page.find("#settings button.primary").click()
    browser.quit()


def large_pool(folder):
    """A pool of thousands of blocks, while many write and several begin alike."""
    import concurrent.futures
    server = Server("--nproc", "2", "--max-seqs", "256", "--kv-memory", "100MiB")
    album = Album(folder, server.url, "light", phone=False)
    begin = "Tell me of the sea and of music and of all that lives there, " * 3
    with concurrent.futures.ThreadPoolExecutor(CROWD) as pool:
        bodies = [{"prompt": f"{begin if i % 3 else ''} {i}", "max_tokens": 120, "ignore_eos": True, "seed": i} for i in range(CROWD * 4)]
        list(pool.map(lambda body: httpx.post(f"{server.url}/v1/completions", json=body, timeout=60).raise_for_status(), bodies))
    wait_until(lambda: int(album.page.find("#scrub").get_attribute("max")) > 100, "steps")
    album.scroll(0.5)
    note = album.page.find("#blocks-note").text
    assert "blocks side by side" in note, f"more blocks than there are squares: {note}"
    assert album.page.find("#blocks").size["height"] < 450, "a pool that is seen at a glance"
    album.take("9-large-pool")
    server.stop()
    wait_until(lambda: album.page.find("#stale").is_displayed(), "the end")
    album.take("10-no-server")
    album.browser.quit()


def loss(folder):
    with tempfile.TemporaryDirectory() as secret, TwoNodes(pathlib.Path(secret)) as cluster:
        album = Album(folder, cluster.server.url, "light", phone=False)
        album.page.ask("What is a cat?")
        cluster.lose()
        wait_until(lambda: "is lost" in album.page.find("#happening").text, "the loss")
        album.take("11-rank-lost")
        cluster.join()
        wait_until(lambda: album.page.all(".rank.back"), "the return")
        wait_until(lambda: "in its place" in album.page.find("#happening").text, "the return, replayed")
        album.take("12-rank-back")
        album.browser.quit()


def key(folder):
    server = Server("--api-key", "s3cret")
    album = new_browser(1280, 940)
    page = Page(album, server.url)
    page.click("#key-value")
    page.find("#key-value").send_keys("another\n")
    wait_until(lambda: page.find("#key-wrong").is_displayed(), "the refusal")
    album.save_screenshot(str(folder / "desktop-13-wrong-key.png"))
    album.quit()
    server.stop()


def readme():
    """docs/chat.png: the page after a few questions, one token explained."""
    server = Server("--nproc", "2", dtype="auto")
    album = Album(ROOT / "docs", server.url, "light", phone=False)
    page = album.page
    page.set(Temperature=1.2, Seed=1)
    page.ask("What is the capital of France?")
    page.ask("What is a cat?")
    # Of its tokens the one whose step was disturbed the least by whatever else ran.
    best = """const pieces = [...document.querySelectorAll('.message.assistant:last-of-type .piece')].slice(3, -3);
        return pieces.reduce((best, one) => one.piece.explain[0].step.ms < best.piece.explain[0].step.ms ? one : best)"""
    album.browser.execute_script(best).click()
    wait_until(lambda: page.all("#token .step"), "the token explained")
    album.browser.save_screenshot(str(ROOT / "docs/chat.png"))
    album.browser.quit()
    server.stop()


def main():
    folder = pathlib.Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    server = Server("--nproc", "2")
    for theme in ("light", "dark"):
        for phone in (False, True):
            states(Album(folder, server.url, theme, phone), server)
    states(Album(folder, server.url, "light", False, "zh"), server)
    server.stop()
    large_pool(folder)
    loss(folder)
    key(folder)
    readme()


main()

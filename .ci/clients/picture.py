"""docs/chat.png: the page after a few questions, one token explained.

    target/clients/bin/python .ci/clients/picture.py          (after .ci/clients/run, which makes that environment)
"""

import httpx
from browser import new_browser
from server import ROOT, Server, wait_until
from test_page import Page

OTHERS = ["What is a violin?", "What is a river?", "What is gold?", "Hello! What do you know about music and the sea?"]


def main():
    server, browser = Server("--nproc", "2"), new_browser(1200, 900)
    try:
        for prompt in OTHERS:
            httpx.post(f"{server.url}/api/chat", json={"prompt": prompt, "temperature": 0}).raise_for_status()
        page = Page(browser, server.url)
        page.set(Temperature=1.2, Seed=1)
        page.ask("What is the capital of France?")
        page.ask("What is a cat?")
        page.all(".message.assistant:last-of-type .piece")[7].click()
        wait_until(lambda: page.all("#token.pinned section"), "the token explained")
        browser.save_screenshot(str(ROOT / "docs/chat.png"))
    finally:
        browser.quit()
        server.stop()


main()

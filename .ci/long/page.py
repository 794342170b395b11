"""What a person does with Open WebUI's page. Things are found by what they say, as their names change with each version."""

from selenium.common import exceptions
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from server import wait_until

VISIBLE = """
return [...document.querySelectorAll('button, [role=menuitem]')].filter(one => one.checkVisibility()
    && `${one.innerText}\\n${one.getAttribute('aria-label') ?? ''}`.split('\\n').some(said => said.trim() === arguments[0]));
"""
ANSWERS = "return [...document.querySelectorAll('.chat-assistant')].map(one => one.innerText.trim())"
MOVING = (
    exceptions.ElementClickInterceptedException, exceptions.ElementNotInteractableException, exceptions.StaleElementReferenceException,
)
PATIENCE_S = 180


class Page:
    """A new chat."""

    def __init__(self, browser, url):
        self.browser = browser
        browser.get(url)
        self.wait(lambda: self.find("#model-selector-model-button") and self.find("#chat-input"), "the page")
        if not getattr(browser, "knows_the_news", False):
            self.click("Okay, Let's Go!")
            browser.knows_the_news = True

    def wait(self, condition, what):
        return wait_until(condition, what, PATIENCE_S)

    def find(self, selector):
        return self.browser.find_elements(By.CSS_SELECTOR, selector)

    def buttons(self, said):
        return self.browser.execute_script(VISIBLE, said)

    def click(self, said, which=-1):
        """Waits for a button that says this, the last of them, and for what may lie over it."""

        def click():
            try:
                found = self.buttons(said)
                if found:
                    found[which].click()
                return bool(found)
            except MOVING:
                return False

        self.wait(click, f"a button {said!r}")

    def models(self):
        """Those in the selector, which is left open."""
        self.wait(lambda: not self.find("#model-search-input"), "the end of what was open before")
        self.find("#model-selector-model-button")[0].click()
        self.wait(lambda: self.find("#model-search-input"), "the selector")
        said = [one.get_attribute("aria-label") for one in self.find("[id^=model-option-]")]
        return [label.removeprefix("Select ").removesuffix(" model") for label in said]

    def close_models(self):
        self.browser.switch_to.active_element.send_keys(Keys.ESCAPE)
        self.wait(lambda: not self.find("#model-search-input"), "the end of the selector")

    def select(self, first, *others):
        """One model, or several side by side."""
        self.models()
        self.click(f"Select {first} model")
        self.wait(lambda: self.selected() == first, "the selection")
        if others:
            self.models()
            self.click("Compare")
            for name in others:
                self.click(f"Select {name} model")
            self.close_models()
            self.wait(lambda: self.selected() == f"{first} +{len(others)}", "the selection of all")

    def selected(self):
        return self.browser.execute_script("return document.querySelector('#model-selector-model-button')?.innerText.trim()")

    def send(self, text):
        box = self.find("#chat-input")[0]
        box.click()
        box.send_keys(text)
        self.click("Send message")

    def answers(self):
        return self.browser.execute_script(ANSWERS)

    def is_idle(self):
        return not self.buttons("Stop") and bool(self.buttons("Regenerate"))

    def ask(self, text):
        """Sends a text and returns its answers, one of each model, when they are whole."""
        before = len(self.answers())
        self.send(text)
        self.wait(lambda: len(self.answers()) > before and self.is_idle(), "the answer")
        return self.answers()[before:]

    def fetch(self, path):
        """Status and text of what the page's own address answers."""
        code = """
        const [path, done] = arguments, headers = {authorization: `Bearer ${localStorage.token}`};
        fetch(path, {headers}).then(async reply => done([reply.status, await reply.text()]));
        """
        return self.browser.execute_async_script(code, path)

"""/docs in a browser: the order of use, readable fields, and an example that is sent from the page."""

import pytest
from browser import new_browser
from selenium.webdriver.common.by import By
from server import Server, wait_until

KEY = "s3cret"


@pytest.fixture(scope="module")
def browser():
    browser = new_browser(1100, 900)
    yield browser
    browser.quit()


@pytest.fixture(scope="module")
def locked():
    server = Server("--api-key", KEY)
    yield server
    server.stop()


def opened(browser, url):
    browser.get(f"{url}/docs")
    browser.execute_script("sessionStorage.clear()")
    browser.get(f"{url}/docs")


def texts(browser, selector):
    return [one.text for one in browser.find_elements(By.CSS_SELECTOR, selector)]


def unfolded(browser, route):
    """A route, when what it holds is drawn."""
    route = browser.find_element(By.ID, route)
    route.find_element(By.TAG_NAME, "summary").click()
    wait_until(lambda: route.find_elements(By.CSS_SELECTOR, ".trial"), "what the route holds")
    return route


def test_routes_stand_in_the_order_of_use_and_answer(browser, server):
    opened(browser, server.url)
    wait_until(lambda: texts(browser, "h2"), "the sections")
    assert texts(browser, "h2") == ["Short form", "OpenAI", "Ollama", "Text", "Server", "Refused"] == texts(browser, "nav a")
    chat = unfolded(browser, "post/v1/chat/completions")
    names = [one.text for one in chat.find_elements(By.CSS_SELECTOR, "td.name")]
    assert names[0].startswith("messages") and "required" in names[0] and any("messages[].role" in name for name in names)
    assert not any("`" in row.text for row in chat.find_elements(By.TAG_NAME, "td"))
    shell = chat.find_element(By.CSS_SELECTOR, ".shell").text
    assert shell.startswith(f"curl {server.url}/v1/chat/completions") and '"model": "nano-chat"' in shell
    chat.find_element(By.XPATH, ".//button[text()='Send']").click()
    answer = chat.find_element(By.CSS_SELECTOR, ".answer")
    wait_until(lambda: "feline mammal" in answer.text and answer.text.startswith("200"), "the answer")
    short = unfolded(browser, "post/api/chat")
    short.find_element(By.XPATH, ".//button[text()='streamed']").click()
    short.find_element(By.XPATH, ".//button[text()='Send']").click()
    answer = short.find_element(By.CSS_SELECTOR, ".answer")
    wait_until(lambda: "[DONE]" in answer.text, "the end of the stream")
    browser.save_screenshot("target/clients/docs.png")
    # A refused request is no fault of the page.
    assert [line for line in browser.get_log("browser") if line["level"] == "SEVERE" and "Failed to load" not in line["message"]] == []


def test_a_key_is_asked_for_and_used(browser, locked):
    opened(browser, locked.url)
    routes = browser.find_element(By.ID, "routes")
    wait_until(lambda: "wants an API key" in routes.text, "the question for a key")
    field = browser.find_element(By.ID, "key")
    field.send_keys("wrong\t")
    wait_until(lambda: "not the server's API key" in routes.text, "the refusal")
    field.clear()
    field.send_keys(f"{KEY}\t")
    wait_until(lambda: texts(browser, "h2"), "the sections")
    tags = unfolded(browser, "get/api/tags")
    assert "Bearer $KEY" in tags.find_element(By.CSS_SELECTOR, ".shell").text
    tags.find_element(By.XPATH, ".//button[text()='Send']").click()
    wait_until(lambda: '"nano-chat"' in tags.find_element(By.CSS_SELECTOR, ".answer").text, "the answer")

"""A real browser, Debian's Chromium without a screen, for tests that click, upload and look."""

import contextlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.common.exceptions import WebDriverException
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement


FLAGS = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
]
PICTURES = Path(os.environ.get("ANOPLE_PICTURES", Path(__file__).resolve().parents[2] / "out" / "demo"))
PHONE, DESK = {"width": 390, "height": 844}, {"width": 1600, "height": 1000}
INSTALL = "apt-get install chromium chromium-driver"


def needs_chromium() -> tuple[str, str]:
    """Find Chromium and its driver; without them skip, and where CI is set fail."""
    found = [shutil.which("chromium"), shutil.which("chromedriver")]
    if all(found):
        return found[0], found[1]
    message = f"THE DEMO WAS NOT TESTED IN A BROWSER: no chromium and chromedriver here ({INSTALL})."
    if os.environ.get("CI", "").lower() in ("true", "1"):
        pytest.fail(message)
    pytest.skip(message)


class Page:
    """The demo in a browser, as a person has it: what is seen is found by text, tab and id."""

    def __init__(self, driver: webdriver.Chrome, address: str, *, width: int, height: int, dark: bool):
        self.driver, self.address = driver, address
        self.width, self.height = width, height
        self.resize(height)
        driver.get(f"{address}?__theme={'dark' if dark else 'light'}")
        self.wait(lambda: self.find("inspect").is_displayed())

    def resize(self, height: int) -> None:
        """Set the size of the screen, a phone's where it is narrow."""
        metrics = {"width": self.width, "height": height, "deviceScaleFactor": 1, "mobile": self.width < 500}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)

    def find(self, identity: str) -> WebElement:
        """Find a widget, once the page has drawn it."""
        return self.wait(lambda: self.driver.find_element(By.ID, identity))

    def text(self, identity: str) -> str:
        """What a person reads there; asked again where the page redraws it meanwhile."""
        return self.wait(lambda: (self.find(identity).text,))[0]

    def all(self, selector: str) -> list[WebElement]:
        """Find all that is seen and fits a CSS selector."""
        return [element for element in self.driver.find_elements(By.CSS_SELECTOR, selector) if element.is_displayed()]

    def click(self, element: WebElement) -> None:
        """Bring into sight and click."""
        self.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", element)
        element.click()

    def click_when(self, find: Callable[[], WebElement]) -> None:
        """Click what is found, as soon as it is there and stays in place."""
        self.wait(lambda: (self.click(find()),))

    def open_tab(self, name: str) -> None:
        """Open a tab by its name."""
        self.click_when(lambda: next(tab for tab in self.all("button[role=tab]") if tab.text == name))

    def open(self, identity: str) -> None:
        """Open an accordion."""
        self.click_when(lambda: self.find(identity).find_element(By.CSS_SELECTOR, "button"))

    def press(self, *keys: str) -> None:
        """Press keys, wherever the focus is."""
        ActionChains(self.driver).send_keys(*keys).perform()

    def tab_to(self, selector: str, presses: int = 60) -> WebElement:
        """Press Tab until what fits a CSS selector has the focus, and return it."""
        for _ in range(presses):
            self.press(Keys.TAB)
            focused = self.driver.switch_to.active_element
            if self.driver.execute_script("return arguments[0].matches(arguments[1])", focused, selector):
                return focused
        raise AssertionError(f"{presses} presses of Tab did not lead to {selector}.")

    def spoken(self) -> list[tuple[str, str]]:
        """Role and name of all that a screen reader is told, from the browser's accessibility tree."""
        nodes = self.driver.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
        told = [node for node in nodes if not node.get("ignored")]
        return [(node["role"]["value"], node.get("name", {}).get("value", "")) for node in told]

    def upload(self, identity: str, paths: list[Any]) -> None:
        """Give files to a field."""
        field = self.wait(lambda: self.find(identity).find_element(By.CSS_SELECTOR, "input[type=file]"))
        field.send_keys("\n".join(str(path) for path in paths))

    def wait(self, condition: Callable[[], Any], seconds: float = 60) -> Any:
        """Wait until something is so, and return it."""
        until, failure = time.monotonic() + seconds, None
        while time.monotonic() < until:
            try:
                if answer := condition():
                    return answer
            except (WebDriverException, StopIteration, IndexError) as error:  # not there yet
                failure = error
            time.sleep(0.03)
        raise AssertionError(f"It did not come to be within {seconds} s ({failure}).\n{self.read()}")

    def read(self) -> str:
        """All that can be read on the page."""
        return self.driver.find_element(By.TAG_NAME, "body").text

    def wait_for(self, text: str, seconds: float = 60) -> None:
        """Wait until a text can be read somewhere on the page."""
        self.wait(lambda: text in self.read(), seconds)

    def wait_for_file(self, name: str) -> None:
        """Wait until an uploaded file is listed; stem and ending stand in elements of their own."""
        self.wait(lambda: name in self.read().replace("\n", ""))

    def come_to_rest(self, seconds: float = 0.5) -> None:
        """Wait until it is drawn and nothing moves on it any more; some things never stop."""
        drawn = "requestAnimationFrame(() => requestAnimationFrame(() => arguments[0](true)))"
        moving = "return document.getAnimations().some(one => one.playState === 'running')"
        until = time.monotonic() + seconds
        self.driver.execute_async_script(drawn)
        while self.driver.execute_script(moving) and time.monotonic() < until:
            time.sleep(0.03)

    def picture(self, path: Path) -> None:
        """Photograph the whole page."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self.come_to_rest()
        needed = self.driver.execute_script("return document.querySelector('.gradio-container').scrollHeight")
        self.resize(max(self.height, min(needed, 3000)))
        self.come_to_rest()
        self.driver.save_screenshot(str(path))
        self.resize(self.height)

    def too_wide(self) -> bool:
        """Whether the page must be pushed sideways to be read."""
        return self.driver.execute_script("return document.documentElement.scrollWidth > window.innerWidth")

    def asked(self) -> set[str]:
        """Addresses that the page asked for since it was looked at last."""
        events = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        sent = [
            event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"
        ]
        return {url for url in sent if url.startswith(("http", "ws"))}

    def faults(self) -> list[str]:
        """Errors of scripts on the page, and what it asked for and was refused."""
        entries = [entry["message"] for entry in self.driver.get_log("browser") if entry["level"] == "SEVERE"]
        return [entry for entry in entries if "Uncaught" in entry or "status of 403" in entry]


@contextlib.contextmanager
def browser(profile: Path, *flags: str) -> Iterator[webdriver.Chrome]:
    """Start Chromium with an empty profile, and more flags."""
    chromium, driver = needs_chromium()
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (*FLAGS, *flags, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    chrome = webdriver.Chrome(options, webdriver.ChromeService(driver))
    try:
        yield chrome
    finally:
        chrome.quit()

"""Photographs from the camera and from the clipboard, by Gradio's own buttons and by Ctrl+V, in Chromium."""

import base64
from pathlib import Path

import numpy as np
import pytest
from gradio_client import handle_file
from PIL import Image
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.keys import Keys

from hub.benchmarks.demo_program import new_client

from .browser import DESK, PICTURES, Page, browser


# Counts the frames that the page asks about, and how many are at work at once: a frame's answer is followed by `answered`.
COUNT_ASKED = """
[window.asked, window.most] = [0, 0];
let working = 0;
document.getElementById("live-next").addEventListener("click", () => {
  window.asked += 1;
  window.most = Math.max(window.most, ++working);
});
const answered = window.anopleLive.answered;
window.anopleLive.answered = refused => { working = Math.max(0, working - 1); answered(refused); };
"""
DEFECT, CAPSULE = 1, 2  # of the examples: a wooden board without a part, and a broken capsule


@pytest.fixture(scope="module")
def chrome(tmp_path_factory, examples):
    """Chromium with a camera that looks at a wooden board all the time, and whose use is granted."""
    seen = tmp_path_factory.mktemp("camera") / "board.mjpeg"
    Image.open(examples.to_inspect[DEFECT]).save(seen, "JPEG", quality=95)
    flags = ["--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream"]
    with browser(tmp_path_factory.mktemp("profile"), *flags, f"--use-file-for-fake-video-capture={seen}") as chrome:
        yield chrome


def copy_picture(page: Page, path: Path) -> None:
    """Put a picture on the clipboard, as another program would."""
    origin = page.address.rstrip("/")
    allowed = {"permissions": ["clipboardReadWrite", "clipboardSanitizedWrite"], "origin": origin}
    page.driver.execute_cdp_cmd("Browser.grantPermissions", allowed)
    script = """
    const bytes = Uint8Array.from(atob(arguments[0]), letter => letter.charCodeAt(0)), done = arguments[1];
    const picture = new Blob([bytes], {type: "image/png"});
    navigator.clipboard.write([new ClipboardItem({"image/png": picture})]).then(() => done(""), error => done(`${error}`));
    """
    assert page.driver.execute_async_script(script, base64.b64encode(path.read_bytes()).decode()) == ""


def press_paste(page: Page) -> None:
    ActionChains(page.driver).key_down(Keys.CONTROL).send_keys("v").key_up(Keys.CONTROL).perform()


def source(page: Page, name: str) -> None:
    page.click_when(lambda: page.all(f"#photograph button[aria-label='{name}']")[0])


def sent(page: Page) -> Image.Image:
    """The photograph in the field, as the server got it."""
    address = page.wait(lambda: page.all("#photograph img")[0].get_attribute("src"))
    path = Path(page.driver.execute_script("return decodeURIComponent(arguments[0].split('file=')[1])", address))
    with Image.open(path) as picture:
        return picture.convert("RGB")


def likeness(first: Image.Image, second: Image.Image) -> float:
    """Correlation of two pictures in grey."""
    small = [np.asarray(picture.convert("L").resize((64, 64)), float).ravel() for picture in (first, second)]
    return float(np.corrcoef(*small)[0, 1])


def test_the_camera_takes_what_it_sees_unmirrored(chrome, address, examples):
    page = Page(chrome, address, dark=False, **DESK)
    source(page, "Capture from camera")
    page.click_when(lambda: next(one for one in page.all("#photograph button") if "Access Webcam" in one.text))
    page.wait(lambda: page.driver.execute_script("return document.querySelector('#photograph video').videoWidth"))
    page.picture(PICTURES / "camera-desk-light.png")
    page.click_when(lambda: page.all("#photograph button[aria-label='capture photo']")[0])
    page.wait(lambda: page.text("verdict").startswith("anomalous, 0."))
    assert "judged as wooden board (found by the detector)" in page.text("verdict")
    page.wait(lambda: "past the line of wooden board" in page.text("why"))
    taken, board = sent(page), Image.open(examples.to_inspect[DEFECT])
    assert likeness(taken, board) > 0.95 > likeness(taken, board.transpose(Image.Transpose.FLIP_LEFT_RIGHT))
    assert not page.faults()


def test_a_camera_is_watched_until_it_is_lost_and_others_are_answered_meanwhile(chrome, address, examples):
    page = Page(chrome, address, dark=False, **DESK)
    page.open_tab("Live")
    page.wait(lambda: page.find("live-start").is_displayed())
    assert not page.find("live-verdict").is_displayed() and "Not running" in page.text("live-status")
    page.click(page.find("live-start"))
    page.wait(
        lambda: (
            page.text("live-verdict").startswith("anomalous, 0.") and "as wooden board" in page.text("live-verdict")
        )
    )
    page.wait(lambda: " frames a second" in page.text("live-status") and page.all("#live-picture img"))
    page.picture(PICTURES / "live-desk-light.png")
    numbers, *_ = new_client(address).predict(
        handle_file(examples.to_inspect[CAPSULE]), "capsule", api_name="/inspect"
    )
    assert numbers["verdict"] == "anomalous" and " frames a second" in page.text("live-status")
    at_work = "return [window.asked, window.most]"
    page.driver.execute_script(COUNT_ASKED)
    page.wait(lambda: page.driver.execute_script(at_work)[0] > 3)
    assert page.driver.execute_script(at_work)[1] == 1  # never more than one frame
    page.click(page.find("live-stop"))
    page.wait(lambda: page.text("live-status") == "Stopped." and not page.find("live-verdict").is_displayed())
    page.click(page.find("live-start"))
    page.wait(lambda: page.find("live-verdict").is_displayed())
    refused = {"permission": {"name": "camera"}, "setting": "denied", "origin": address.rstrip("/")}
    chrome.execute_cdp_cmd("Browser.setPermission", refused)  # its track ends, as when it is unplugged
    page.wait(
        lambda: "The camera is lost" in page.text("live-status") and not page.find("live-verdict").is_displayed()
    )
    chrome.execute_cdp_cmd("Browser.resetPermissions", {})
    assert not page.faults()


def test_a_refused_camera_is_said_and_a_file_still_serves(tmp_path, address, examples):
    with browser(tmp_path, "--use-fake-device-for-media-stream", "--deny-permission-prompts") as chrome:
        page = Page(chrome, address, dark=False, **DESK)
        source(page, "Capture from camera")
        page.click_when(lambda: next(one for one in page.all("#photograph button") if "Access Webcam" in one.text))
        page.wait(lambda: "The camera was refused." in page.text("source-message"))
        page.picture(PICTURES / "camera-refused-desk-light.png")
        source(page, "Upload file")
        page.wait(lambda: not page.find("source-message").is_displayed())
        page.upload("photograph", [examples.to_inspect[DEFECT]])
        page.wait(lambda: page.text("verdict").startswith("anomalous"))


def test_without_https_the_page_says_why_there_is_no_camera_and_what_pastes(tmp_path, address, examples):
    port = address.rstrip("/").rsplit(":", 1)[-1]
    with browser(tmp_path, "--host-resolver-rules=MAP line7.test 127.0.0.1") as chrome:
        page = Page(chrome, f"http://line7.test:{port}/", dark=False, **DESK)
        source(page, "Capture from camera")
        page.wait(lambda: "There is no camera at this address" in page.text("source-message"))
        source(page, "Paste from clipboard")
        page.wait(lambda: "Press Ctrl+V." in page.text("source-message"))
        page.picture(PICTURES / "no-https-desk-light.png")
        source(page, "Upload file")
        page.upload("photograph", [examples.to_inspect[DEFECT]])
        page.wait(lambda: page.text("verdict").startswith("anomalous"))


def test_a_picture_is_pasted_by_the_button(chrome, address, examples):
    page = Page(chrome, address, dark=False, **DESK)
    copy_picture(page, examples.to_inspect[CAPSULE])
    source(page, "Paste from clipboard")
    page.wait(lambda: page.text("verdict").startswith("anomalous") and "as capsule" in page.text("verdict"))
    assert np.array_equal(sent(page), Image.open(examples.to_inspect[CAPSULE]).convert("RGB"))
    assert not page.faults()


def test_a_picture_is_pasted_by_the_keyboard_again_and_again(chrome, address, examples):
    page = Page(chrome, address, dark=False, **DESK)
    copy_picture(page, examples.to_inspect[CAPSULE])
    press_paste(page)
    page.wait(lambda: "as capsule" in page.text("verdict"))
    assert page.text("verdict").splitlines()[1].startswith("pasted ")
    copy_picture(page, examples.to_inspect[DEFECT])
    press_paste(page)
    page.wait(lambda: "as wooden board" in page.text("verdict"))
    page.open_tab("Judge")
    page.wait_for("measurements of 8 good photographs")
    copy_picture(page, examples.to_inspect[0])
    page.click_when(lambda: page.all("#was-fine button[aria-label='Remove Image']")[0])
    page.wait(lambda: not page.all("#was-fine img"))
    press_paste(page)
    page.wait(lambda: page.all("#was-fine img"))
    assert not page.faults()


def test_text_is_pasted_into_the_field_that_has_the_focus(chrome, address):
    page = Page(chrome, address, dark=False, **DESK)
    copied = "navigator.clipboard.writeText('gasket').then(() => arguments[0](true))"
    page.driver.execute_cdp_cmd("Browser.grantPermissions", {"permissions": ["clipboardSanitizedWrite"]})
    assert page.driver.execute_async_script(copied)
    page.open_tab("Teach")
    field = page.wait(lambda: page.find("name").find_element("css selector", "textarea, input"))
    page.click(field)
    press_paste(page)
    page.wait(lambda: field.get_attribute("value") == "gasket")


def test_a_photograph_is_judged_as_soon_as_it_is_dropped_and_goes_with_its_verdict(chrome, address, examples):
    page = Page(chrome, address, dark=False, **DESK)
    page.upload("photograph", [examples.to_inspect[DEFECT]])
    page.wait(lambda: page.text("verdict").startswith("anomalous"))
    assert examples.to_inspect[DEFECT].name in page.text("verdict")
    page.wait(lambda: len(page.all("#why img")) == 2)
    page.click_when(lambda: page.all("#photograph button[aria-label='Remove Image']")[0])
    page.wait(lambda: page.text("verdict").startswith("No photograph yet"))
    assert not page.all("#why img") and not page.all("#pictures img")
    page.upload("photograph", [examples.to_inspect[CAPSULE]])
    page.wait(lambda: "as capsule" in page.text("verdict"))
    assert not page.faults()

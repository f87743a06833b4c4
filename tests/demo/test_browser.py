"""The demo as a person meets it: Chromium clicks and uploads, and what it then shows is read. Pictures go to out/demo."""

import time
import zipfile

import numpy as np
import pytest
from PIL import Image
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.keys import Keys

from demo.style import VERDICTS, verdict_box
from modeling_anople.data.drawn_products import draw_product
from modeling_anople.inspection.feedback import Feedback
from modeling_anople.inspection.report import Report
from modeling_anople.product_store_anople import UNKNOWN_PRODUCT

from .browser import DESK, PHONE, PICTURES, Page


READY = {"Live": "press Start", "Teach": "Products known", "Judge": "measurements of 8 good photographs"}
IS_DARK = "return parseInt(getComputedStyle(document.querySelector('.intro p')).color.match(/\\d+/)[0]) > 128"
# The least contrast of the words and the sign of a verdict with what is behind them (WCAG 2.2, 1.4.3).
CONTRAST = """
const place = document.createElement("div");
place.innerHTML = arguments[0];
document.getElementById("verdict").querySelector(".verdict").after(place);
const light = color => color.match(/[\\d.]+/g).slice(0, 3).map(value => value / 255)
  .map(value => value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4)
  .reduce((sum, value, index) => sum + value * [0.2126, 0.7152, 0.0722][index], 0.05);
const behind = light(getComputedStyle(place.firstElementChild).backgroundColor);
const ratios = [...place.querySelectorAll("strong, span, svg")].map(each => light(getComputedStyle(each).color))
  .map(ink => Math.max(ink, behind) / Math.min(ink, behind));
place.remove();
return Math.min(...ratios);
"""


def click_example(page: Page, number: int) -> None:
    page.click_when(lambda: page.all("#examples button.thumbnail-item")[number])


def chosen(page: Page, field: str) -> str:
    """What is chosen in a list."""
    return page.find(field).find_element("css selector", "input").get_attribute("value")


@pytest.mark.parametrize(("screen", "dark"), [(DESK, False), (PHONE, True)], ids=["desk, light", "phone, dark"])
def test_the_first_result_comes_after_one_click_and_fits_every_screen(chrome, address, screen, dark):
    page = Page(chrome, address, dark=dark, **screen)
    page.asked()
    name = f"{'phone' if screen is PHONE else 'desk'}-{'dark' if dark else 'light'}"
    page.wait(lambda: page.driver.execute_script(IS_DARK) == dark)  # the style of the page has come
    for kind in VERDICTS:
        assert page.driver.execute_script(CONTRAST, verdict_box(kind, "words", "details")) >= 4.5, kind
    assert not page.too_wide() and "No photograph yet" in page.text("verdict")
    page.picture(PICTURES / f"first-{name}.png")
    edge = page.find("examples").rect
    assert all(one.rect["x"] + one.rect["width"] < edge["x"] + edge["width"] for one in page.all("#examples button"))
    assert not page.find("why").is_displayed()  # nothing to say yet: no gap either
    click_example(page, 1)
    page.wait(lambda: "line at 0.50" in page.text("verdict"))
    assert page.text("verdict").startswith("anomalous, 0.") and "judged as wooden board" in page.text("verdict")
    page.wait(lambda: len(page.all("#pictures img")) >= 2)
    page.wait(lambda: "past the line of wooden board" in page.text("why") and len(page.all("#why img")) == 2)
    assert not page.too_wide()
    page.picture(PICTURES / f"inspect-{name}.png")
    for tab in ("Live", "Teach", "Judge"):
        page.open_tab(tab)
        page.wait_for(READY[tab])
        assert not page.too_wide()
        page.picture(PICTURES / f"{tab.lower()}-{name}.png")
    assert all(url.startswith(address) for url in page.asked()) and not page.faults()


def test_the_page_of_a_report_fits_a_phone_and_finds_what_was_wrong(chrome, tmp_path):
    report, said = Report("a day"), Feedback("", "0", "good", "", None, None, "anomalous")
    known = {"class": "a product with a long name, 0.5 l", "score": 0.9, "unsure": True}
    for number, label in enumerate(("anomalous", "anomalous", "normal", UNKNOWN_PRODUCT)):
        row = {"path": f"{number}.png", "id": str(number), "label": label, **known}
        report.add(row, lambda: None, said=None if number else said)
    report.add({"path": "broken.png", "error": "it is cut short", "score": None, "label": None}, lambda: None)
    report.write(tmp_path / "report.html")
    chrome.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {**PHONE, "deviceScaleFactor": 1, "mobile": True})
    chrome.get((tmp_path / "report.html").as_uri())
    right = "return Math.max(...[...document.querySelectorAll('*')].map(each => each.getBoundingClientRect().right))"
    assert chrome.execute_script(right) <= PHONE["width"]

    def shown() -> list[str]:
        return [each.text for each in chrome.find_elements("css selector", "figure") if each.is_displayed()]

    assert len(shown()) == 4
    chrome.find_element("id", "wrong").click()
    assert len(shown()) == 1 and "0.png" in shown()[0]


def test_inspect_one_and_many(chrome, address, examples, downloads, tmp_path):
    page = Page(chrome, address, dark=False, **DESK)
    page.upload("photograph", [examples.to_inspect[0]])
    page.wait(lambda: page.all("#photograph img"))
    page.click(page.find("inspect"))
    page.wait(lambda: page.text("verdict").startswith("normal, 0."))
    page.open("many")
    (tmp_path / "text.png").write_text("no picture")
    page.wait(lambda: page.find("files").is_displayed())
    page.upload("files", [*examples.to_inspect, tmp_path / "text.png"])
    page.wait_for_file("text.png")
    page.click(page.find("inspect-all"))
    page.wait(lambda: "7 photographs:" in page.text("many-message"), 30)
    told = page.text("many-message")
    assert all(part in told for part in ("2 normal, 3 anomalous, 1 unknown product", "1 could not be judged"))
    page.wait_for("text.png is not a photograph that can be read")
    page.picture(PICTURES / "many-desk-light.png")
    cells = "#results [role=gridcell], #results td"
    (red,) = {cell.value_of_css_property("background-color") for cell in page.all(cells) if cell.text == "✕ anomalous"}
    (green,) = {cell.value_of_css_property("background-color") for cell in page.all(cells) if cell.text == "✓ normal"}
    assert red != green and any(cell.text == "? unknown product" for cell in page.all(cells))
    page.click_when(lambda: next(cell for cell in page.all(cells) if "wooden_board_missing" in cell.text))
    page.wait(lambda: page.text("verdict").startswith("anomalous"))
    page.click_when(lambda: page.all("#report a")[0])
    path = page.wait(lambda: next(downloads.glob("anople_results*.zip"), None))
    page.wait(lambda: zipfile.is_zipfile(path))
    assert "results.csv" in zipfile.ZipFile(path).namelist()
    assert not page.faults()


def test_a_folder_of_stills_joins_the_photographs(chrome, address, examples, tmp_path):
    folder = tmp_path / "line 3"
    folder.mkdir()
    for path in examples.to_inspect[:3]:
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "notes.txt").write_text("no photograph")
    page = Page(chrome, address, dark=False, **DESK)
    page.open("many")
    page.wait(lambda: page.find("folder").is_displayed())
    field = page.wait(lambda: page.driver.find_element("css selector", "input[type=file][webkitdirectory]"))
    field.send_keys(str(folder))
    page.wait_for_file(examples.to_inspect[2].name)
    page.click(page.find("inspect-all"))
    page.wait(lambda: "3 photographs:" in page.text("many-message"), 30)
    page.wait(lambda: len(page.all("#results img.thumbnail")) == 3)
    assert "could not" not in page.text("many-message")


def test_fit_shows_its_curve_and_stops_with_a_detector_that_works(chrome, address):
    page = Page(chrome, address, dark=False, **DESK)
    page.open_tab("Teach")
    page.open("fitting")
    page.click(page.wait(lambda: page.find("fit") if page.find("fit").is_displayed() else None))
    page.wait(lambda: "2 of 40 steps are done" in page.text("fit-message"), 60)
    curve = page.wait(lambda: page.all("#losses .mark-line path")[0])
    assert "L" in curve.get_attribute("d") and "40" in page.text("losses")  # of two steps at least, on an axis for all
    edge = page.all("#losses svg.marks")[0].rect["x"]
    left = page.wait(
        lambda: [letters.rect["x"] for letters in page.all("#losses svg text")]
    )  # drawn anew at each step
    assert min(left) >= edge  # no number of an axis is cut off
    page.click(page.find("stop-fit"))
    page.wait(lambda: "and kept. Memory and lines of wooden board" in page.text("fit-message"), 90)
    page.picture(PICTURES / "fitted-desk-light.png")
    page.open_tab("Inspect")
    click_example(page, 1)
    page.wait(lambda: page.text("verdict").startswith("anomalous"))
    page.wait(lambda: "past the line of wooden board" in page.text("why"))
    assert not page.faults()


def test_a_photograph_is_inspected_with_the_keyboard_alone(chrome, address):
    page = Page(chrome, address, dark=False, **DESK)
    page.wait(lambda: page.all("#examples button.thumbnail-item"))
    page.tab_to("#product input")
    page.press("wooden board", Keys.ENTER)  # the whole name: the list may filter later than Enter comes
    page.tab_to("#examples button.thumbnail-item")
    page.press(Keys.TAB, Keys.ENTER)
    page.wait(
        lambda: page.text("verdict").startswith("anomalous, 0.") and "judged as wooden board" in page.text("verdict")
    )
    assert "found by the detector" not in page.text("verdict")
    ActionChains(page.driver).key_down(Keys.SHIFT).send_keys(Keys.TAB, Keys.TAB).key_up(Keys.SHIFT).perform()
    assert page.driver.switch_to.active_element.get_attribute("id") == "inspect"
    before = page.text("verdict")
    page.press(Keys.ENTER)
    page.wait(lambda: "anomalous, 0." in page.text("verdict") and page.text("verdict") != before)


def test_screen_readers_are_told_what_everything_is(chrome, address):
    page = Page(chrome, address, dark=False, **DESK)
    click_example(page, 1)
    page.wait(lambda: "past the line" in page.text("why"))
    told = page.spoken()
    assert {("tab", "Inspect"), ("tab", "Live"), ("tab", "Teach"), ("tab", "Judge"), ("button", "Inspect")} <= set(
        told
    )
    assert any(role == "status" for role, _ in told) and any("Color scale" in name for _, name in told)
    names = " ".join(name for _, name in told)
    assert "The worst region of this photograph" in names and "The nearest good place, in wooden board" in names
    asked = {"button", "tab", "textbox", "combobox", "slider", "spinbutton", "checkbox", "link", "listbox", "image"}
    assert [role for role, name in told if role in asked and not name.strip()] == []
    for tab, fields in (("Live", {"Product"}), ("Teach", {"Name of the product"}), ("Judge", {"Product"})):
        page.open_tab(tab)
        page.wait(
            lambda fields=fields: fields <= {name for role, name in page.spoken() if role in ("textbox", "combobox")}
        )
        assert [role for role, name in page.spoken() if role in asked and not name.strip()] == []


def test_stop_ends_many_and_keeps_what_was_judged(chrome, address, tmp_path):
    generator = np.random.default_rng(5)
    paths = [tmp_path / f"{number}.png" for number in range(40)]
    picture = draw_product("capsule", generator, 256)[0]
    for number, path in enumerate(paths):
        picture.rotate(number / 50).save(path)
    page = Page(chrome, address, dark=False, **DESK)
    page.open("many")
    page.wait(lambda: page.find("files").is_displayed())
    page.upload("files", paths)
    page.wait_for_file("39.png")
    page.click(page.find("inspect-all"))
    page.wait(lambda: "of 40 photographs are judged" in page.text("many-message"))
    page.click(page.find("stop"))
    page.wait(lambda: "Stopped after" in page.text("many-message"))
    page.wait(lambda: page.all("#report a"))


def test_teach_take_home_and_bring_back(chrome, address, examples, downloads):
    page = Page(chrome, address, dark=False, **DESK)
    click_example(page, 5)
    page.wait(lambda: page.text("verdict").startswith("unknown product"))
    page.open_tab("Teach")
    page.wait(lambda: page.find("teach").is_displayed())
    page.find("name").find_element("css selector", "textarea, input").send_keys("woven fabric")
    page.upload("shots", examples.to_teach)
    page.wait_for_file(examples.to_teach[-1].name)
    page.wait(lambda: len(page.all("#chosen img")) == 4)
    page.click(page.find("teach"))
    page.wait(lambda: "woven fabric is ready, from 4 good photographs" in page.text("teach-message"), 30)
    page.wait(lambda: "woven fabric" in page.text("known") and len(page.all("#known img")) == 28)
    page.click(page.find("teach"))
    page.wait(lambda: "woven fabric is known already" in page.text("teach-message"))
    page.click(page.find("replace"))
    page.wait(lambda: "woven fabric is taught anew, from 4 good photographs" in page.text("teach-message"), 30)
    page.picture(PICTURES / "taught-desk-light.png")
    page.open_tab("Inspect")
    click_example(page, 5)
    page.wait(lambda: page.text("verdict").startswith("anomalous") and "woven fabric" in page.text("verdict"))
    page.picture(PICTURES / "inspect-taught-desk-light.png")
    page.open_tab("Teach")
    page.open("managing")
    page.wait(lambda: page.find("rename").is_displayed())
    page.find("new-name").find_element("css selector", "textarea, input").send_keys("fabric 2")
    page.click(page.find("rename"))
    page.wait(lambda: "woven fabric is called fabric 2 now" in page.text("managed-message"))
    for tab, field in (("Inspect", "product"), ("Live", "live-product"), ("Judge", "judged"), ("Teach", "managed")):
        page.open_tab(tab)
        page.wait(lambda field=field: chosen(page, field) == "fabric 2")
    page.click(page.find("forget"))
    page.wait(lambda: "fabric 2 is forgotten" in page.text("managed-message") and "fabric 2" not in page.text("known"))
    page.click(page.find("undo-product"))
    page.wait(lambda: "as it was before" in page.text("managed-message") and "fabric 2" in page.text("known"))
    page.picture(PICTURES / "managed-desk-light.png")
    page.open("home")
    page.wait(lambda: page.find("pack").is_displayed())
    page.click(page.find("pack"))
    page.wait(lambda: page.all("#packed a"), 30)
    page.click_when(lambda: page.all("#packed a")[0])
    path = page.wait(lambda: next(downloads.glob("anople_detector*.zip"), None))
    page.wait(lambda: zipfile.is_zipfile(path))

    another = Page(chrome, address, dark=False, **DESK)  # a new session
    another.open_tab("Teach")
    another.wait(lambda: "circuit board" in another.text("known"))
    assert "fabric" not in another.text("known")
    another.open("home")
    another.wait(lambda: another.find("load").is_displayed())
    another.upload("brought", [path])
    another.wait_for("anople_detector")
    another.click(another.find("load"))
    another.wait(lambda: "This detector knows" in another.text("home-message"), 30)
    assert "fabric 2" in another.text("known")


def test_judge_and_this_was_fine(chrome, address, tmp_path):
    page = Page(chrome, address, dark=True, **DESK)
    page.open_tab("Judge")
    page.wait_for("0 of 8 measurements of 8 good photographs")
    number = page.find("threshold").find_element("css selector", "input[type=number]")
    page.driver.execute_script(
        "arguments[0].value = 0.05; for (const kind of ['input', 'change', 'blur', 'pointerup'])"
        "arguments[0].dispatchEvent(new Event(kind, {bubbles: true}))",
        number,
    )
    page.wait(lambda: "your line 0.05" in page.text("normals"))
    page.wait(lambda: page.all("#normals circle.flagged"))
    page.picture(PICTURES / "judge-moved-desk-dark.png")
    draw_product("wooden board", np.random.default_rng(77))[0].save(tmp_path / "fine.png")
    page.upload("was-fine", [tmp_path / "fine.png"])
    page.wait(lambda: page.all("#was-fine img"))
    page.click(page.find("fine"))
    page.wait(lambda: "wooden board now knows 9 good photographs" in page.text("fine-message"))
    page.wait_for("measurements of 9 good photographs")


def test_clumsy_input_is_answered_in_words(chrome, address, examples, tmp_path):
    page = Page(chrome, address, dark=False, **DESK)
    page.click(page.find("inspect"))
    page.wait(lambda: page.text("verdict").startswith("Not possible.There is no photograph yet"))
    page.open_tab("Teach")
    page.wait(lambda: page.find("teach").is_displayed())
    field = page.find("name").find_element("css selector", "textarea, input")
    field.send_keys("<script>alert(1)</script>")
    page.upload("shots", examples.to_teach[:1])
    page.wait_for_file(examples.to_teach[0].name)
    page.click(page.find("teach"))
    page.wait(lambda: "<script>alert(1)</script> cannot be a product's name" in page.text("teach-message"))
    assert not page.all(".toast-body")  # it stands in its place, and nothing pops up
    page.picture(PICTURES / "refused-desk-light.png")
    assert not page.faults()


def test_every_field_has_a_label_for_those_who_do_not_see(chrome, address):
    page = Page(chrome, address, dark=False, **DESK)
    page.wait(lambda: page.all("#examples button.thumbnail-item"))
    script = """
    return [...document.querySelectorAll('button, input:not([type=file]), textarea')].filter(e => e.offsetParent).filter(e =>
      !(e.innerText.trim() || e.ariaLabel || e.title || e.labels?.length || e.getAttribute('aria-labelledby')
        || e.querySelector('img[alt]:not([alt=""])'))).map(e => e.outerHTML.slice(0, 160))
    """
    assert page.driver.execute_script(script) == []


def test_from_click_to_verdict_takes_less_than_a_second_or_two(chrome, address):
    page = Page(chrome, address, dark=False, **DESK)
    click_example(page, 1)
    page.wait(lambda: "line at 0.50" in page.text("verdict"))
    spent = []
    for _ in range(5):
        before, start = page.text("verdict"), time.monotonic()
        page.find("inspect").click()
        page.wait(lambda before=before: page.text("verdict") not in ("", before))
        spent.append(time.monotonic() - start)
    (PICTURES / "seconds.txt").write_text(f"{sorted(spent)}\n")
    assert min(spent) < 2  # below 1 on two free cores; other programs may be running here
    assert Image.open(PICTURES / "first-desk-light.png").width == DESK["width"]

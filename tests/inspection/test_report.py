"""The page about what was inspected: what it counts, shows and says, and that nothing from a file gets into it unescaped."""

import html
import json
import re
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from modeling_anople.cli import main
from modeling_anople.inspection.feedback import Feedback
from modeling_anople.inspection.records import Rows
from modeling_anople.inspection.report import MOST_LISTED, MOST_PICTURES, Report, describe_row, report_of_results
from modeling_anople.runtime.loading import load_config
from modeling_anople.runtime.outputs import is_page

from ..detectors import write_detector
from ..fitting import write_products


HOSTILE = "<script>alert(1)</script>&\"'.png"


@pytest.fixture(scope="module")
def detector(tmp_path_factory, small_clip_folder, photograph) -> Path:
    """A detector of bolt and nut, which no test changes."""
    return write_detector(tmp_path_factory.mktemp("detector") / "saved", small_clip_folder, photograph)


def row(path: str = "a.png", score: float | None = 0.1, label: str | None = "normal", **more) -> dict:
    known = {"path": path, "class": "bolt", "score": score, "label": label, "unsure": False, "regions": []}
    return known | more


def place(x: float, y: float, area: int) -> dict:
    return {"box": [0, 0, 1, 1], "area": area, "peak": 0.9, "centroid": [x, y]}


def write_rows(folder: Path, rows: list[dict], *more: str) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "results.jsonl").write_text("\n".join([*map(json.dumps, rows), *more]))
    return folder


def page_of(*rows: dict, **options) -> str:
    report = Report("today", **options)
    for each in rows:
        report.add(each, lambda: Image.new("RGB", (8, 8)))
    return report.page()


def words_of(page: str) -> str:
    return html.unescape(re.sub(r"\s+", " ", re.sub(r"<style>.*?</style>|<[^>]*>", " ", page, flags=re.DOTALL)))


class _Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags: set[str] = set()
        self.addresses: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href")]


# --- Sentences ---


@pytest.mark.parametrize(
    ("known", "said"),
    [
        (row("x/bolt-3.png", 0.117), "bolt-3.png: normal bolt, score 0.12 (threshold 0.50)."),
        (
            row("bolt-17.png", 0.83, "anomalous", regions=[place(9, 9, 4), place(120.3, 44, 50)]),
            "bolt-17.png: anomalous bolt, score 0.83 (threshold 0.50); 2 regions, the largest at 120,44.",
        ),
        (
            row("d.png", 0.2, "anomalous", reason="too dark", regions=[place(1, 2, 3)]),
            "d.png: anomalous bolt (too dark), score 0.20 (threshold 0.50); 1 region, at 1,2.",
        ),
        (
            row("u.png", 0.4, unsure=True),
            "u.png: normal bolt, but odder than every good photograph that is known, score 0.40 (threshold 0.50).",
        ),
        (
            row("s.png", 0.9, "unknown product", **{"class": None}),
            "s.png: unknown product, score 0.90 (threshold 0.50).",
        ),
        (row("n.png", 0.01, None), "n.png: bolt has no threshold, so there is no verdict; raw score 0.01."),
        (
            row("b.png", None, None, error="b.png: is cut short: copy it again."),
            "b.png: could not be judged: is cut short: copy it again.",
        ),
        (row("c.png", None, "normal"), "c.png: could not be judged: it has no score."),
    ],
)
def test_a_row_in_words(known, said):
    assert describe_row(known, 0.5) == said


@pytest.mark.parametrize("options", [[], ["--json_lines"], ["--explain"]])
def test_a_terminal_gets_sentences_and_a_pipe_json(detector, photograph, options, tmp_path, monkeypatch, capsys):
    photograph(1).save(tmp_path / "one.png")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    assert main(["predict", str(detector), str(tmp_path / "one.png"), "--class", "bolt", *options]) == 0
    told = capsys.readouterr().out
    if options:
        assert json.loads(told)["class"] == "bolt" and ("explanation" in told) == ("--explain" in options)
    else:
        assert re.fullmatch(r"one\.png: (normal|anomalous) bolt.*, score 0\.\d\d \(threshold 0\.50\).*\.\n", told)


# --- The page ---


def test_a_picture_names_its_id_as_feedback_wants_it():
    words = words_of(page_of(row("a.png", 0.9, "anomalous", id="0123456789abcdef"), row("b.png", 0.8, "anomalous")))
    assert "id 0123456789abcdef" in words and words.count(" id ") == 1


def answer(id: str, verdict: str, label: str | None) -> Feedback:
    return Feedback("2026-12-01T06:00:00Z", id, verdict, f"{id}.png", None, "bolt", label)


def test_what_people_said_stands_beside_the_verdicts(tmp_path):
    """The last answer to each result counts, as long as it is not taken back; what was wrong comes first."""
    rows = [
        row("right.png", 0.9, "anomalous", id="r"),
        row("alarm.png", 0.8, "anomalous", id="a"),
        row("miss.png", 0.2, id="m"),
        row("doubt.png", 0.4, unsure=True, id="d"),
        row("fine.png", id="f"),
        row("broken.png", None, None, id="e", error="broken.png: is cut short"),
        row("unsaid.png", 0.95, "anomalous", id="u"),
        row("undone.png", 0.7, "anomalous", id="x"),
    ]
    folder = write_rows(tmp_path / "results", rows)
    said = [("r", "bad"), ("a", "bad"), ("a", "good"), ("m", "bad"), ("d", "good"), ("f", "good"), ("e", "bad")]
    said += [("x", "good"), ("x", "undo"), ("gone", "bad")]
    labels = {each["id"]: each["label"] for each in rows}
    lines = [json.dumps(asdict(answer(id, verdict, labels.get(id)))) for id, verdict in said]
    torn = [asdict(answer("u", "good", "anomalous")) | each for each in ({"id": ["u"]}, {"label": []}, {"label": {}})]
    torn = [*map(json.dumps, torn), "[" * 100_000, '{"torn']
    (folder / "feedback.jsonl").write_text("\n".join([*lines, *torn]))
    page = report_of_results(folder).page()
    words = words_of(page)
    assert "There are 6 answers of people. By these the detector was right on 3 of 5 (60 %)" in words
    assert "1 was defective, and called normal; 1 was good, and set aside." in words
    captions = [words_of(each) for each in re.findall(r"<figcaption>.*?</figcaption>", page)]
    names = [re.search(r"(\w+)\.png", caption)[1] for caption in captions]
    assert names == ["alarm", "miss", "unsaid", "right", "undone", "doubt"]
    assert "A person said it is good, so “anomalous” was wrong." in captions[0]
    assert "A person said it is defective, so “normal” was wrong." in captions[1]
    assert "A person said it is defective." in captions[3] and "A person said it is good." in captions[5]
    assert all("A person" not in captions[number] for number in (2, 4))
    listed = page[page.index("What people said") : page.index("Look at these first")]
    assert re.findall(r"(\w+)\.png: ", listed)[:2] == ["alarm", "miss"] and "fine.png: normal" in words_of(listed)
    assert page.count('<figure class="wrong">') == page.count('<li class="wrong">') == 2


def test_what_was_said_of_an_earlier_verdict_is_counted_by_that_one(tmp_path):
    """As where feedback taught the detector, and the same photograph came again."""
    folder = write_rows(tmp_path / "results", [row("a.png", 0.8, "anomalous", id="a"), row("a.png", 0.3, id="a")])
    (folder / "feedback.jsonl").write_text(json.dumps(asdict(answer("a", "good", "anomalous"))))
    page = report_of_results(folder).page()
    assert "right on 0 of 1" in words_of(page) and "the detector was wrong (1)" in words_of(page)
    assert '<li class="wrong">' in page and "so “anomalous” was wrong" in words_of(page)


def test_without_a_wrong_verdict_there_is_no_box_to_find_it_by():
    assert "People" not in page_of(row())
    report = Report("today")
    report.add(row(id="f"), lambda: None, said=answer("f", "good", "normal"))
    words = words_of(report.page())
    assert "There is 1 answer of people. By these the detector was right on 1 of 1 (100 %)." in words
    assert "Show only" not in words and "fine" not in words


def test_verdicts_are_counted_and_explained():
    rows = [
        *(row(f"{number}.png") for number in range(5)),
        row("u.png", 0.4, unsure=True),
        row("a.png", 0.9, "anomalous"),
        row("n.png", 0.8, "anomalous", **{"class": "nut"}),
        row("e.png", None, None, **{"class": None}, error="e.png: broken"),
    ]
    page = words_of(page_of(*rows))
    assert "9 photographs were inspected. 5 need nobody; 4 should be looked at." in page
    assert "1 photograph could not be judged, which says nothing about the part" in page
    assert "bolt 7 0 1 1 5" in page and "nut 1 0 1 0 0" in page and "no product 1 1 0 0 0" in page
    assert page.index("nut 1 0 1 0 0") < page.index("bolt 7 0 1 1 5")  # the worst product first


def test_the_worst_pictures_come_first_and_the_rest_is_listed():
    scores = [0.5 + number / 100 for number in range(1, 41)]
    rows = [row(f"{score:.2f}.png", score, "anomalous") for score in scores]
    page = page_of(*rows[::2], row("fine.png"), *rows[1::2])
    captions = re.findall(r"<figcaption>.*?(\d\.\d\d)\.png: ", page)
    assert captions == [f"{score:.2f}" for score in reversed(scores)][:MOST_PICTURES]
    listed = re.findall(r"<li>(\d\.\d\d)\.png: anomalous", page)
    assert listed == [f"{score:.2f}" for score in reversed(scores)][MOST_PICTURES:]
    assert page.count("data:image/jpeg;base64,") == MOST_PICTURES and "fine.png" not in page


def test_a_page_stays_small_and_says_what_it_leaves_out():
    drawn = []
    report = Report("a year")
    for number in range(MOST_PICTURES + MOST_LISTED + 7):
        report.add(row(f"{number}.png", 0.9 - number / 10_000, "anomalous"), lambda: drawn.append(1))
    page = report.page()
    assert "And 7 more, which the results name." in page and len(drawn) == MOST_PICTURES
    assert page.count("no picture was kept") == MOST_PICTURES


def test_time_is_drawn_where_there_is_a_course():
    start = datetime(2026, 11, 30, 6, tzinfo=UTC)
    stamps = [(start + timedelta(minutes=10 * number)).strftime("%Y-%m-%dT%H:%M:%SZ") for number in range(60)]
    rows = [
        row(
            f"{number}.png", 0.9 if 30 <= number < 36 else 0.1, "anomalous" if 30 <= number < 36 else "normal", time=at
        )
        for number, at in enumerate(stamps)
    ]
    page = page_of(*rows)
    assert "From 2026-11-30 06:00 to 2026-11-30 15:50 UTC. A bar stands for 15 minutes" in page
    assert "100 %, was from 2026-11-30 11:00 on" in page and 40 <= page.count("<rect ") <= 41
    alone = page_of(row(time=stamps[0]), row(time="yesterday"), row())
    assert "All at 2026-11-30 06:00 UTC." in alone and "<svg" not in alone


def test_nothing_from_a_file_is_taken_for_html():
    more = {"class": HOSTILE, "reason": HOSTILE, "time": HOSTILE}
    rows = [
        row(HOSTILE, 0.9, "anomalous", **more),
        row(HOSTILE, None, None, error=HOSTILE),
        row("x\u202e\n\x1b[2Jx.png", 0.8, "anomalous", is_defective=False, defect=HOSTILE),
    ]
    page = page_of(*rows, detector=HOSTILE, settings={HOSTILE: HOSTILE})
    tags = _Tags()
    tags.feed(page)
    assert "script" not in tags.tags and "\x1b" not in page and "\u202e" not in page
    assert page.count("&lt;script&gt;alert(1)&lt;/script&gt;") >= 5
    assert all(
        address.startswith("data:image/jpeg;base64,") for address in tags.addresses
    )  # and no other server is asked


def test_what_the_threshold_promises_and_what_was_measured(detector):
    known = [row(f"{number}.png", 0.9, "anomalous", is_defective=number < 8, defect="scratch") for number in range(10)]
    known += [row(f"g{number}.png", 0.2, is_defective=number < 2, defect="hair") for number in range(10)]
    page = words_of(page_of(*known, config=load_config(str(detector))))
    assert "With 3 photographs at best 1 in 4 can be promised" in page
    assert "Of 10 good photographs 2 (20 %) were called anomalous, which are false alarms." in page
    assert "Of 10 defective photographs 8 (80 %) were found." in page
    assert page.index("g0.png: normal bolt") < page.index("0.png: anomalous bolt")  # what was missed comes first
    untold = words_of(page_of(*[row()] * 40, config=load_config(str(detector))))
    assert (
        "Of 40 photographs of it here, 0 (0 %) were called anomalous; if all parts were good, about 2 would" in untold
    )
    assert "cannot say what its thresholds promise (--detector)" in words_of(page_of(row()))


# --- From results ---


def test_a_folder_of_results_becomes_a_page_with_their_pictures(detector, photograph, tmp_path, monkeypatch, capsys):
    (tmp_path / "photographs").mkdir()
    for number in range(3):
        photograph(number).save(tmp_path / "photographs" / f"{number}.png")
    (tmp_path / "photographs" / "broken.png").write_bytes(b"no image")
    arguments = ["predict", str(detector), str(tmp_path / "photographs"), "--class", "bolt"]
    assert main([*arguments, "--output", str(tmp_path / "out"), "--report", str(tmp_path / "own.html")]) == 1
    (tmp_path / "out").rename(tmp_path / "moved")
    page = tmp_path / "page.html"
    assert main(["report", str(tmp_path / "moved"), "--output", str(page), "--detector", str(detector)]) == 0
    ours = words_of(page.read_text())
    assert "4 photographs were inspected" in ours and "broken.png: could not be judged: is not an image" in ours
    assert (
        page.read_text().count("data:image/jpeg") == (tmp_path / "own.html").read_text().count("data:image/jpeg") > 0
    )
    assert "With 3 photographs at best 1 in 4" in ours and "anople 0.1.0" in ours
    assert main(["report", str(tmp_path / "moved" / "results.jsonl"), "--output", str(page)]) == 0  # ours is replaced
    capsys.readouterr()
    page.write_text("mine")
    assert main(["report", str(tmp_path / "moved"), "--output", str(page)]) == 2
    assert "this command did not write it" in capsys.readouterr().err and page.read_text() == "mine"


def test_no_picture_outside_the_results_is_opened(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "secret.png")
    rows = [row(f"{number}.png", 0.9, "anomalous", overlay=name) for number, name in
            enumerate((str(tmp_path / "secret.png"), "../secret.png", "link.png"))]  # fmt: skip
    folder = write_rows(tmp_path / "results", rows)
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    assert main(["report", str(folder), "--output", str(tmp_path / "page.html")]) == 0
    assert "data:image" not in (tmp_path / "page.html").read_text()


def test_lines_that_are_none_are_counted(tmp_path):
    broken = [
        '{"path": "x',
        "[]",
        '{"path": "x", "score": NaN, "label": "normal"}',
        '{"path": 3, "score": 1, "label": null}',
        '{"path": "x", "score": 0.1, "label": "normal", "class": "bolt", "id": ["x"]}',
    ]
    broken.append('{"path": "x", "score": 0.1, "label": "normal", "regions": [{"area": 1}]}')
    folder = write_rows(tmp_path / "results", [row()], *broken)
    rows = Rows(folder)
    assert list(rows) == [row()] and rows.damaged == 6
    assert main(["report", str(folder), "--output", str(tmp_path / "page.html")]) == 0
    assert "6 lines of the results are damaged and not counted here." in words_of((tmp_path / "page.html").read_text())
    assert is_page(tmp_path / "page.html")


@pytest.mark.parametrize("content", [None, "", "\n", "{}", '{"path": "x'])
def test_results_without_a_row_are_refused(content, tmp_path, capsys):
    if content is not None:
        (tmp_path / "results.jsonl").write_text(content)
    assert main(["report", str(tmp_path), "--output", str(tmp_path / "page.html")]) == 2
    errors = capsys.readouterr().err
    assert "predict, watch or serve" in errors and errors.count("\n") == 1 and not (tmp_path / "page.html").exists()


def test_an_evaluation_becomes_a_page(detector, photograph, tmp_path):
    data, own, page = write_products(tmp_path / "data", photograph), tmp_path / "own.html", tmp_path / "page.html"
    options = ["--json", str(tmp_path / "evaluation.json"), "--report", str(own), "--evaluation_size", "32"]
    assert main(["evaluate", str(detector), str(data), *options]) == 0
    words = words_of(own.read_text())
    assert "4 photographs were inspected" in words and "In truth it is" in words and "Of 1 good photographs" in words
    assert own.read_text().count("data:image/jpeg") >= 1
    assert main(["report", str(tmp_path / "evaluation.json"), "--output", str(page)]) == 0
    assert "bolt. 1 photograph of good parts and 1 of defective ones." in words_of(page.read_text())
    assert main(["evaluate", str(detector), str(data), *options]) == 0  # what is ours is replaced

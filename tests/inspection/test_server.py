"""A detector as a service: answers as those of the detector itself, refusals that say what to do, and an end that loses nothing."""

import base64
import contextlib
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
import schemathesis
import torch
from hypothesis import HealthCheck, given, settings
from PIL import Image
from schemathesis.specs.openapi.checks import positive_data_acceptance

from modeling_anople.cli import main
from modeling_anople.inspection.judging import Closed, Figures, Judge, QueueFull
from modeling_anople.inspection.records import _drawn_by
from modeling_anople.inspection.server import Keeper, Settings
from modeling_anople.runtime.loading import load_judge

from ..detectors import write_detector, write_screws
from ..serving import alone, ask, is_right, serving


TOKEN = {"Authorization": "Bearer open sesame"}


@pytest.fixture(scope="module")
def detector(tmp_path_factory, small_clip_folder, photograph) -> Path:
    """A detector of bolt and nut, which no test changes."""
    return write_detector(tmp_path_factory.mktemp("detector") / "saved", small_clip_folder, photograph)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory, photograph) -> list[Path]:
    """Eight photographs, and one that is none."""
    folder = tmp_path_factory.mktemp("photographs")
    paths = [folder / f"{number}.png" for number in range(8)]
    for number, path in enumerate(paths):
        photograph(100 * (number % 3) + 1).save(path)
    (folder / "broken.png").write_bytes(paths[0].read_bytes()[:200])
    return [*paths, folder / "broken.png"]


@pytest.fixture(scope="module")
def output(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("served")


@pytest.fixture(scope="module")
def address(detector, output) -> Iterator[str]:
    chosen = Settings(str(detector), token="open sesame", output=output, max_bytes=200_000, queue=16)
    with serving(chosen) as address:
        yield address


# --- Answers ---


@pytest.mark.parametrize("product", [None, "nut"])
def test_answers_are_those_of_the_detector_itself(address, detector, photographs, product):
    answer = ask(address, photographs, **({"product": product} if product else {}))
    rows = answer.json()["results"]
    assert answer.status_code == 200 and [row["path"] for row in rows] == [path.name for path in photographs]
    assert all(map(is_right, rows, alone(detector, photographs, product)))
    assert len({row["id"] for row in rows}) == len(rows)  # of each name and content


def test_one_broken_photograph_is_an_entry_and_the_others_are_answered(address, photographs):
    rows = ask(address, [photographs[0], photographs[-1], photographs[1]]).json()["results"]
    assert [row["label"] is None for row in rows] == [False, True, False]
    assert rows[1]["error"].startswith("broken.png: ") and rows[1]["score"] is None


def test_a_heat_map_comes_where_it_is_asked_for(address, photographs):
    row = ask(address, photographs[:1], overlay="true").json()["results"][0]
    with Image.open(io.BytesIO(base64.b64decode(row["overlay"]))) as picture, Image.open(photographs[0]) as photograph:
        assert picture.format == "PNG" and picture.height >= photograph.height
    assert "overlay" not in ask(address, photographs[:1]).json()["results"][0]


def test_what_many_ask_at_once_is_judged_together_and_each_gets_its_own(address, detector, photographs):
    expected = dict(zip([path.name for path in photographs], alone(detector, photographs), strict=True))
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda number: ask(address, [photographs[number % 9]]), range(32)))
    answered = [answer.json()["results"][0] for answer in answers if answer.status_code == 200]
    assert len(answered) >= 16 and all(is_right(row, expected[row["path"]]) for row in answered)
    assert all(answer.status_code in (200, 429) for answer in answers)
    figures = httpx.get(f"{address}/metrics").text
    batches, total = (float(line.split()[1]) for line in figures.splitlines()
                      if line.startswith(("anople_batch_photographs_count", "anople_batch_photographs_sum")))  # fmt: skip
    assert total > 1.2 * batches


def test_what_is_unsure_is_drawn_for_the_report_and_what_is_normal_is_not(address, output, photograph, tmp_path):
    paths = [tmp_path / f"{number}.png" for number in range(8)]
    for number, path in enumerate(paths):  # odder and odder
        Image.blend(photograph(0), photograph(50), 0.08 + 0.02 * number).save(path)
    ask(address, paths, product="bolt")
    kept = [json.loads(line) for line in (output / "results.jsonl").read_text().splitlines()]
    drawn = {(each["unsure"], "overlay" in each) for each in kept if each["label"] == "normal"}
    assert drawn == {(True, True), (False, False)}
    assert 'anople_photographs_total{product="bolt",verdict="unsure"}' in httpx.get(f"{address}/metrics").text


def test_what_was_answered_is_kept_with_its_photograph(address, output, photographs, photograph, tmp_path):
    odd = tmp_path / "..%2F <b>odd.png"
    Image.effect_noise((48, 40), 90).convert("RGB").save(odd)
    row = ask(address, [odd], product="bolt").json()["results"][0]
    kept = [json.loads(line) for line in (output / "results.jsonl").read_text().splitlines()]
    kept = next(each for each in kept if each["id"] == row["id"])
    assert kept["path"] == odd.name and Path(kept["file"]).read_bytes() == odd.read_bytes()
    assert Path(kept["file"]).parent == output / "photographs" and row["label"] == "anomalous"
    assert Path(kept["overlay"]).is_file() and Path(kept["overlay"]).parent == output
    assert main(["report", str(output), "--output", str(tmp_path / "page.html")]) == 0
    page = (tmp_path / "page.html").read_text()
    assert "&lt;b&gt;odd.png: anomalous bolt" in page and "<b>odd" not in page


def test_no_heat_map_is_drawn_over_another_after_a_start(tmp_path):
    """Rows of earlier programs may be fewer than pictures; pictures are known to be ours by their names."""
    contents = {}
    for number in range(3):
        keeper = Keeper(tmp_path)
        row = {"id": f"{number:016x}", "path": "a.png", "class": "bolt", "score": 0.9, "label": "anomalous"}
        keeper.keep(row, b"content", Image.new("RGB", (4, 4), (number, 0, 0)))
        keeper.close()
        results = tmp_path / "results.jsonl"
        contents |= {path: path.read_bytes() for path in tmp_path.glob("*.png") if path not in contents}
        results.write_bytes(results.read_bytes()[:-20])  # killed
    assert len(contents) == 3 and all(path.read_bytes() == content for path, content in contents.items())
    Keeper(tmp_path).keep({**row, "id": "f" * 16}, b"content", Image.new("RGB", (4, 4)))
    assert [*_drawn_by(results)] == [f"{'f' * 16}-a.png"]


# --- Refusals ---


def test_an_unknown_product_is_named_with_the_known_ones(address, photographs):
    answer = ask(address, photographs[:1], product="blot")
    assert answer.status_code == 404 and "Did you mean bolt?" in answer.json()["detail"]


def test_what_is_too_large_is_refused(address, photographs, tmp_path):
    (tmp_path / "large.png").write_bytes(bytes(300_000))
    answer = ask(address, [tmp_path / "large.png"])
    assert answer.status_code == 413 and "0.2 MB" in answer.json()["detail"]
    chunks = (bytes(50_000) for _ in range(8))  # of a length that is not said
    kind = {"Content-Type": "multipart/form-data; boundary=x"}
    start = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a"\r\n\r\n'
    answer = httpx.post(f"{address}/predict", content=iter([start, *chunks]), headers=kind)
    assert answer.status_code == 413
    many = ask(address, 17 * photographs[:1])
    assert many.status_code == 422 and "at most 16" in many.text
    assert httpx.get(f"{address}/healthz").json()["status"] == "ok"


def test_a_client_that_stops_sending_holds_no_place(detector, photographs):
    head = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=x\r\nContent-Length: 9000\r\n\r\n"
    with serving(Settings(str(detector), queue=2, patience=0.5)) as address, contextlib.ExitStack() as stack:
        port = int(address.rpartition(":")[2])
        stopped = [stack.enter_context(socket.create_connection(("127.0.0.1", port))) for _ in range(2)]
        for each in stopped:
            each.sendall(head + b'--x\r\nContent-Disposition: form-data; name="files"; filename="a"\r\n\r\nabc')
        assert stopped[0].recv(1000).startswith(b"HTTP/1.1 408")
        stopped[1].recv(1000)
        assert ask(address, photographs[:1]).status_code == 200
        gone = socket.create_connection(("127.0.0.1", port))
        gone.sendall(head)
        gone.close()
        assert ask(address, photographs[:1]).status_code == 200


def test_a_client_that_sends_byte_by_byte_holds_no_place(detector, photographs):
    """Neither one that is let in, nor one that is refused: each byte is in time, and the whole is not."""
    head = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=x\r\nContent-Length: 9000\r\n\r\n"
    head += b'--x\r\nContent-Disposition: form-data; name="files"; filename="a"\r\n\r\n'
    chosen = Settings(str(detector), queue=1, patience=5, body_seconds=0.5)
    with serving(chosen) as address, contextlib.ExitStack() as stack:
        port = int(address.rpartition(":")[2])
        slow = [stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=0.05)) for _ in range(2)]
        answers, end = {}, time.monotonic() + 4
        while len(answers) < 2 and time.monotonic() < end:
            for number, each in enumerate(slow):
                if number not in answers:
                    each.sendall(head or b"-")
                    with contextlib.suppress(TimeoutError):
                        answers[number] = each.recv(1000)[:12]
            head = b""
        assert answers == {0: b"HTTP/1.1 408", 1: b"HTTP/1.1 429"}
        assert ask(address, photographs[:1]).status_code == 200


def test_methods_that_strangers_make_up_are_one_figure(address):
    for number in range(3):
        httpx.request(f"MADEUP{number}", f"{address}/healthz")
    figures = httpx.get(f"{address}/metrics").text
    assert 'method="other"' in figures and "MADEUP" not in figures


def test_more_than_may_wait_is_told_when_to_come_again(detector, photographs):
    with serving(Settings(str(detector), queue=2, batch_size=1)) as address, ThreadPoolExecutor(24) as pool:
        answers = list(pool.map(lambda number: ask(address, [photographs[number % 8]]), range(48)))
    refused = [answer for answer in answers if answer.status_code == 429]
    assert refused and all(int(answer.headers["Retry-After"]) >= 1 for answer in refused)
    assert len(refused) < 48 and {answer.status_code for answer in answers} == {200, 429}


def test_products_are_listed_and_taught_behind_a_token(detector, photograph, tmp_path):
    folder = shutil.copytree(detector, tmp_path / "detector")
    paths = [Path(path) for path in write_screws(tmp_path, photograph)]
    files = [("files", (path.name, path.read_bytes())) for path in paths[:3]]
    with serving(Settings(str(folder), token="open sesame")) as address:
        teach = f"{address}/products/screw"
        assert httpx.post(teach, files=files).status_code == 401
        assert httpx.post(teach, files=files, headers={"Authorization": "Bearer sesame"}).status_code == 401
        broken = httpx.post(teach, files=[*files, ("files", ("x.png", b"x"))], headers=TOKEN, timeout=60)
        assert broken.status_code == 400 and "x.png" in broken.json()["detail"]
        assert [each["name"] for each in httpx.get(f"{address}/products").json()["products"]] == ["bolt", "nut"]

        taught = httpx.post(teach, files=files, headers=TOKEN, timeout=60)
        assert taught.status_code == 201 and taught.json()["photographs"] == 3
        assert "1 in 4 can be promised" in taught.json()["promise"]
        assert ask(address, paths[3:], product="screw").json()["results"][0]["label"] == "normal"
        again = httpx.post(teach, files=files, headers=TOKEN, timeout=60)
        assert again.status_code == 409 and "exists" in again.json()["detail"]
    with serving(Settings(str(folder))) as address:  # which was saved, and without a token refuses
        assert [each["name"] for each in httpx.get(f"{address}/products").json()["products"]] == [
            "bolt",
            "nut",
            "screw",
        ]
        assert httpx.post(f"{address}/products/pin", files=files, headers=TOKEN).status_code == 403


def test_a_broken_detector_never_says_normal(detector, photographs):
    model, processor = load_judge(str(detector))
    for weight in model.parameters():
        weight.data.fill_(torch.nan)
    judge = Judge(model, processor, Figures())
    answers = [future.result() for future in judge.submit([("a.png", photographs[0].read_bytes())], "bolt")]
    judge.close()
    assert answers[0].error and answers[0].label is None and answers[0].score is None


def test_what_one_photograph_breaks_is_not_the_others_error(detector, photographs):
    """A product that was forgotten while its photograph waited ends the batch, and that photograph alone is an error."""
    judge = Judge(*load_judge(str(detector)), Figures())
    named = [judge.submit([(path.name, path.read_bytes())], product)[0] for path, product in
             zip(photographs[:3], ["bolt", "forgotten", "nut"], strict=True)]  # fmt: skip
    answers = [future.result() for future in named]
    judge.close()
    assert [answer.error is None for answer in answers] == [True, False, True]
    assert "forgotten" in answers[1].error and answers[1].label is None
    with pytest.raises(Closed):
        judge.submit([("a.png", b"")], None)


def test_photographs_wait_all_or_none(detector):
    judge = Judge(*load_judge(str(detector)), Figures(), limit=2)
    with pytest.raises(QueueFull):
        judge.submit(3 * [("a.png", b"")], None)
    assert [future.result().label for future in judge.submit(2 * [("a.png", b"")], None)] == [None, None]
    judge.close()


def test_a_false_alarm_is_learned_and_taken_back(detector, photographs, tmp_path):
    folder = shutil.copytree(detector, tmp_path / "detector")
    chosen = Settings(str(folder), token="open sesame", output=tmp_path / "out")
    with serving(chosen) as address:
        row = ask(address, photographs[2:3], product="bolt").json()["results"][0]

        def say(id: str, verdict: str, **headers: str) -> httpx.Response:
            return httpx.post(f"{address}/feedback", json={"id": id, "verdict": verdict}, headers=headers, timeout=60)

        assert row["label"] == "anomalous" and say(row["id"], "good").status_code == 401
        learned = say(row["id"], "good", **TOKEN)
        assert learned.status_code == 200 and learned.json()["learned"], learned.text
        assert ask(address, photographs[2:3], product="bolt").json()["results"][0]["label"] == "normal"
        assert say(row["id"], "undo", **TOKEN).json()["learned"]
        assert ask(address, photographs[2:3], product="bolt").json()["results"][0]["score"] == row["score"]
        assert say("0" * 16, "good", **TOKEN).status_code == 404
        assert say(row["id"], "undo", **TOKEN).status_code == 409


# --- The interface ---


def test_the_interface_is_as_it_describes_itself(address):
    """Requests of all kinds, right and wrong, get answers of the kind that /openapi.json says, and no failure."""
    most = os.environ.get("ANOPLE_API_EXAMPLES")
    kinds = {"max_examples": int(most or 6), "derandomize": not most, "deadline": None, "database": None}
    for found in schemathesis.openapi.from_url(f"{address}/openapi.json").get_all_operations():

        @given(case=found.ok().as_strategy())
        @settings(**kinds, suppress_health_check=list(HealthCheck))
        def ask_anything(case):
            # good photographs are not told by their schema
            left_out = [positive_data_acceptance] if case.path == "/products/{name}" else []
            case.call_and_validate(headers=TOKEN, excluded_checks=left_out)

        ask_anything()


def test_the_page_of_the_interface_asks_no_other_server(address):
    page = httpx.get(address, follow_redirects=True).text
    assert "POST /predict" in page and "//" not in page.replace("<!doctype html>", "") and "<script" not in page


# --- The end ---


def test_at_sigterm_what_is_in_hand_is_answered(detector, photographs, tmp_path):
    command = [sys.executable, "-m", "modeling_anople.cli.__main__", "serve", str(detector), "--port", "0"]
    log = tmp_path / "log"
    with log.open("w") as file:
        server = subprocess.Popen([*command, "--batch_size", "1"], stderr=file)
    try:
        while "Serving bolt, nut at http://" not in log.read_text():
            assert server.poll() is None, log.read_text()
            time.sleep(0.05)
        address = log.read_text().split(" at ")[1].split("/docs")[0]
        with ThreadPoolExecutor(1) as pool:
            asked = pool.submit(ask, address, 5 * photographs)
            while "anople_waiting_photographs 0.0" in httpx.get(f"{address}/metrics").text and not asked.done():
                time.sleep(0.002)
            in_hand = not asked.done()
            server.send_signal(signal.SIGTERM)
            assert len(asked.result().json()["results"]) == 45 and in_hand
        assert server.wait(20) == 0 and "all that was asked is answered" in log.read_text()
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{address}/healthz")
    finally:
        server.kill()
        server.wait()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--port", "70000"], "port must lie within 0 and 65535"),
        (["--host", "256.1.1.1"], "--host 256.1.1.1 --port 8000 cannot be had"),
        (["--output", "taken"], "this command did not write it"),
    ],
)
def test_what_cannot_be_is_one_line(detector, options, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "results.jsonl").write_text("mine\n")
    assert main(["serve", str(detector), *options]) == 2
    errors = capsys.readouterr().err
    assert said in errors and errors.count("\n") == 1

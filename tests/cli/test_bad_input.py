"""
The program on bad input: whatever is given, it ends soon, in one line that says why, or in a row with the error.

Each case is a command line; words in braces are places that the fixture `places` lays out.
"""

import io
import json
import os
import re
import shutil
import signal
import socket
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from modeling_anople.cli import main

from ..detectors import write_detector


SECONDS = 5
REFUSED, ROW = 2, 1


@pytest.fixture(scope="module")
def places(tmp_path_factory, small_clip_folder, photograph) -> dict[str, Path]:
    """Lay out a detector, a photograph, a small data set, and everything that is none of these."""
    root = tmp_path_factory.mktemp("bad")
    found = {"D": write_detector(root / "detector", small_clip_folder, photograph), "CLIP": small_clip_folder}

    def put(name: str, content: bytes | str = b"") -> None:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        found[name] = path

    photograph(0).save(root / "good.png")
    photograph(1).save(root / "other.png")
    png = (root / "good.png").read_bytes()
    for name in ("good.png", "other.png"):
        found[name] = root / name
    for split, defect in (("train", "good"), ("test", "good"), ("test", "scratch")):
        folder = root / "data/bolt" / split / defect
        folder.mkdir(parents=True)
        for number in range(2):
            photograph(number + len(defect)).save(folder / f"{number}.png")
    found["data"] = root / "data"
    # what is no photograph
    put("empty.png")
    put("text.png", "no picture")
    put("cut.png", png[: len(png) // 2])
    put("gif.png", b"GIF89a" + bytes(20))
    put("zeros.jpg", bytes(1000))
    put("bomb.png", _with_size(png, 60_000, 60_000))
    put("long.png", _with_size(png, 2**31 - 1, 1))
    put("zip.png", _zip_of({"a": b"a"}))
    put("table.png", "a,b\n1,2\n")
    put("a.svg", "<svg/>")
    put("x.npz", _zip_of({"a.npy": b"\x93NUMPY"})[:40])
    put("mask.csv", "0,1\n1,0\n")
    put("mask.json", '{"mask": [[0, 1]]}')
    Image.fromarray(np.full((40, 48), np.nan, np.float32)).save(root / "nan.tif")
    Image.fromarray(np.full((40, 48), 1e30, np.float32)).save(root / "bright.tif")
    Image.new("L", (7, 7), 255).save(root / "small mask.png")
    Image.new("L", (48, 40), 255).save(root / "all.png")
    Image.new("L", (48, 40), 0).save(root / "none.png")
    (root / "folder.png").mkdir()
    (root / "bare").mkdir()
    os.mkfifo(root / "pipe.png")
    os.mkfifo(root / "pipe.parquet")
    (root / "loop.png").symlink_to("loop.png")
    (root / "loop.tar").symlink_to("loop.tar")
    (root / "gone.png").symlink_to("nowhere.png")
    (root / "zero.png").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as server:
        here = os.getcwd()
        os.chdir(root)  # a socket's name may have 100 characters
        server.bind("socket.png")
        os.chdir(here)
    names = (
        "nan.tif,bright.tif,small mask.png,all.png,none.png,folder.png,bare,pipe.png,pipe.parquet,loop.png,loop.tar"
    )
    found |= {name: root / name for name in [*names.split(","), "gone.png", "zero.png", "socket.png"]}
    undecodable = root / os.fsdecode(b"u\xff")
    undecodable.mkdir()
    (undecodable / os.fsdecode(b"b\xfclt.png")).write_bytes(b"none")
    found["undecodable"] = undecodable
    # shards
    put("cut.tar", _tar_of({"a.png": png})[:700])
    put("text.tar", "no archive")
    put("empty.tar")
    put("text.parquet", "no table")
    pq.write_table(pa.table({"a": [1]}), root / "numbers.parquet")
    pq.write_table(pa.table({"image": [{"bytes": png, "path": "a.png"}]}), root / "plain.parquet")
    found |= {name: root / name for name in ("numbers.parquet", "plain.parquet")}
    # detectors that are none
    for name, file, change in (
        ("many layers", "config.json", {"clip_config.vision_config.num_hidden_layers": 10**6}),
        ("wide", "config.json", {"clip_config.text_config.hidden_size": 10**7}),
        ("large side", "config.json", {"clip_config.vision_config.image_size": 10**6}),
        ("negative chunks", "config.json", {"memory_chunk_size": -5}),
        ("path name", "config.json", {"products.0.name": "../../x"}),
        ("number name", "config.json", {"products.0.name": 7}),
        ("no list", "config.json", {"products": 7}),
        ("large processor", "processor_config.json", {"image_processor.size": {"height": 10**6, "width": 10**6}}),
        ("no white", "processor_config.json", {"white_value": float("nan")}),
        ("deep", "config.json", {"fit": json.loads("[" * 400 + "]" * 400)}),
    ):
        found[name] = _changed(found["D"], root / name, file, change)
    for name, file, content in (
        ("list config", "config.json", b"[]"),
        ("binary config", "config.json", b"\xff\xfe\x00"),
        ("cut weights", "model.safetensors", (found["D"] / "model.safetensors").read_bytes()[:999]),
        ("huge header", "model.safetensors", struct.pack("<Q", 2**62)),
    ):
        found[name] = _copy(found["D"], root / name)
        (found[name] / file).write_bytes(content)
    found["pipe weights"] = _copy(found["D"], root / "pipe weights")
    (found["pipe weights"] / "model.safetensors").unlink()
    os.mkfifo(found["pipe weights"] / "model.safetensors")
    found["endless tokenizer"] = _copy(found["D"], root / "endless tokenizer")
    (found["endless tokenizer"] / "tokenizer.json").unlink()
    (found["endless tokenizer"] / "tokenizer.json").symlink_to("/dev/zero")
    found["CLIP deep"] = _changed(
        small_clip_folder, root / "CLIP deep", "config.json", {"vision_config.num_hidden_layers": 10**6}
    )
    # data that are none
    put("bad csv/metadata.csv", b"file_name\n\xff\xfe,\x00")
    put("bad jsonl/metadata.jsonl", "{")
    put("list jsonl/metadata.jsonl", "[1]\n7\n")
    put("bad parquet/train.parquet", "no table")
    put("lost jsonl/metadata.jsonl", '{"file_name": "gone.png"}\n')
    put("text data/bolt/train/good/0.png", "no picture")
    for name in ("bad csv", "bad jsonl", "list jsonl", "bad parquet", "lost jsonl", "text data"):
        found[name] = root / name
    (root / "pipe data/bolt/train/good").mkdir(parents=True)
    os.mkfifo(root / "pipe data/bolt/train/good/0.png")
    found["pipe data"] = root / "pipe data"
    found["T"] = root  # for outputs
    found["new"] = root / "new"
    return found


def _with_size(png: bytes, width: int, height: int) -> bytes:
    header = b"IHDR" + struct.pack(">II", width, height) + png[24:29]
    return png[:12] + header + struct.pack(">I", zlib.crc32(header)) + png[33:]


def _zip_of(files: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return file.getvalue()


def _tar_of(files: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return file.getvalue()


def _copy(source: Path, target: Path) -> Path:
    return shutil.copytree(source, target)


def _changed(source: Path, target: Path, file: str, change: dict[str, object]) -> Path:
    path = _copy(source, target) / file
    content = json.loads(path.read_text(encoding="utf-8"))
    for place, value in change.items():
        *way, last = place.split(".")
        part = content
        for step in way:
            part = part[int(step)] if step.isdigit() else part.setdefault(step, {})
        part[last] = value
    path.write_text(json.dumps(content), encoding="utf-8")
    return target


PREDICT = [
    *(f"predict {{D}} {{{name}}} --class bolt" for name in (
        *("empty.png", "text.png", "cut.png", "gif.png", "zeros.jpg", "bomb.png", "long.png", "zip.png", "table.png"),
        *("a.svg", "x.npz", "nan.tif", "bright.tif", "pipe.png", "socket.png", "loop.png", "gone.png", "zero.png"),
        *("mask.csv", "undecodable", "pipe.parquet", "loop.tar"),
    )),
    "predict {D} /dev/null",
    "predict {D} /dev/zero",
    "predict {D} {T}/nowhere.png",
    "predict {D} {good.png}/below.png",
    "predict {D} {T}/" + "n" * 300 + ".png",
    *(f"predict {{D}} {{good.png}} --ignore_mask {{{name}}}" for name in (
        *("mask.csv", "mask.json", "x.npz", "pipe.png", "zero.png", "loop.png", "folder.png", "small mask.png", "all.png"),
        *("nan.tif", "bomb.png"),
    )),
]  # fmt: skip
WRONG = [
    # paths
    "predict {D} ''",
    "predict '' {good.png}",
    "predict {D} {good.png} --csv ''",
    "predict {D} {good.png} --output ''",
    "predict {D} {bare}",
    "predict {D} {folder.png}",
    "predict {D} {T}/a\0b.png --class screw",
    "predict {good.png} {good.png}",
    "predict {loop.png} {good.png}",
    "predict /dev/null {good.png}",
    "predict {pipe.png} {good.png}",
    "predict {bare} {good.png}",
    "predict {CLIP} {good.png}",
    "predict a/b/c/d {good.png}",
    "predict '\x1b[31m' {good.png}",
    "predict {D} http://x/y.png",
    "predict {D} {good.png} file:///etc/passwd",
    *(f"{command} {{{name}}} {more}" for name in (
        *("many layers", "wide", "large side", "negative chunks", "path name", "number name", "no list", "list config"),
        *("binary config", "cut weights", "huge header", "pipe weights", "endless tokenizer"),
    ) for command, more in (("predict", "{good.png}"), ("products", ""))),
    "predict {large processor} {good.png}",
    "predict {no white} {good.png}",
    # outputs
    "predict {D} {good.png} --csv {good.png}",
    "predict {D} {good.png} --csv {D}/config.json",
    "predict {D} {good.png} --csv {D}/model.safetensors",
    "predict {D} {good.png} --csv {D}/graph.json",
    "predict {D} {good.png} --csv {D}/config.json --overwrite",
    "predict {D} {good.png} --csv {good.png} --overwrite",
    "predict {D} {good.png} --csv {other.png}",
    "predict {D} {good.png} --csv {bare}",
    "predict {D} {good.png} --csv {pipe.png}",
    "predict {D} {good.png} --csv /dev/null",
    "predict {D} {good.png} --csv /dev/full",
    "predict {D} {good.png} --csv {loop.png}",
    "predict {D} {good.png} --csv {good.png}/x.csv",
    "predict {D} {good.png} --csv /proc/x.csv",
    "predict {D} {good.png} --csv {T}/" + "n" * 300,
    "predict {D} {good.png} --output {good.png}",
    "predict {D} {good.png} --output {loop.png}",
    "predict {D} {good.png} --output {good.png}/x",
    "predict {D} {good.png} --output {new} --csv {new}/results.jsonl",
    "evaluate {D} {data} --json {data}/bolt/test/good/0.png",
    "evaluate {D} {data} --csv {data}/bolt/test/good/0.png --overwrite",
    "evaluate {D} {data} --json {D}/config.json",
    "evaluate {D} {data} --json {D}/tokenizer.json --overwrite",
    "evaluate {D} {data} --json {new} --csv {new}",
    "evaluate {D} {data} --json {bare}",
    "evaluate {D} {data} --gallery {good.png}",
    "evaluate {D} {data} --gallery {pipe.png}",
    "export {D} {D}",
    "export {D} {good.png}",
    "export {D} {data}",
    "export {D} {pipe.png}",
    "enroll {D} x {good.png} --output {data}",
    "enroll {D} x {good.png} --output {good.png}",
    "enroll {D} x {good.png} --output {CLIP}",
    "enroll {data} x {good.png} --clip {CLIP}",
    "enroll {pipe.png} x {good.png} --clip {CLIP}",
    "enroll {new} x {good.png} --clip {CLIP deep}",
    "enroll {new} x {good.png} --clip {good.png}",
    "forget {D} nut --output {data}",
    "draw {data}",
    "draw {good.png}",
    "draw {pipe.png}",
    "draw {good.png}/x",
    "draw {loop.png}",
    "fit {data} --output_dir {CLIP}",
    "fit {data} --output_dir {good.png}",
    "fit {data} --output_dir {D}",
    # numbers
    *(f"predict {{D}} {{good.png}} {words}" for words in (
        *("--threshold -1", "--threshold 2", "--threshold nan", "--threshold inf", "--threshold 1e400"),
        *("--batch_size 0", "--batch_size -5", "--batch_size 1000000000", "--batch_size 999999999999999999999999"),
        *("--tiling 100000,100000", "--tiling 0,1", "--tiling -1,-1", "--tiling 1,2,3", "--tiling x", "--tiling nan,1"),
        *("--device meta", "--device cuda:99", "--device abacus", "--device hpu", "--device ''", "--device cpu:x"),
        *("--class screw", "--class ''", "--class '\x1b[31m'", "--class bolt\n", "--class_column x", "--image_column x"),

        *("--revision main", "--unknown 1", "--csv=", "--ignore_mask ''"),
    )),
    *(f"evaluate {{D}} {{data}} {words}" for words in (
        *("--evaluation_size 0", "--evaluation_size -3", "--evaluation_size 1000000", "--batch_size 0"),
        *("--classes screw", "--device meta", "--json ''", "--revision x"),
    )),
    *(f"enroll {{D}} {name} {{good.png}} --output {{new}}" for name in (
        *("bolt", "''", "' '", "'x '", "'x\n'", "'\x1b[31mx'", "x\u200b", "b\u043elt", "\uff42olt", "../../x", "a/b", ".."),
        *("\ud800", "'unknown product'", "\u3164", "x" * 300),
    )),
    *(f"enroll {{D}} x {{good.png}} --output {{new}} {words}" for words in (
        *("--max_false_alarm_rate 1e-300", "--max_false_alarm_rate 0", "--max_false_alarm_rate 0.5"),
        *("--max_false_alarm_rate nan", "--max_false_alarm_rate -1", "--batch_size 0", "--batch_size -1"),
        *("--tiling 100000,100000", "--ignore_mask {pipe.png}", "--ignore_mask {all.png}", "--ignore_mask {x.npz}"),
    )),
    *(f"enroll {{D}} x {{{name}}} --output {{new}}" for name in (
        *("pipe.png", "zero.png", "loop.png", "nan.tif", "bomb.png", "empty.png", "bare", "undecodable", "text.tar"),
    )),
    "enroll {D} x {good.png} {good.png} --output {new}",
    "add_normals {D} screw {good.png} --output {new}",
    "add_normals {D} bolt {nan.tif} --output {new}",
    "calibrate {D} bolt --output {new}",
    "calibrate {D} bolt --output {new} --max_false_alarm_rate 1e-300",
    "calibrate {D} '' --output {new} --max_false_alarm_rate 0.1",
    "ignore {D} bolt {pipe.png} --output {new}",
    "ignore {D} bolt {none.png} --output {new}",
    "ignore {D} bolt {all.png} --output {new}",
    "ignore {D} bolt {mask.json} --output {new}",
    "ignore {D} bolt '' --output {new}",
    "forget {D} screw --output {new}",
    *(f"draw {{new}} {words}" for words in (
        *("--size 1000000", "--size 1", "--size -1", "--train -1", "--defective 1000000000", "--seed -1"),
        *("--seed 99999999999999999999", "--classes screw", "--classes ''"),
    )),
    *(f"fit {{data}} --output_dir {{new}} --clip {{CLIP}} {words}" for words in (
        *("--shots 0", "--max_steps -1", "--batch_size 0", "--seed -1", "--warmup_ratio 2", "--weight_decay nan"),
        *("--max_false_alarm_rate 1e-300", "--smoothing -1", "--memory_chunk_size -5", "--unknown_product_rate 2"),
        *("--prompt_depth 1001", "--prompt_length 0", "--temperature inf", "--tiling 100000,100000", "--classes screw"),
        *("--num_workers 100000", "--white_value 0", "--view_pattern (", "--ignore_masks {pipe.png}", "--memory_limit -1"),
        *("--decoder_widths 8", "--decoder_widths 0 8", "--memory_layers 99", "--gradient_accumulation_steps 3"),
        *("--log_steps 0", "--alignment_warmup -1", "--focal_gamma nan", "--prompt_learning_rate -1"),
    )),
    *(f"fit {{{name}}} --output_dir {{new}} --clip {{CLIP}} --max_steps 0" for name in (
        *("bad csv", "bad jsonl", "list jsonl", "bad parquet", "lost jsonl", "text data", "pipe data", "good.png", "bare"),
        *("pipe.png", "loop.png", "numbers.parquet", "plain.parquet"),
    )),
    "fit {data} --output_dir {new} --clip {CLIP deep}",
    "fit {data} --output_dir {new} --clip {good.png}",
    "fit '' --output_dir {new}",
    *(f"evaluate {{D}} {{{name}}}" for name in (
        *("bad csv", "bad jsonl", "list jsonl", "bad parquet", "pipe data", "good.png", "bare", "loop.png"),
        *("numbers.parquet", "text.parquet"),
    )),
    "evaluate {D} visa:{bare}",
    "data check mvtec {bare}",
    "data check screws {bare}",
    "data check mvtec {good.png}",
    "data check mvtec ''",
    "data paint",
    # shards
    *(f"predict {{D}} {{{name}}} --output {{new}} --class bolt" for name in (
        *("cut.tar", "text.tar", "empty.tar", "text.parquet", "numbers.parquet"),
    )),
    "predict {D} {plain.parquet}",
    "predict {D} {plain.parquet} --output {good.png} --class bolt",
    "predict {D} {plain.parquet} --output {new} --class screw",
    "predict {D} {plain.parquet} --output {new} --class_column nothing",
    "predict {D} {plain.parquet} {good.png} --output {new}",
    "predict {D} {plain.parquet} --output {new} --csv x.csv",
    "predict {D} hf://datasets --output {new}",
    # words
    "paint",
    "'\x1b[31m'",
    "predict {D} {good.png} --explai",
    "doctor {D} {good.png}",
    "doctor {good.png}",
    "doctor {pipe.png}",
    "doctor {T}/nowhere",
    "products {D} {good.png}",
    "products {good.png}",
    "products {T}/nowhere",
    "products ''",
]  # fmt: skip


@pytest.fixture
def in_time() -> Iterator[None]:
    """Fail where a command hangs."""

    def fail(*_: object) -> None:
        pytest.fail(f"it hung for {SECONDS} seconds")

    before = signal.signal(signal.SIGALRM, fail)
    signal.alarm(SECONDS)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="module", autouse=True)
def imported() -> None:
    """Imports are not counted."""
    import modeling_anople.data.drawn_products
    import modeling_anople.data.shards
    import modeling_anople.evaluation
    import modeling_anople.export
    import modeling_anople.training  # noqa: F401


def words_of(line: str, places: dict[str, Path]) -> list[str]:
    """Split a line at blanks outside of quotes; a newline or a control code is part of its word."""
    words, word, quoted, begun = [], "", False, False
    for letter in line:
        if letter == "'":
            quoted, begun = not quoted, True
        elif letter == " " and not quoted and "{" not in word.rpartition("}")[2]:
            words += [word] if word or begun else []
            word, begun = "", False
        else:
            word += letter
    words += [word] if word or begun else []
    return [re.sub(r"\{([^}]+)\}", lambda found: str(places[found[1]]), word) for word in words]


def run(line: str, places: dict[str, Path], capsys: pytest.CaptureFixture) -> tuple[int, str, str]:
    try:
        code = main(words_of(line, places))
    except SystemExit as end:  # of argparse, which says the usage before
        code = end.code
    output = capsys.readouterr()
    return code, output.out, output.err


@pytest.mark.parametrize("line", PREDICT, ids=ascii)
def test_what_cannot_be_judged_is_a_row_with_its_error(line, places, capsys, in_time):
    before = contents(places)
    code, said, complained = run(line, places, capsys)
    rows = [json.loads(row) for row in said.splitlines()]
    assert code == ROW and len(rows) == 1 and rows[0]["error"] and rows[0]["score"] is None
    assert rows[0]["error"].count("\n") == 0 and "Traceback" not in complained
    assert contents(places) == before


@pytest.mark.parametrize("line", WRONG, ids=ascii)
def test_what_cannot_be_done_is_refused_in_one_line(line, places, capsys, in_time, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = contents(places)
    code, said, complained = run(line, places, capsys)
    assert code == REFUSED and "Traceback" not in complained
    [last] = [row for row in complained.splitlines() if re.match(r"anople( \w+)*( NAME ROOT)?: .", row)]
    assert last.isprintable() and not re.search(r"object has no attribute|Errno 17", last) or "list" in line, (
        complained
    )
    assert not said or line.startswith("predict")  # shards before a damaged one have been answered
    assert contents(places) == before and not list(tmp_path.iterdir())
    shutil.rmtree(places["new"], ignore_errors=True)


def contents(places: dict[str, Path]) -> dict[str, bytes | float]:
    """Read what a command could have changed."""
    files = [path for name in ("D", "CLIP", "data") for path in places[name].rglob("*") if path.is_file()]
    files += [places["good.png"], places["other.png"]]
    return {str(path): path.stat().st_mtime_ns for path in files} | {str(path): path.stat().st_size for path in files}


def test_the_list_is_long():
    assert len({*PREDICT, *WRONG}) >= 200

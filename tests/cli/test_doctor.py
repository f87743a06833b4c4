"""`anople doctor`: what is missing is named with its remedy, and nothing is changed."""

import importlib.metadata
import json
import shutil
import tomllib
from pathlib import Path

import pytest

from modeling_anople.calibration_anople import FrameLimits
from modeling_anople.cli import doctor as program
from modeling_anople.cli import main
from modeling_anople.cli.doctor import JOURNEYS, NO_JOURNEYS, SUMS
from modeling_anople.runtime.loading import STATE_FILE, load_detector

from ..detectors import detector_of, set_by_costs
from ..fitting import REPOSITORY


REQUIRES = ["numpy>=1", "pillow>=1", 'no-such-package>=2; extra == "train"', 'numpy>=99; extra == "export"']
REQUIRES += [f'{name}; extra == "{extra}"' for extra in JOURNEYS for name in ("pillow", "numpy")]
REQUIRES += ['anople[train]; extra == "demo"']


def write_metadata(folder: Path, requires: list[str], extras: list[str]) -> None:
    """Write what importlib.metadata reads of an installed package."""
    info = folder / "anople-9.9.9.dist-info"
    info.mkdir(parents=True)
    lines = ["Metadata-Version: 2.1", "Name: anople", "Version: 9.9.9"]
    lines += [f"Provides-Extra: {extra}" for extra in extras] + [f"Requires-Dist: {each}" for each in requires]
    (info / "METADATA").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (info / "RECORD").write_text("", encoding="utf-8")


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Have it installed with all that its journeys want."""
    write_metadata(tmp_path / "packages", [each for each in REQUIRES if ";" not in each], list(JOURNEYS))
    monkeypatch.syspath_prepend(tmp_path / "packages")


def found(capsys, *arguments: object, code: int) -> dict[str, dict]:
    """Run the command; return what it says of each thing."""
    assert main(["doctor", *map(str, arguments), "--json"]) == code
    answer = json.loads(capsys.readouterr().out)
    assert answer["fine"] == (code == 0)
    return {each["name"]: each for each in answer["findings"]}


def test_what_each_journey_lacks_is_read_from_the_package_and_named_with_the_command(capsys, tmp_path, monkeypatch):
    write_metadata(tmp_path / "packages", REQUIRES, [extra for extra in JOURNEYS if extra != "hub"])
    monkeypatch.syspath_prepend(tmp_path / "packages")
    seen = found(capsys, code=0)  # who wants no demo needs no gradio
    assert (seen["anople"]["said"].split(",")[0], seen["numpy"]["state"]) == ("9.9.9", "fine")
    states = {name: each["state"] for name, each in seen.items() if each["part"] == "journey"}
    lacking = {"anople fit", "anople demo", "anople export", "anople push"}
    assert states == {name: "missing" if name in lacking else "fine" for name in JOURNEYS.values()}
    assert seen["anople fit"]["said"] == "no-such-package is not installed"
    assert seen["anople fit"]["remedy"] == "pip install 'anople[train]'"
    assert seen["anople demo"]["said"] == "no-such-package is not installed"  # by the extra that it names
    version = importlib.metadata.version("numpy")
    assert seen["anople export"]["said"] == f"numpy {version} is there, >=99 is wanted"
    assert "older than this program and has no extra hub" in seen["anople push"]["said"]
    assert main(["doctor"]) == 0
    table = capsys.readouterr().out
    assert "missing  anople fit " in table and "-> pip install 'anople[train]'" in table
    assert table.splitlines()[-2:] == [
        "Nothing is to be mended.",
        f"4 of {len(JOURNEYS)} journeys lack packages: install those that you want.",
    ]


def test_every_extra_is_a_journey_or_none():
    project = REPOSITORY / "pyproject.toml"
    if not project.exists():
        pytest.skip("installed without its repository")
    extras = tomllib.loads(project.read_text("utf-8"))["project"]["optional-dependencies"]
    assert set(extras) == {*JOURNEYS, *NO_JOURNEYS}


def test_a_sound_detector_is_fine_and_stays_as_it_is(capsys, fitted, installed):
    before = {path: path.read_bytes() for path in fitted.iterdir()}
    seen = found(capsys, fitted, code=0)
    assert seen["loads"]["said"].startswith("2 products, content ")
    assert seen["bolt"]["state"] == "note" and "line at raw score 0." in seen["bolt"]["said"]
    assert seen["bolt"]["remedy"] == f"anople calibrate {fitted} bolt MORE_GOOD_PHOTOGRAPHS"
    assert seen["mini"]["state"] == "fine" and seen["Hub"]["said"] == "not asked: HF_HUB_OFFLINE is set"
    assert {path: path.read_bytes() for path in fitted.iterdir()} == before


def test_a_line_by_costs_is_not_to_be_lost_by_what_is_advised(capsys, tmp_path, fitted, installed):
    detector = detector_of(*load_detector(str(fitted)))
    set_by_costs(detector.model, "nut")
    detector.save_pretrained(tmp_path / "detector")
    remedy = found(capsys, tmp_path / "detector", code=0)["nut"]["remedy"]
    assert remedy.endswith(
        " nut MORE_GOOD_PHOTOGRAPHS --defects THE_KNOWN_DEFECTS --miss_cost 50 --false_alarm_cost 2"
    )


def test_what_lies_in_a_folder_or_is_of_an_earlier_version_is_to_be_mended(capsys, tmp_path, fitted, installed):
    folder, (model, processor) = tmp_path / "detector", load_detector(str(fitted))
    bolt, nut = (product.record for product in model.products)
    bolt.frame, nut.threshold = FrameLimits(3, [0.1], [0.2], [0.1], [0.0]), None
    detector_of(model, processor).save_pretrained(folder)
    shutil.copy(folder / "model.safetensors", folder / STATE_FILE)
    (folder / f"{STATE_FILE}.part").write_bytes(b"half a state")
    (folder / ".unfinished-1").mkdir()
    seen = found(capsys, folder, code=1)
    assert seen["leftovers"]["said"] == f".unfinished-1, {STATE_FILE}.part"
    assert seen["nut"]["state"] == "mend" and seen["nut"]["remedy"].startswith(f"anople add_normals {folder} nut ")
    assert seen["bolt"]["state"] == "mend" and "dark or blurred" in seen["bolt"]["said"]
    assert seen["unfinished fit"]["state"] == "mend" and "--resume" in seen["unfinished fit"]["remedy"]


@pytest.mark.parametrize("damage", ["hash", "weights", "nothing"])
def test_a_detector_that_does_not_load_is_to_be_mended_and_none_at_all_is_refused(
    capsys, tmp_path, fitted, installed, damage
):
    if damage == "nothing":
        assert main(["doctor", str(tmp_path / "gone")]) == 2
        assert "gone is no folder, and as a Hub id it" in capsys.readouterr().err
        return
    folder = shutil.copytree(fitted, tmp_path / "detector")
    weights = (folder / "model.safetensors").read_bytes()
    changed = weights[:-1] + bytes([weights[-1] ^ 1]) if damage == "hash" else weights[:1000]
    (folder / "model.safetensors").write_bytes(changed)
    seen = found(capsys, folder, code=1)
    assert seen["loads"]["state"] == "mend" and "model.safetensors" in seen["loads"]["said"]
    assert "damaged" in seen["loads"]["said"] and "opy the folder again" in seen["loads"]["said"]


def test_a_file_of_the_embedded_clip_that_was_changed_is_found(tmp_path, monkeypatch):
    """Its hashes are written by `sha256sum *.json model.safetensors > SHA256SUMS` in its folder."""
    package = REPOSITORY / "modeling_anople"
    sums = (package / "mini_clip" / SUMS).read_text("utf-8").splitlines()
    files = {path.name for path in (package / "mini_clip").iterdir() if path.suffix in (".json", ".safetensors")}
    assert {line.split("  ")[1] for line in sums} == files
    shutil.copytree(package / "mini_clip", tmp_path / "mini_clip")
    (tmp_path / "cli").mkdir()
    monkeypatch.setattr(program, "__file__", str(tmp_path / "cli/doctor.py"))
    assert program._embedded_clip().state == "fine"
    with (tmp_path / "mini_clip/tokenizer.json").open("a", encoding="utf-8") as file:
        file.write(" ")
    assert program._embedded_clip().said == "the embedded CLIP is damaged: tokenizer.json"

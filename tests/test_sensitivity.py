"""What drawn defects a threshold finds, and what good photographs bear: measured on a fitted detector."""

import importlib
import json
import shutil
from collections import Counter
from dataclasses import asdict, replace

import numpy as np
import pytest
from PIL import Image, ImageFont

from modeling_anople.calibration_anople import fit_threshold
from modeling_anople.cli import main
from modeling_anople.cli.sensitivity import _sources
from modeling_anople.data.drawn_products import SIZED_DEFECTS
from modeling_anople.evaluation.sensitivity import (
    CHANGES,
    CONTRASTS,
    KNOWN,
    SIZES,
    Count,
    SensitivityReport,
    choose_photographs,
    draw_sensitivity,
    measure_sensitivity,
)
from modeling_anople.pipeline_anople import Prediction
from modeling_anople.product_store_anople import ProductRecord, Sensitivity
from modeling_anople.runtime.heat_maps import FONTS
from modeling_anople.runtime.loading import detector_sha256, load_config, load_detector
from modeling_anople.saving_anople import LOCK_FILE, content_sha256

from .detectors import detector_of, normals_of, write_detector


DARKER = "darker, stops"


@pytest.fixture(scope="module")
def sensitive(tmp_path_factory, small_clip_folder, photograph):
    """A detector that its memory alone judges, and a good photograph of its nut that it does not know."""
    folder = tmp_path_factory.mktemp("sensitive") / "detector"
    write_detector(folder, small_clip_folder, photograph, map_fusion="memory", image_fusion="map")
    return *load_detector(str(folder)), normals_of(photograph, 1, 4)[3:]


@pytest.fixture(scope="module")
def report(sensitive) -> SensitivityReport:
    model, processor, fresh = sensitive
    chosen = choose_photographs(model, processor, "nut", fresh, most=12)
    return measure_sensitivity(model, processor, "nut", chosen, progress=False)


def test_every_kind_size_and_contrast_is_counted_on_photographs_called_normal(sensitive, report):
    assert report.plain.cases == 1 and len(SIZES) >= 6 and len(CONTRASTS) >= 3
    carrying = report.plain.cases - report.plain.flagged
    assert report.defects.keys() == {(k, s, c) for k in SIZED_DEFECTS for s in SIZES for c in CONTRASTS}
    assert all(count.flagged <= count.cases <= carrying for count in report.defects.values())
    assert all(not report.defects[kind, SIZES[0], 0.05].cases for kind in SIZED_DEFECTS)  # half a pixel is none
    assert sum(count.cases for count in report.defects.values()) > 10
    assert all(count.cases == 1 for count in report.changes.values())
    large, faint = (
        sum(report.defects[kind, size, c].flagged for kind in SIZED_DEFECTS) for size, c in ((0.32, 0.3), (0.08, 0.05))
    )
    assert large > faint  # what is large and strong is found rather


def test_the_command_counts_the_same_keeps_it_and_shows_it(sensitive, report, photograph, tmp_path, capsys, caplog):
    model, _, [fresh] = sensitive
    folder, pictures = shutil.copytree(model.name_or_path, tmp_path / "detector"), tmp_path / "data/nut/train/good"
    pictures.mkdir(parents=True)
    fresh.save(pictures / "fresh.png")
    normals_of(photograph, 1)[0].save(pictures / "known.png")
    (pictures / "torn.png").write_bytes(b"no picture")
    unknown = tmp_path / "data/gasket/train/good"
    unknown.mkdir(parents=True)
    fresh.save(unknown / "a.png")
    assert set(_sources([str(tmp_path / "data")], None, ["bolt", "nut"])) == {"nut"}
    assert "does not know gasket, which is passed over" in caplog.text
    output = tmp_path / "out"
    output.mkdir()
    words = [
        "sensitivity",
        str(folder),
        str(tmp_path / "data"),
        "--class",
        "nut",
        "--output",
        str(output),
        "--overwrite",
    ]
    for name in ("01-bolt.png", "02-mine.png"):  # an earlier list names the first of them
        fresh.save(output / name)
    earlier = {"detector_sha256": "0", "products": {"bolt": {"picture": "01-bolt.png"}}, "refused": {}}
    (output / "sensitivity.json").write_text(json.dumps(earlier))
    assert main(words) == 1
    assert {path.name for path in output.iterdir()} == {"sensitivity.json", "01-nut.png", "02-mine.png"}
    said = capsys.readouterr()
    assert (
        "torn.png is left out" in caplog.text
        and "nut: left out, of 3 photographs, 1, each of which is known" in caplog.text
    )
    assert f"| scratch       | {report.cell('scratch', 0.05)}" in said.out
    found = json.loads((output / "sensitivity.json").read_text(encoding="utf-8"))["products"]["nut"]
    for name in ("defects", "changes", "unchanged", "bears", "area"):  # the same seed draws the same
        assert found[name] == json.loads(json.dumps(report.to_dict()[name]))
    assert Image.open(output / found["picture"]).size == draw_sensitivity(report).size
    assert main(["products", str(folder)]) == 0
    assert f"nut: {report.to_record().describe_defects()}"[:90] in capsys.readouterr().out
    [nut] = [each for each in load_config(str(folder)).products if each["name"] == "nut"]
    assert nut["sensitivity"]["photographs"] == 1 and load_detector(str(folder))[0].config.class_names == [
        "bolt",
        "nut",
    ]


def test_a_folder_that_can_keep_nothing_is_said_before_it_is_measured(
    sensitive, photograph, tmp_path, caplog, monkeypatch
):
    model, _, [fresh] = sensitive
    folder, paths = shutil.copytree(model.name_or_path, tmp_path / "detector"), []
    lock = folder / LOCK_FILE
    lock.unlink(missing_ok=True)
    lock.mkdir()  # as good as a folder that cannot be written, for any user
    for number, image in enumerate(
        [fresh, *normals_of(photograph, 1)[:1], *(photograph(60 + each) for each in range(3))]
    ):
        paths.append(str(tmp_path / f"{number}.png"))
        image.save(paths[-1])
    measured = []
    monkeypatch.setattr(
        importlib.import_module("modeling_anople.evaluation.sensitivity"),  # the one that the program imports
        "choose_photographs",
        lambda *args, **options: measured.append(caplog.text) or choose_photographs(*args, **options),
    )
    words = ["sensitivity", str(folder), *paths, "--class", "nut", "--photographs", "1"]
    assert main(words) == 1
    assert "keeps nothing of it" in measured[0] and "make it writable" in measured[0]
    assert "nut: left out, of 5 photographs, 1, each of which is known" in caplog.text


def test_copies_that_cannot_be_judged_are_counted_and_said():
    report, broken = fixed({0.16: 10}), Prediction(None, "Its scores are not finite.")
    report.changes["darker, stops", 0.3] = Count()
    failing = report.defects["scratch", 0.32, 0.05], report.defects["broken", 0.32, 0.05], report.changes[DARKER, 0.3]
    for count in failing:
        count.add(broken)
    said = "1 could not be judged: Its scores are not finite."
    assert report.cell("broken", 0.05) == said and report.failed == {broken.error: 3}
    assert report.cell("scratch", 0.05) == f"from 16 % (16 px; 10 of 10); {said}"
    assert report.bears(DARKER) == (0.2, f"at 0.3: {said}")
    assert failing[0].to_dict()["failed"] == {broken.error: 1} and failing[0].cases == 0


def test_the_picture_is_as_wide_as_two_phones_and_shows_each_kind(report):
    picture = draw_sensitivity(report)
    assert picture.width == 780 and picture.height > 250 * len(SIZED_DEFECTS)
    assert len(picture.getcolors(2**20)) > 200
    if any(map(is_there, FONTS)):  # else letters that Pillow's own font lacks are boxes
        heads = [draw_sensitivity(replace(report, class_name=name)).crop((0, 0, 780, 50)) for name in ("Ш", "Я")]
        assert heads[0] != heads[1]


def is_there(font: str) -> bool:
    try:
        return bool(ImageFont.truetype(font))
    except OSError:
        return False


@pytest.mark.parametrize("change", CHANGES)
def test_changes_grow_with_their_amount_and_keep_the_size(photograph, change):
    image = photograph(3, size=(240, 200))
    amounts, apply = CHANGES[change]
    apart = [
        np.abs(np.asarray(apply(image, amount, True), dtype=float) - np.asarray(image)).mean() for amount in amounts
    ]
    assert apply(image, amounts[0], False).size == image.size
    assert apart[0] < apart[len(apart) // 2] < max(apart) and apart[-1] > 2


def fixed(found: dict[float, int | tuple[int, int]]) -> SensitivityReport:
    """A report in which so many scratches of each size are found, of ten or of the second number, and else none drawn."""
    limit = fit_threshold([0.1, 0.2, 0.15], [0.1] * 3, max_false_alarm_rate=0.05)
    report = SensitivityReport("nut", limit, 0.5, 0, "2026-11-30", pixels=(100, 100))
    report.defects = {(k, s, c): Count() for k in SIZED_DEFECTS for s in SIZES for c in CONTRASTS}
    report.changes = {(name, amount): Count(cases=10) for name, each in CHANGES.items() for amount in each.amounts}
    for size, each in found.items():
        flagged, cases = each if isinstance(each, tuple) else (each, 10)
        report.defects["scratch", size, 0.05] = Count(cases, flagged)
    return report


@pytest.mark.parametrize(
    ("found", "smallest", "words"),
    [
        ({0.08: 2, 0.16: 9, 0.32: 10}, (0.16, 0.32), "from 16 % (16 px; 9 of 10)"),
        ({0.08: 10, 0.16: 8, 0.32: 10}, (0.32, 0.32), "from 32 % (32 px; 10 of 10)"),  # a larger one is missed
        ({0.08: 2, 0.16: 8}, (None, 0.16), "not found up to size 16 % (16 px; at best 80 %)"),
        ({0.32: (3, 3), 0.16: (3, 4)}, (None, 0.16), "not found up to size 16 % (16 px; at best 75 %)"),
        ({0.32: (1, 2), 0.16: 10}, (None, 0.32), "not found up to size 32 % (32 px; at best 100 %)"),
        ({0.32: (2, 2), 0.16: (4, 4)}, (0.16, 0.16), "from 16 % (16 px; 4 of 4)"),  # two tell nothing
        ({0.32: (1, 1), 0.16: (3, 3)}, (None, 0.0), "too few could be drawn (3 of 3)"),
        ({}, (None, 0.0), "cannot be drawn"),
    ],
)
def test_a_size_counts_from_which_on_nine_of_ten_are_found(found, smallest, words):
    report = fixed(found)
    assert report.smallest("scratch", 0.05) == smallest and report.cell("scratch", 0.05) == words


def test_a_change_is_borne_up_to_the_last_step_within_the_budget_or_what_unchanged_ones_have():
    report = fixed({})
    report.changes["darker, stops", 0.3] = Count(10, 2, Counter({"too dark": 1}))
    assert report.bears("darker, stops") == (
        0.2,
        "at 0.3: 1 of 10 by their score and 1 of 10 by the frame check (too dark)",
    )
    report.plain = Count(10, 2)
    assert report.bears("darker, stops") == (2.0, None)
    report.changes["JPEG quality", 95] = Count(10, 9)
    assert report.bears("JPEG quality")[0] is None
    assert "JPEG quality" in report.to_record().breaks and report.to_record().bears["JPEG quality"] is None


def test_photographs_that_the_product_knows_are_left_out(sensitive, photograph, tmp_path):
    model, processor, fresh = sensitive
    known = normals_of(photograph, 1)
    with pytest.raises(ValueError, match="2 are known to it.*Give good photographs that it was not taught"):
        choose_photographs(model, processor, "nut", known[:2], most=12)
    known[0].save(tmp_path / "known.png")
    (tmp_path / "torn.png").write_bytes(b"\x89PNG")
    sources = [str(tmp_path / "known.png"), str(tmp_path / "torn.png"), fresh[0], fresh[0].copy()]
    chosen = choose_photographs(model, processor, "nut", sources, most=12)
    assert len(chosen.sources) == 1 and len(chosen.left_out) == 3
    assert chosen.left_out[sources[0]] == KNOWN and "torn.png" in chosen.left_out[sources[1]]


def test_a_product_whose_good_photographs_are_all_anomalous_is_refused(sensitive, photograph):
    model, processor, _ = sensitive
    strangers = [photograph(900), photograph(901)]
    chosen = choose_photographs(model, processor, "nut", strangers, most=12)
    with pytest.raises(ValueError, match="None of 2 good photographs of 'nut' is called normal as it is"):
        measure_sensitivity(model, processor, "nut", chosen, progress=False)


# --- What the detector keeps ---


def test_a_sensitivity_is_kept_until_anything_changes_that_it_rests_on(make_detector, photograph, report, tmp_path):
    model, processor = make_detector()
    detector = detector_of(model, processor)
    before = detector_sha256(model)
    entry = replace(report.to_record(), line=model.products[1].record.threshold.image_threshold)
    model.products.keep_sensitivity(1, entry)
    assert detector_sha256(model) == before  # figures that were measured on the detector stay its own
    detector.save_pretrained(tmp_path)
    again, _ = load_detector(str(tmp_path))
    assert again.products[1].record.valid_sensitivity(again.config) == entry
    again.config.threshold = 0.6
    assert again.products[1].record.valid_sensitivity(again.config) is None
    detector.calibrate("bolt", max_false_alarm_rate=0.1)  # another product's line
    assert model.products[1].record.sensitivity == entry
    mask = Image.fromarray(np.pad(np.full((4, 4), 255, dtype=np.uint8), ((0, 36), (0, 44))))
    for change in (
        lambda: detector.calibrate("nut", max_false_alarm_rate=0.1),
        lambda: detector.set_ignore_mask("nut", mask),
        lambda: detector.set_ignore_mask("nut", None),
        lambda: detector.add_normals("nut", normals_of(photograph, 1, 4)[3:]),
    ):
        model.products.keep_sensitivity(1, entry)
        change()
        assert model.products[1].record.sensitivity is None and model.config.products[1]["sensitivity"] is None


def test_a_sensitivity_names_no_other_state_than_without(make_detector, report):
    model, _ = make_detector()
    tensors, before = dict(model.state_dict()), model.config.to_dict()
    model.products.keep_sensitivity(0, report.to_record())
    assert content_sha256(model.config.to_dict(), tensors) == content_sha256(before, tensors)


def test_a_sensitivity_that_cannot_be_is_refused(report):
    values = asdict(ProductRecord("nut", sensitivity=report.to_record()))
    assert ProductRecord.from_dict(json.loads(json.dumps(values))).sensitivity == report.to_record()
    for name, value in (("line", float("nan")), ("bears", {"darker, stops": "much"}), ("cases", {"scratch": 3})):
        broken = {**values, "sensitivity": {**values["sensitivity"], name: value}}
        with pytest.raises(ValueError, match="'nut': .* Copy the detector again"):
            ProductRecord.from_dict(broken)


def test_it_is_said_in_two_sentences():
    entry = Sensitivity(
        "2026-11-30T10:00:00+00:00", 12, 0, 0.2, 0.5, [0.05, 0.3],
        smallest={"scratch": [None, 0.08], "hole": [None, None], "chip": [None, None]},
        largest={"scratch": [0.32, 0.32], "hole": [0, 0], "chip": [0.16, 0]},
        found={"scratch": [9, 11], "hole": [1, 0]}, cases={"scratch": [12, 12], "hole": [1, 0]},
        bears={"darker, stops": 0.3, "turned, degrees": 45, "JPEG quality": None},
        breaks=["darker, stops", "JPEG quality"],
    )  # fmt: skip
    assert entry.describe_defects() == (
        "Drawn defects of which 90 % are found, by their longer side in % of the photograph's, at 5 / 30 % contrast (12 "
        "photographs, 2026-11-30): scratch not up to 32 (9 of 12) / from 8 (11 of 12); hole too few could be drawn (1 of 1) / "
        "not measured; chip not measured / not measured."  # in a record without numbers of cases it is not known
    )
    assert entry.describe_changes() == (
        "Changes that a good photograph bears: darker, stops: 0.3; turned, degrees: 45 (all that was tried); JPEG quality: none."
    )

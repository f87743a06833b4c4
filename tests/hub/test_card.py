"""The model card: what it says, what it leaves out, and what is checked before it is sent."""

import dataclasses
import json
import re
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard

from hub.publish.__main__ import main
from hub.publish.card import (
    Backbone,
    CardFacts,
    Results,
    describe_line,
    describe_sensitivity,
    make_card,
    open_choices,
    photograph_counts,
    shots_table,
)
from hub.publish.card_check import check_card
from hub.publish.folder import choose_pictures
from modeling_anople import AnoPLeConfig, AnoPLeModel
from modeling_anople.calibration_anople import KnownDefects, fit_costs, fit_threshold
from modeling_anople.product_store_anople import Sensitivity
from modeling_anople.runtime.loading import detector_sha256, load_detector

from ..fitting import REPOSITORY
from .published import FIT, LOCAL, fitted_anew


EXAMPLE = REPOSITORY / "hub/publish/example_card"


@pytest.fixture(scope="module")
def full(published, tmp_path_factory) -> tuple[ModelCard, Path]:
    """The card with everything in it, and its folder."""
    folder = tmp_path_factory.mktemp("card") / "dry"
    options = ["--evaluation", str(published.evaluation), "--gallery", str(published.gallery), "--measure_cost"]
    words = ["--data_license", "Drawn by a program.", "--description", "Of no use for real parts."]
    benchmark = ["--benchmark", "someone/benchmark", "few_shot"]
    assert main([str(published.detector), "me/bolts", *options, *words, *benchmark, "--dry_run", str(folder)]) == 0
    return check_card((folder / "README.md").read_text(encoding="utf-8"), folder), folder


@pytest.fixture
def config(published) -> AnoPLeConfig:
    """The config of the detector, as a push would publish it."""
    config = AnoPLeConfig.from_pretrained(published.detector)
    config.fit = {**FIT, "data_root": "drawn", "clip": "small"}
    return config


@pytest.fixture(scope="module")
def bare(published) -> str:
    """The card of a detector of which nothing but the config is known."""
    config = AnoPLeConfig.from_pretrained(published.detector)
    config.fit, config.clip_source = None, None
    for product in config.products:
        product["threshold"] = None
    return str(make_card(config, CardFacts("me/bolts")))


def test_it_says_all_that_is_asked_of_a_card(full):
    card, _ = full
    for words in (
        "finds defects on photographs of 2 products",
        "3 good photographs of each product",
        'AutoModel.from_pretrained("me/bolts", trust_remote_code=True)',
        "`nut/train/good/001.png`",
        "## Results",
        "chosen by seed 0",
        "5 % false alarms",
        "- `bolt` and `nut`: With 3 photographs at best 1 in 4 can be promised. 5 % is asked for, so the line is set by",
        "ms for one photograph of 640 x 480",
        "| `prompt_depth` | `9` |",
        "a CLIP from a local folder called `small`",
        "Drawn by a program.",
        "Of no use for real parts.",
    ):
        assert words in card.text, words
    assert LOCAL not in card.content


def test_its_head_can_be_filtered_by(full, published):
    card, folder = full
    data = card.data.to_dict()
    assert data["library_name"] == "transformers" and "pipeline_tag" not in data
    assert {"anomaly-detection", "few-shot", "custom_code"} <= set(data["tags"])
    assert (data["license"], data["license_name"]) == ("other", "see-backbone")  # a local CLIP's terms are not known
    report = json.loads(published.evaluation.read_text(encoding="utf-8"))
    values = {(entry.dataset_config, entry.metric_name): entry.metric_value for entry in card.data.eval_results}
    assert values[None, "Image AUROC"] == round(report["mean"]["image_auroc"], 4)
    assert values["nut", "Pixel AUROC"] == round(report["classes"]["nut"]["pixel_auroc"], 4)
    [entry] = yaml.safe_load((folder / ".eval_results/anople.yaml").read_text(encoding="utf-8"))
    assert entry["dataset"] == {"id": "someone/benchmark", "task_id": "few_shot"}
    assert entry["value"] == values[None, "Image AUROC"]


def test_its_table_is_the_evaluation(full, published):
    report = json.loads(published.evaluation.read_text(encoding="utf-8"))
    table = full[0].text.split("## Results")[1].split("In percent.")[0]
    for name, entry in [*report["classes"].items(), ("mean", report["mean"])]:
        title = "**mean**" if name == "mean" else f"`{name}`"
        [row] = [line for line in table.splitlines() if line.startswith(f"| {title} |")]
        for metric in ("image_auroc", "pixel_auroc", "aupro", "false_alarm_rate", "detection_rate"):
            assert f" {100 * entry[metric]:.1f} " in row, (name, metric)


def test_what_is_not_known_is_left_out(bare, tmp_path):
    check_card(bare, tmp_path)
    for words in (
        "## Results",
        "## Cost",
        "## The line",
        "gets wrong",
        "model-index",
        "metrics:",
        "fitted for",
        "None of",
    ):
        assert words not in bare
    assert "The names of the photographs were not kept." in bare and "a CLIP whose origin was not kept" in bare
    assert "Photographs:" not in bare


def test_figures_that_cannot_be_measured_lose_their_column(config, published, tmp_path):
    report = json.loads(published.evaluation.read_text(encoding="utf-8"))
    for entry in (report["mean"], *report["classes"].values()):
        entry.update(pixel_auroc=None, pixel_ap=None, aupro=None, detection_rate=None)
    report["classes"]["bolt"]["image_ap"] = None
    (tmp_path / "e.json").write_text(json.dumps(report), encoding="utf-8")
    results = Results.read([tmp_path / "e.json"], config)
    table = results.to_table("drawn")
    assert table["columns"] == ["product", "image AUROC", "image AP", "false alarms", "good", "defective"]
    assert table["rows"][0][2] == "n/a" and results.headline() is None
    assert "AUPRO" not in table["legend"]
    check_card(str(make_card(config, CardFacts("me/bolts", results=results))), tmp_path)


def test_products_on_which_nothing_is_found_are_named(config, published, tmp_path):
    report = json.loads(published.evaluation.read_text(encoding="utf-8"))
    report["classes"]["bolt"] |= {"detection_rate": 0.0, "anomalous": 4, "false_alarm_rate": 0.5, "normal": 2}
    report["classes"]["nut"] |= {"detection_rate": 0.75, "anomalous": 4, "false_alarm_rate": 0.0, "normal": 2}
    (tmp_path / "e.json").write_text(json.dumps(report), encoding="utf-8")
    assert Results.read([tmp_path / "e.json"], config).headline() == (
        "On its test photographs it found **3 of 8 defects** and called 1 of 4 good photographs bad. It found no defect at "
        "all on `bolt`."
    )


def test_several_seeds_are_shown_with_their_spread(config, published, tmp_path):
    report = json.loads(published.evaluation.read_text(encoding="utf-8"))
    paths = []
    for seed, figure in ((1, 0.7), (0, 0.8), (2, 0.9)):
        report["mean"]["image_auroc"], report["seed"] = figure, seed
        paths.append(tmp_path / f"{seed}.json")
        paths[-1].write_text(json.dumps(report), encoding="utf-8")
    table = Results.read(paths, config).to_table("drawn")
    assert table["rows"][-1][1] == "80.0 ± 10.0"
    assert "over seeds 0, 1 and 2" in table["text"] and "this one is seed 0" in table["text"]
    with pytest.raises(ValueError, match="was measured on this detector"):
        Results.read([paths[0], paths[2]], config)
    with pytest.raises(ValueError, match="Two evaluations have one seed"):
        Results.read([paths[1], paths[1]], config)
    report["evaluation_size"] = 999
    paths[0].write_text(json.dumps(report), encoding="utf-8")
    with pytest.raises(ValueError, match="differ in evaluation_size"):
        Results.read(paths[:2], config)


@pytest.mark.parametrize(
    ("source", "license_id", "words"),
    [
        ({"kind": "embedded", "name": "mini", "revision": None}, "apache-2.0", "Apache-2.0"),
        ({"kind": "hub", "name": "laion/CLIP-ViT-B-16", "revision": "a" * 40}, "mit", "(MIT)"),
        ({"kind": "hub", "name": "openai/clip", "revision": None}, None, "calls any deployed use out of scope"),
        (
            {"kind": "hub", "name": "user/clip", "revision": None},
            None,
            "[its card](https://huggingface.co/user/clip).",
        ),
        ({"kind": "folder", "name": "small", "revision": None}, None, "which is not known here"),
    ],
)
def test_the_backbones_license(config, tmp_path, source, license_id, words):
    config.clip_source = source
    card = check_card(str(make_card(config, CardFacts("me/bolts"))), tmp_path)
    assert words in card.text and card.data.license == (license_id or "other")
    assert ("a larger CLIP, or an encoder for the memory, finds more" in card.text) == (source["kind"] == "embedded")
    assert card.data.get("base_model") == (source["name"] if source["kind"] == "hub" else None)
    assert check_card(str(make_card(config, CardFacts("me/bolts", license="mit"))), tmp_path).data.license == "mit"


def test_an_adapters_card_says_what_it_needs(published, tmp_path):
    assert main([str(published.detector), "me/bolts", "--adapter", "--dry_run", str(tmp_path / "dry")]) == 0
    text = check_card((tmp_path / "dry/README.md").read_text(encoding="utf-8"), tmp_path / "dry").text
    config = json.loads((tmp_path / "dry/config.json").read_text(encoding="utf-8"))
    assert config["adapter_clip_sha256"] in text and "AutoModel.from_pretrained" not in text
    assert 'AnoPLeModel.load_adapter("me/bolts", clip="FOLDER_OF_THE_CLIP")' in text
    AnoPLeModel.load_adapter(tmp_path / "dry", clip=published.detector.parents[1] / "clip0/small")


def test_any_name_stays_in_its_cell(config, tmp_path):
    names = ['a|b "c"', "日本 `x`\n# y"]
    for product, name in zip(config.products, names, strict=True):
        product["name"] = name
    config.fit = {**config.fit, "files": {names[0]: ["a|`b.png"], names[1]: ["\udcfc.png"]}}
    text = check_card(str(make_card(config, CardFacts("me/bolts"))), tmp_path).text
    rows = [line for line in text.splitlines() if line.startswith("| `") and ".png" in line]
    assert len(rows) == 2 and all(line.count("|") == 3 for line in rows)
    [call] = re.findall(r"class_names=(.*)\)\)", text)
    assert json.loads(call) == names[0] and f"--class '{names[0]}'" in text


def test_every_open_choice_is_named():
    marked = re.findall(r"^        (\w+) \(.*?(?=^        \w)", AnoPLeConfig.__doc__, re.MULTILINE | re.DOTALL)
    assert len(marked) > 30
    choices = open_choices(AnoPLeConfig())
    assert {"prompt_length", "prompt_depth", "prefix", "alignment_detach", "image_map"} <= {
        c["field"] for c in choices
    }
    assert all("[" not in choice["help"].replace("[128", "") for choice in choices) and len(choices) >= 15


def test_figures_out_of_range_are_refused(full):
    card, folder = full
    with pytest.raises(ValueError, match="not a share within 0 and 1"):
        check_card(re.sub(r"value: 0\.\d+", "value: 64.6", card.content, count=1), folder)


def test_wrong_evaluations_and_galleries_are_refused(published, tmp_path, capsys):
    def refused(*options: str) -> str:
        assert main([str(published.detector), "me/bolts", "--dry_run", str(tmp_path / "dry"), *options]) == 2
        return capsys.readouterr().err

    (tmp_path / "text.json").write_text("[]", encoding="utf-8")
    assert "cannot be read as an evaluation" in refused("--evaluation", str(tmp_path / "gone.json"))
    assert "cannot be read as an evaluation" in refused("--evaluation", str(tmp_path / "text.json"))
    assert "is no gallery" in refused("--gallery", str(tmp_path))
    assert "--benchmark needs figures" in refused("--benchmark", "a/b", "c")
    assert "takes a dataset id and a task id" in refused("--benchmark", "a/b", "--evaluation", "x")
    with pytest.raises(ValueError, match="run `anople evaluate --gallery` again"):
        (tmp_path / "index.html").touch()
        (tmp_path / "01-a.png").touch()
        choose_pictures(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full/a.txt").touch()
    assert main([str(published.detector), "me/bolts", "--dry_run", str(tmp_path / "full")]) == 2
    assert "is not empty: name a new folder" in capsys.readouterr().err


def test_errors_come_first_and_from_different_products(tmp_path):
    entries = [
        {"file": f"{number}.jpg", "kind": kind, "class": name, "severity": severity}
        for number, (kind, name, severity) in enumerate(
            [
                ("miss", "a", 0.99),
                ("miss", "a", 0.98),
                ("false alarm", "b", 0.6),
                ("found", "a", 0.1),
                ("miss", "c", 0.7),
            ]
        )
    ]
    (tmp_path / "samples").mkdir()
    (tmp_path / "index.html").touch()
    (tmp_path / "samples/samples.json").write_text(json.dumps(entries), encoding="utf-8")
    assert [entry["file"] for entry in choose_pictures(tmp_path)] == ["0.jpg", "4.jpg", "2.jpg", "3.jpg"]
    assert [entry["file"] for entry in choose_pictures(tmp_path, failures=4)][:4] == [
        "0.jpg",
        "4.jpg",
        "2.jpg",
        "1.jpg",
    ]


def test_the_example_is_a_card_that_could_be_published():
    check_card((EXAMPLE / "README.md").read_text(encoding="utf-8"), EXAMPLE)
    pictures = list((EXAMPLE / "samples").iterdir())
    assert pictures and all(path.suffix == ".jpg" and path.stat().st_size < 100_000 for path in pictures)


def test_a_backbone_in_words(config):
    config.clip_source = {"kind": "hub", "name": "user/clip", "revision": "b" * 40}
    backbone = Backbone.of(config, "c" * 64)
    assert (backbone.argument, backbone.link) == ("", "https://huggingface.co/user/clip")
    text = str(make_card(config, CardFacts("me/bolts", adapter_sha256="c" * 64)))
    assert f"commit `{'b' * 40}`" in text and "c" * 64 in text and "base_model_relation: adapter" in text


# --- A card's figures are its own detector's, and it counts and names the photographs that were really shown ---


@pytest.fixture
def report(published) -> dict:
    return json.loads(published.evaluation.read_text(encoding="utf-8"))


def written(report: dict, path):
    path.write_text(json.dumps(report), encoding="utf-8")
    return path


def log(action: str, *files: str | None, name: str = "bolt") -> dict:
    return {"action": action, "class_name": name, "files": list(files)}


def test_an_evaluation_names_the_state_that_it_measured(report, published, tmp_path):
    model, _ = load_detector(str(published.detector))
    assert report["detector_sha256"] == detector_sha256(model) and report["clip"] == "small"
    product = model.products.named("bolt")
    product.record.threshold = dataclasses.replace(product.record.threshold, image_threshold=0.7)
    model.products.write()
    assert report["detector_sha256"] != detector_sha256(model)
    other, _ = load_detector(str(fitted_anew(published.detector, tmp_path / "new")))
    assert report["detector_sha256"] != detector_sha256(other)


def test_figures_of_another_detector_are_refused(published, tmp_path, capsys):
    """The other one was fitted with the same seed and shots to the same products."""
    new = fitted_anew(published.detector, tmp_path / "new")
    assert main([str(new), "me/a", "--evaluation", str(published.evaluation), "--dry_run", str(tmp_path / "dry")]) == 2
    assert "was measured on this detector as it is now" in capsys.readouterr().err


def test_figures_of_a_part_alone_are_refused(report, config, tmp_path):
    path = written({**report, "score": "memory"}, tmp_path / "e.json")
    with pytest.raises(ValueError, match="measures the part 'memory' alone"):
        Results.read([path], config)


@pytest.mark.parametrize("change", [{"seed": 1}, {"shots": 1}, {"clip": "large"}, {"classes": {}}])
def test_an_older_report_must_agree_in_all_it_says(report, config, tmp_path, change):
    older = {key: value for key, value in report.items() if key not in ("detector_sha256", "clip")}
    assert Results.read([written(older, tmp_path / "a.json")], config, "a" * 64).seeds == [0]
    with pytest.raises(ValueError, match="was measured on this detector"):
        Results.read([written({**older, **change}, tmp_path / "b.json")], config, "a" * 64)


def test_other_seeds_may_stand_beside_the_detectors_own(report, config, tmp_path):
    other = written({**report, "seed": 1, "detector_sha256": "b" * 64}, tmp_path / "1.json")
    own = written(report, tmp_path / "0.json")
    assert Results.read([other, own], config, report["detector_sha256"]).seeds == [0, 1]


def test_unknown_shots_and_seed_are_left_out(report, config, tmp_path):
    config.fit = None
    path = written({**report, "seed": None, "shots": None}, tmp_path / "e.json")
    text = Results.read([path], config, report["detector_sha256"]).to_table(None)["text"]
    assert "None" not in text and "seed" not in text and "to learn from" not in text
    assert "fitting. How much another choice changes was not measured." in text


def test_photographs_are_counted_not_computed(config):
    """A memory that is limited keeps some vectors of each photograph."""
    for product, counts in zip(config.products, ([5, 3, 8, 0], [16]), strict=True):
        product["image_vectors"] = counts
    assert photograph_counts(config) == [4, 1]
    text = str(make_card(config, CardFacts("me/bolts")))
    assert "1 or 4 good photographs of each product" in text


def test_each_product_has_its_own_statement_and_equal_ones_are_said_once(config):
    assert describe_line(config).count("\n- ") == 1
    config.products[1]["threshold"] = vars(fit_threshold([0.1] * 24, [0.1] * 24, max_false_alarm_rate=0.025))
    text = describe_line(config)
    assert "**2.5 % or 5 % false alarms**" in text
    assert (
        "- `bolt`: With 3 photographs at best 1 in 4" in text
        and "- `nut`: With 24 photographs at best 1 in 25" in text
    )


def test_a_line_by_costs_and_what_a_line_finds_are_said(config):
    bolt, nut = config.products
    assert "What it can find" not in str(make_card(config, CardFacts("me/bolts")))
    scores = [0.1, 0.12, 0.11]
    limit = fit_threshold(scores, scores, max_false_alarm_rate=0.05)
    bolt["threshold"] = dataclasses.asdict(fit_costs(limit, KnownDefects([0.3, 0.4], 5, 1)))
    text = describe_line(config)
    assert text.startswith(
        "Known defects and the cost of errors set the line of `bolt`. No defect was needed to set the"
    )
    assert "- `bolt`: The line was set by 2 known defects and 3 photographs" in text
    line = nut["threshold"]["image_threshold"]
    entry = [
        "2026-11-30",
        12,
        0,
        line,
        0.5,
        [0.3],
        {"scratch": [0.08]},
        {"scratch": [0.32]},
        {"turned, degrees": 45},
        [],
        {"scratch": [11]},
        {"scratch": [12]},
    ]
    nut["sensitivity"] = dataclasses.asdict(Sensitivity(*entry))
    card = str(make_card(config, CardFacts("me/bolts")))
    assert "## What it can find" in card and "- `nut`: Drawn defects of which 90 % are found" in card
    assert "scratch from 8 (11 of 12)" in card
    config.threshold = 0.4  # measured with another one
    assert describe_sensitivity(config) is None


@pytest.mark.parametrize(
    ("history", "row"),
    [
        ([], "`a/0.png`, `a/1.png` and 1 more, name not kept"),
        ([log("fit", "0.png", "1.png")], "`a/0.png`, `a/1.png` and 1 more, name not kept"),
        ([log("fit", "0.png"), log("add_normals", "x.png")], "`a/0.png`, `a/1.png`, `x.png`"),
        ([log("calibrate", "z.png")], "`a/0.png`, `a/1.png` and 1 more, name not kept"),
        ([log("forget"), log("enroll", "x.png", None, "y.png")], "`x.png`, `y.png` and 1 more, name not kept"),
        ([log("enroll", "x.png"), log("forget"), log("enroll", None, None, None)], "3, names not kept"),
        (
            [log("rename", name="screw") | {"former_name": "bolt"}, log("rename") | {"former_name": "screw"}],
            "`a/0.png`, `a/1.png` and 1 more, name not kept",
        ),
        (
            [log("enroll", "x.png", name="nut"), log("rename") | {"former_name": "nut"}],
            "`x.png` and 2 more, names not kept",
        ),
        ([log("enroll", "x.png", name="nut")], "`a/0.png`, `a/1.png` and 1 more, name not kept"),
    ],
)
def test_names_are_of_what_the_product_knows_now(config, history, row):
    config.fit = {**FIT, "files": {"bolt": ["a/0.png", "a/1.png"]}}
    config.history = history
    assert shots_table(config)[0] == ("`bolt`", row)


# --- A memory with an encoder of its own ---


def with_encoder(config: AnoPLeConfig, model_type: str, source: dict) -> AnoPLeConfig:
    """The same detector, as if its memory looked through an encoder."""
    values = config.to_dict()
    numbers = {name: [0.5] * 3 for name in ("memory_image_mean", "memory_image_std", "image_mean", "image_std")}
    size = {"num_hidden_layers": 4, "patch_size": 14, "image_size": 224}
    values |= {**numbers, "memory_encoder": {"model_type": model_type, **size}, "memory_layers": [1, 2]}
    return AnoPLeConfig.from_dict(values | {"memory_encoder_source": source})


HUB_CLIP = {"kind": "hub", "name": "laion/CLIP-one", "revision": "a" * 40}
DINO = {"kind": "hub", "name": "org/dino", "revision": "b" * 40, "license": "apache-2.0"}


def test_a_card_names_the_encoder_its_license_and_its_hash(config, tmp_path):
    config.clip_source = HUB_CLIP
    config = with_encoder(config, "dinov2", DINO)
    text = str(make_card(config, CardFacts("me/bolts", adapter_sha256="c" * 64, encoder_sha256="d" * 64)))
    card = check_card(text, tmp_path)
    assert card.data.base_model == ["laion/CLIP-one", "org/dino"]
    assert (card.data.license, card.data.get("license_name")) == ("other", "see-backbone")  # MIT and Apache-2.0
    assert "Its memory looks through the `dinov2` [org/dino](https://huggingface.co/org/dino), blocks 1 and 2" in text
    assert f"commit `{'b' * 40}`, whose weights must have the hash `{'d' * 64}`" in text
    assert "the memory encoder's weights are under APACHE-2.0, as its card says." in text
    assert "is seen in 224 x 224 pixels, 14 x 14 at a time" in text
    assert 'load_adapter("me/bolts")' in text
    config.clip_source = {"kind": "embedded", "name": "mini", "revision": None}
    card = check_card(str(make_card(config, CardFacts("me/bolts"))), tmp_path)
    assert (card.data.license, card.data.base_model) == ("apache-2.0", "org/dino")  # both are under it
    assert "That one is small" not in card.text


def test_a_card_says_that_the_license_of_dinov3_differs(config, tmp_path):
    source = {"kind": "folder", "name": "dinov3", "revision": None, "license": None}
    text = str(make_card(with_encoder(config, "dinov3_vit", source), CardFacts("me/bolts", adapter_sha256="c" * 64)))
    assert "under the DINOv3 License of Meta, a license of its own (https://ai.meta.com/" in text
    assert 'memory_encoder="FOLDER_OF_THE_ENCODER")' in text and "from a local folder called `dinov3`" in text
    assert check_card(text, tmp_path).data.license == "other"
    text = str(make_card(with_encoder(config, "dinov2", source), CardFacts("me/bolts")))
    assert "the memory encoder's weights are under the terms of its own card, not known here." in text


# --- What the Hub would refuse in a card, and what no reader should find there, is refused without a network ---


HEAD = "---\nlicense: mit\ntags: [a]\n---\n# Title\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (HEAD.replace("mit", "mine"), "license 'mine' is none"),
        (HEAD.replace("mit", "other"), "needs a license_name"),
        (HEAD.replace("tags", "pipeline_tag: image-segmentation\ntags"), "a snippet that does not run"),
        (HEAD.replace("[a]", "a"), "tags must be a list"),
        (HEAD.replace("tags: [a]", "tags: [a]\nbase_model: a/b/c"), "'a/b/c' is no id"),
        (HEAD.replace("[a]", "[a"), "cannot be read"),
        (HEAD.replace("# Title", "Title"), "begin with a title"),
        (HEAD + "![x](gone.jpg)\n", "gone.jpg is not there"),
        (HEAD + "[x](#nowhere)\n", "#nowhere leads to no heading"),
        (HEAD + "{{ name }}\n", "left unfilled"),
        (HEAD + "| a | None |\n", "the cell 'None'"),
        (HEAD + "see /home/me/data\n", "somebody's machine"),
    ],
)
def test_faulty_cards_are_refused(tmp_path, content, message):
    assert check_card(HEAD, tmp_path).data.license == "mit"
    with pytest.raises(ValueError, match=message):
        check_card(content, tmp_path)

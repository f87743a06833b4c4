"""The table of loss ablations: which runs it takes from where."""

import json

import pytest
from transformers import HfArgumentParser

from hub.ablate_mini_clip import SMALL, VARIANTS, figures_of, folder_of, to_markdown
from hub.pretrain_mini_clip import LOG_FILE, PretrainingConfig


FIGURES = {"i_auroc_1": 60.0, "p_auroc_1": 70.0, "i_auroc_4": 80.0, "p_auroc_4": 90.0, "score": 75.0}


def write_log(folder, *lines):
    folder.mkdir(parents=True)
    (folder / LOG_FILE).write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_is_a_valid_run_of_its_own(name):
    words = [word for key, value in SMALL.items() for word in (f"--{key}", str(value))]
    parser = HfArgumentParser(PretrainingConfig, allow_abbrev=False)
    (config,), (usual,) = (parser.parse_args_into_dataclasses([*words, *more]) for more in (VARIANTS[name], []))
    assert (config == usual) == (name == "all losses")


def test_the_last_figures_count_and_an_unfinished_run_has_none(tmp_path):
    write_log(tmp_path / "done", {"step": 1, **FIGURES, "i_auroc_4": 1.0}, {"step": 2, **FIGURES}, {"step": 3})
    write_log(tmp_path / "begun", {"step": 1})
    assert figures_of(tmp_path / "done")["i_auroc_4"] == 80.0
    assert figures_of(tmp_path / "begun") is None and figures_of(tmp_path / "none") is None


def test_the_table_is_the_mean_over_seeds_of_what_is_done(tmp_path):
    for seed, figure in ((0, 80.0), (1, 90.0)):
        write_log(folder_of(tmp_path, "all losses", seed), {"step": 1, **FIGURES, "i_auroc_4": figure})
    rows = to_markdown(tmp_path, [0, 1, 2]).splitlines()
    assert rows[2] == "| all losses | 2 | 60.0 | 70.0 | 85.0 | 90.0 |" and len(rows) == 3

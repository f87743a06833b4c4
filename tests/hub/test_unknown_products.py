"""The benchmark of unknown products: what it counts, and a whole round on a few photographs."""

import pytest

from hub.benchmarks.unknown_products import Answer, judge_left_out, to_table
from modeling_anople.data import read_dataset

from ..detectors import normals_of


def test_the_table_counts_what_it_says():
    stranger = "unknown product"
    answers = [
        *[Answer("a", "a", False, stranger), Answer("a", "a", True, "b")],  # a is left out: one of two is found
        *[Answer("a", "b", False, "b"), Answer("a", "b", True, stranger)],
        *[Answer("b", "b", False, stranger)],
        *[Answer("b", "a", False, stranger), Answer("b", "a", False, "c"), Answer("b", "a", False, "a")],
    ]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in to_table(answers).splitlines()[2:]]
    assert rows == [
        ["a", "50.0", "33.3", "n/a", "33.3"],
        ["b", "100.0", "0.0", "100.0", "0.0"],
        ["all", "66.7", "25.0", "100.0", "20.0"],
    ]


@pytest.fixture
def data(tmp_path, photograph):
    for class_id, name in enumerate(("bolt", "nut", "gasket")):
        for split, images in (("train", normals_of(photograph, class_id, 4)), ("test", [photograph(class_id)])):
            (tmp_path / name / split / "good").mkdir(parents=True)
            for number, image in enumerate(images):
                image.save(tmp_path / name / split / f"good/{number}.png")
    return tmp_path


def test_a_round_judges_every_test_photograph(data, small_clip_folder):
    train, test = (read_dataset(data, split=split) for split in ("train", "test"))
    answers = judge_left_out(train, test, "nut", shots=2, seed=0, clip=str(small_clip_folder))
    assert [each.class_name for each in answers] == test["class_name"][:] and len(answers) == 3
    assert {each.left_out for each in answers} == {"nut"}
    assert {each.called for each in answers} <= {"bolt", "gasket", "unknown product"}

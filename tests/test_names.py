"""A mistyped name is answered with the one that may have been meant; one that a product cannot have, with the reason."""

import json

import pytest

from modeling_anople import AnoPLeConfig, AnoPLeModel
from modeling_anople.cli import main
from modeling_anople.product_store_anople import new_name

from .detectors import detector_of, normals_of


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["pedict", "x"], "anople: no command 'pedict'. Did you mean predict?"),
        (["xyz"], "anople: no command 'xyz'.\n"),
        (["fit", "x", "--mixed_precison", "no"], "anople fit: --mixed_precison is none of its options. Did you mean"),
        (["fit", "x", "--couplin=none"], "--couplin is none of its options. Did you mean --coupling?"),
        (["predict", "x", "y", "--clas_name", "z"], "--clas_name is none of its options. Did you mean --class_name?"),
        (["products", "x", "y"], "anople products: 'y' is one argument too many"),
    ],
)
def test_commands_and_options(capsys, words, said):
    assert main(words) == 2
    assert said in capsys.readouterr().err


REFUSED = {
    "bolt\n": "cannot be seen",
    "b\x1b[31m": "cannot be seen",
    "bo\u200blt": "cannot be seen",
    "bo\u202elt": "cannot be seen",
    "\ud800": "cannot be seen",
    " bolt": "begins or ends with a blank",
    "bolt ": "begins or ends with a blank",
    "  ": "needs a name",
    "\u3164": "needs a name",
    "../../x": "is a path",
    "a\\b": "is a path",
    "..": "is a path",
    "b\u043elt": r"letters that look alike \(CYRILLIC, LATIN\)",
    "b\u03bflt": r"letters that look alike \(GREEK, LATIN\)",
    "\uff42olt": "looks like that of the class 'bolt'",
    "bolt\ufe0f": "looks like that of the class 'bolt'",
    "\u0441\u043e\u0440\u0435": "looks like that of the class 'cope'",  # Cyrillic throughout
    "nu  t": "looks like that of the class 'nu t'",
}
ALLOWED = [
    "gasket",
    "10 k\u03a9",
    "\u00b5-chip",
    "\u65e5\u672c M4",
    "Mutter \u00df",
    "\u0433\u0430\u0439\u043a\u0430",
    "=x",
    "*",
    "Bolt",
    "b0lt",
]


@pytest.mark.parametrize("name", REFUSED, ids=ascii)
def test_a_name_that_cannot_be_told_or_leads_elsewhere_is_refused(name):
    with pytest.raises(ValueError, match=REFUSED[name]) as caught:
        new_name(name, ["bolt", "cope", "nu t"])
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("name", ALLOWED, ids=ascii)
def test_other_names_are_taken(name):
    assert new_name(name, ["bolt", "cope"]) == name
    assert new_name("e\u0301", []) == "\u00e9"


def test_no_detector_begins_with_such_a_name_or_is_given_one(small_clip_folder, make_detector, photograph):
    detector = detector_of(*make_detector())
    for name in ("x\n", "../x", "n\u0443t"):
        with pytest.raises(ValueError, match="The name"):
            AnoPLeModel.from_clip(str(small_clip_folder), ["bolt", name])
        with pytest.raises(ValueError, match="The name"):
            detector.enroll(name, normals_of(photograph, 4))
    with pytest.raises(ValueError, match="looks like that of the class 'bolt'"):
        AnoPLeModel.from_clip(str(small_clip_folder), ["bolt", "\uff42olt"])


def test_a_saved_name_loads_unless_it_breaks_a_path():
    for name in ("bolt\n", "b\x1b[31m", "bo\u200blt", "b\u043elt", "\ud800"):
        assert AnoPLeConfig.from_dict(json.loads(json.dumps({"products": [{"name": name}]}))).class_names == [name]

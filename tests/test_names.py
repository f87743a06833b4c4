"""A mistyped name is answered with the one that may have been meant."""

import pytest

from modeling_anople.cli import main


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

"""What the Hub would refuse in a card, and what no reader should find there, is refused without a network."""

import pytest

from hub.card_check import check_card


HEAD = "---\nlicense: mit\npipeline_tag: image-segmentation\ntags: [a]\n---\n# Title\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (HEAD.replace("mit", "mine"), "license 'mine' is none"),
        (HEAD.replace("mit", "other"), "needs a license_name"),
        (HEAD.replace("image-segmentation", "anomalies"), "no task"),
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

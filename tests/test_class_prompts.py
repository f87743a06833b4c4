import pytest
import torch

from modeling_anople.prompting_anople import class_prompt_ids, class_words


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("metal_nut", "metal nut"),
        ("pipe_fryum", "pipe fryum"),
        ("chewinggum", "chewing gum"),
        ("macaroni2", "macaroni"),
        ("pcb3", "printed circuit board"),
        ("audiojack", "audiojack"),
        ("  two   spaces ", "two spaces"),
    ],
)
def test_class_names_become_words(name, words):
    assert class_words(name) == words


def test_rows_hold_start_placeholders_words_and_end(tokenizer):
    ids = class_prompt_ids(tokenizer, ["metal_nut", "Schraube ß"], prompt_count=3, max_length=40)
    assert ids.shape == (4, 40) and ids.dtype == torch.long
    start, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    sentences = ["metal nut.", "abnormal metal nut.", "Schraube ß.", "abnormal Schraube ß."]
    for row, sentence in zip(ids.tolist(), sentences, strict=True):
        plain = tokenizer(sentence).input_ids  # [start] words [end]
        assert row[:4] == [start] * 4
        assert row[4 : 4 + len(plain) - 1] == plain[1:]
        assert set(row[4 + len(plain) - 2 :]) == {end}


def test_a_name_too_long_for_the_text_tower_is_refused(tokenizer):
    with pytest.raises(ValueError, match=r"class 'x{30}' has 44 tokens and the text tower reads 43: give the class"):
        class_prompt_ids(tokenizer, ["x" * 30], prompt_count=3, max_length=43)
    assert class_prompt_ids(tokenizer, ["x" * 30], prompt_count=3, max_length=44)[1, -1] == tokenizer.eos_token_id

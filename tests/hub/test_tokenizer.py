"""The trained tokenizer of the pretrained small CLIP: any script, short product names, the same ids everywhere."""

import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest
from transformers import AutoTokenizer, CLIPTokenizer

from hub.mini_clip.small_clip import byte_tokenizer
from hub.mini_clip.tokenizer import (
    COLORS,
    DEFECTS,
    LOOKS,
    MATERIALS,
    NOUNS,
    PARTS,
    STATES,
    TEMPLATES,
    caption,
    corpus,
    train_tokenizer,
)
from modeling_anople.prompting_anople import class_prompt_ids


ROOT = Path(__file__).parents[2]
NAMES = [
    "metal nut",
    "Schraube M4×20 (verzinkt)",
    "Größenprüfgerät",
    "e\u0301crou",  # decomposed é
    "日本の部品",
    "기판",
    "болт",
    "صامولة",
    "पेंच",
    "🔩x2 👩‍🔧",
    "o-ring's seal & co.",
    "tab\tend",
    "\x00\x7f\xad",
    "x" * 60,
]


@pytest.fixture(scope="module")
def mini() -> CLIPTokenizer:
    return train_tokenizer()


def plain_ids(tokenizer, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False).input_ids


@pytest.mark.parametrize("name", NAMES)
def test_any_name_becomes_tokens_and_comes_back(mini, name):
    ids = mini(name).input_ids
    assert mini.unk_token_id not in ids[1:-1] and max(ids) < len(mini)
    decoded = mini.decode(ids, skip_special_tokens=True)  # CLIP's decoding sets spaces around signs
    assert "".join(decoded.split()) == "".join(unicodedata.normalize("NFC", name).lower().split())


def test_every_byte_has_a_token_of_its_own_bare_and_at_the_end_of_a_word(mini):
    bytes_alone = set(byte_tokenizer().get_vocab())
    assert len(bytes_alone) == 514 and bytes_alone <= set(mini.get_vocab())


def test_names_that_differ_have_different_tokens(mini):
    names = ["nut", "nuts", "nüt", "nut 1", "nut 2", "Ω", "ω nut", "部", "品", "🔩", "🔧"]
    assert len({tuple(mini(name).input_ids) for name in names}) == len(names)


def test_special_tokens_are_where_clip_has_them(mini):
    assert isinstance(mini, CLIPTokenizer) and mini.model_max_length == 77
    assert (mini.bos_token, mini.eos_token) == ("<|startoftext|>", "<|endoftext|>")
    assert (mini.bos_token_id, mini.eos_token_id, mini.pad_token_id) == (2046, 2047, 2047)
    assert mini("gear").input_ids == [2046, *plain_ids(mini, "gear"), 2047]
    long = mini("gear " * 100, truncation=True).input_ids
    assert len(long) == 77 and (long[0], long[-1]) == (2046, 2047)


@pytest.mark.parametrize("size", [514, 600, 2048])
def test_the_vocabulary_has_the_size_asked_for(size):
    tokenizer = train_tokenizer(size)
    assert sorted(tokenizer.get_vocab().values()) == list(range(size))
    assert len(tokenizer) == size and tokenizer.eos_token_id == size - 1


@pytest.mark.parametrize(
    ("size", "message"),
    [
        (513, "vocab_size is 513; bytes and special tokens need 514: give at least"),
        (10**5, r"vocab_size is 100000; the corpus gives only \d{4} tokens: give at most that"),
    ],
)
def test_sizes_that_cannot_be_had_are_refused(size, message):
    with pytest.raises(ValueError, match=message):
        train_tokenizer(size)


def test_training_again_gives_the_same_tokenizer():
    assert train_tokenizer().backend_tokenizer.to_str() == train_tokenizer().backend_tokenizer.to_str()


def test_another_process_gives_the_same_tokenizer():
    program = "from hub.mini_clip.tokenizer import train_tokenizer as t; print(ascii(t().backend_tokenizer.to_str()))"
    run = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == ascii(train_tokenizer().backend_tokenizer.to_str())


def test_saved_and_loaded_it_gives_the_same_ids(mini, tmp_path):
    mini.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    texts = [*NAMES, *corpus()[::97]]
    assert loaded(texts).input_ids == mini(texts).input_ids
    assert (loaded.model_max_length, len(loaded)) == (77, 2048)
    assert (loaded.bos_token_id, loaded.eos_token_id, loaded.pad_token_id) == (2046, 2047, 2047)


@pytest.mark.parametrize(("words", "most"), [(NOUNS, 2), (MATERIALS, 2), (COLORS, 2), (STATES, 2), (DEFECTS, 3)])
def test_common_words_are_short(mini, words, most):
    assert sum(len(plain_ids(mini, word)) for word in words) / len(words) <= most


@pytest.mark.parametrize("word", ["a", "photo", "of", "normal", "abnormal", "with", "metal", "nut", "gear", "bottle"])
def test_the_commonest_words_are_one_token(mini, word):
    assert len(plain_ids(mini, word)) == 1


@pytest.mark.parametrize("name", ["metal_nut", "pcb1", "Schraube ß", "部品 🔩"])
def test_class_prompts_keep_the_words(mini, name):
    rows = class_prompt_ids(mini, [name], prompt_count=3, max_length=77).tolist()
    good, bad = ([token for token in row if token < 2046] for row in rows)
    assert all(row[:4] == [2046] * 4 and row[-1] == 2047 for row in rows)
    assert bad == plain_ids(mini, "abnormal") + good
    assert good[-1:] == plain_ids(mini, ".")


def test_the_corpus_is_the_same_each_time_and_holds_every_word():
    sentences = corpus()
    assert sentences == corpus() and not any("{" in sentence for sentence in sentences)
    text = f" {' '.join(sentences)} "
    for words in (NOUNS, COLORS, LOOKS, MATERIALS, PARTS, STATES, DEFECTS):
        assert len(set(words)) == len(words) and all(word == word.lower().strip() for word in words)
        assert [word for word in words if f" {word} " not in text] == []
    assert len(NOUNS) >= 500 and len(DEFECTS) >= 80


@pytest.mark.parametrize(
    ("template", "noun", "number", "expected"),
    [
        ("abnormal {noun}.", "gear", 5, "abnormal gear."),
        ("a photo of {a} {colour} {noun}", "gear", 0, "a photo of a red gear"),
        ("a photo of {a} {colour} {noun}", "gear", 1, "a photo of an orange gear"),
        ("{a} {noun} with {colour} and {colour} {part}", "olive", 0, "an olive with red and orange hole"),
        ("{a} {noun}", "usb plug", 0, "a usb plug"),
        ("{a} {noun} in {colour}", "pin", len(COLORS), "a pin in red"),
    ],
)
def test_captions_fill_their_slots(template, noun, number, expected):
    assert caption(template, noun, number) == expected


def test_every_template_names_the_product():
    assert all("{noun}" in template for template in TEMPLATES)

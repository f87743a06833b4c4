"""CLIP's own tokenizer from the vocabulary that open_clip ships, or from a folder that has one."""

import gzip
from importlib.util import find_spec
from pathlib import Path

from transformers import CLIPTokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode


VOCABULARY = "bpe_simple_vocab_16e6.txt.gz"
START, END = "<|startoftext|>", "<|endoftext|>"
REMEDY = (
    "give --tokenizer the folder or Hub id of a model with CLIP's tokenizer (openai/clip-vit-base-patch16), or the file "
    f"{VOCABULARY} of open_clip or CLIP; or install open_clip, which ships it: pip install --no-deps open_clip_torch"
)


def load_tokenizer(source: str | None, *, vocab_size: int, max_length: int) -> CLIPTokenizer:
    """
    Find CLIP's tokenizer.

    Ids are those of open_clip for the text as it stands. What open_clip mends beforehand with ftfy (curly quotes, wrongly
    decoded letters, HTML entities, ligatures, letters of double width), transformers' tokenizer leaves alone, as with every
    CLIP on the Hub; a capital sigma that ends a Greek word becomes another small one.

    Args:
        source: folder or Hub id with a tokenizer, or the vocabulary file; by default that of an installed open_clip.
        vocab_size: tokens that the text tower knows; start and end are the last two.
        max_length: tokens that it reads.

    Raises:
        ValueError: if there is none, or it is another.
    """
    file = _installed_vocabulary() if source is None else Path(source)
    if file is None:
        raise ValueError(f"No vocabulary for the tokenizer, and open_clip is not installed: {REMEDY}.")
    if file.is_file():
        tokenizer = read_vocabulary(file, vocab_size=vocab_size, max_length=max_length)
    else:
        try:
            tokenizer = CLIPTokenizer.from_pretrained(source)
        except Exception as error:  # readers of tokenizers have errors of their own
            reason = " ".join(str(error).split()).rstrip(".")
            raise ValueError(f"{source} gives no CLIP tokenizer ({reason}): {REMEDY}.") from error
    found = (len(tokenizer), tokenizer.bos_token_id, tokenizer.eos_token_id)
    if found != (vocab_size, vocab_size - 2, vocab_size - 1):
        raise ValueError(
            f"The tokenizer of {source or file} has {found[0]} tokens with start {found[1]} and end {found[2]}, and the "
            f"weights need {vocab_size} with {vocab_size - 2} and {vocab_size - 1}: {REMEDY}."
        )
    tokenizer.model_max_length = max_length
    return tokenizer


def _installed_vocabulary() -> Path | None:
    """Find the file without importing open_clip, which would want torchvision."""
    package = find_spec("open_clip")
    places = package.submodule_search_locations if package else None
    files = [Path(place) / VOCABULARY for place in places or []]
    return next((file for file in files if file.is_file()), None)


def read_vocabulary(file: Path, *, vocab_size: int, max_length: int) -> CLIPTokenizer:
    """
    Build the tokenizer from the list of merges that CLIP was published with.

    The ids are: 256 bytes, the same bytes at the end of a word, the merges in their order, start, end.

    Raises:
        ValueError: if the file is another one or holds fewer merges than `vocab_size` needs.
    """
    try:
        content = file.read_bytes()
        text = (gzip.decompress(content) if file.suffix == ".gz" else content).decode("utf-8")
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} cannot be read as a vocabulary ({error}): {REMEDY}.") from error
    head, *rows = text.split("\n")
    pieces = list(bytes_to_unicode().values())
    pieces += [f"{piece}</w>" for piece in pieces]
    merges = [tuple(row.split()) for row in rows[: max(0, vocab_size - 2 - len(pieces))]]
    complete = len(pieces) + len(merges) + 2 == vocab_size
    if "#version" not in head or not complete or any(len(merge) != 2 for merge in merges):
        raise ValueError(f"{file} is no list of merges for {vocab_size} tokens: {REMEDY}.")
    words = [*pieces, *("".join(merge) for merge in merges), START, END]
    vocab = {word: number for number, word in enumerate(words)}
    try:
        return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=max_length)
    except Exception as error:  # of tokenizers, for a merge of pieces that do not exist
        raise ValueError(f"{file} is no list of merges ({error}): {REMEDY}.") from error


__all__ = ["load_tokenizer", "read_vocabulary"]

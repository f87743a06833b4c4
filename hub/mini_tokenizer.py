"""The tokenizer of the small CLIP that we pretrain: CLIP's byte-level BPE, trained on captions of products."""

import json

from tokenizers import AddedToken, Tokenizer
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import CLIPTokenizer

from .small_clip import byte_tokenizer
from .vocabulary import corpus


MAX_LENGTH = 77
START, END = "<|startoftext|>", "<|endoftext|>"


def train_tokenizer(vocab_size: int = 2048) -> CLIPTokenizer:
    """
    Train CLIP's lower-case byte-level BPE on `corpus()`; the same tokenizer each time.

    As in OpenAI's CLIP the ids are: 256 bytes, the same bytes at the end of a word, the merges in the order learnt, the
    start token, the end token (the highest id). Single bytes spell whatever the corpus lacks, in any script.

    Raises:
        ValueError: if `vocab_size` is too small for the bytes, or larger than the corpus gives merges for.
    """
    untrained = byte_tokenizer()
    pieces = sorted(set(untrained.get_vocab()) - {START, END}, key=untrained.get_vocab().get)
    smallest = len(pieces) + 2
    if vocab_size < smallest:
        raise ValueError(f"vocab_size is {vocab_size}; bytes and special tokens need {smallest}: give at least that.")
    vocab, merges = _learn_merges(untrained.backend_tokenizer, pieces, vocab_size - 2)
    if len(vocab) != vocab_size - 2:
        raise ValueError(
            f"vocab_size is {vocab_size}; the corpus gives only {len(vocab) + 2} tokens: give at most that, "
            "or add words to hub/vocabulary.py."
        )
    vocab |= {START: vocab_size - 2, END: vocab_size - 1}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=MAX_LENGTH)


def _learn_merges(clip: Tokenizer, pieces: list[str], size: int) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Train on words split as `clip` splits them; `pieces` get the first ids."""
    learner = Tokenizer(BPE(end_of_word_suffix="</w>"))
    learner.normalizer, learner.pre_tokenizer = clip.normalizer, clip.pre_tokenizer
    trainer = BpeTrainer(
        vocab_size=size,
        end_of_word_suffix="</w>",
        # named beforehand: the trainer would number pieces with "</w>" by a hash order that differs from run to run
        special_tokens=[AddedToken(piece, special=True) for piece in pieces],
        show_progress=False,
    )
    learner.train_from_iterator(corpus(), trainer)
    model = json.loads(learner.to_str())["model"]
    return model["vocab"], [tuple(merge) for merge in model["merges"]]


__all__ = ["MAX_LENGTH", "train_tokenizer"]

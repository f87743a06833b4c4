"""Class embeddings from written prompts: the text side of WinCLIP, for comparison with learnt ones."""

import torch

from modeling_anople import AnoPLeModel, AnoPLeProcessor
from modeling_anople.prompting_anople import class_words, encode_text


# States and frames as in WinCLIP's compositional ensemble, in words of our own.
NORMAL = ("{}", "perfect {}", "flawless {}", "intact {}", "{} without a defect", "{} without damage")
ABNORMAL = ("damaged {}", "{} with a flaw", "{} with a defect", "broken {}", "{} with damage")
FRAMES = ("a photo of a {}.", "a close-up photo of a {}.", "a bright photo of the {}.", "a dark photo of the {}.")


@torch.inference_mode()
def write_prompts(model: AnoPLeModel, processor: AnoPLeProcessor) -> None:
    """Replace a detector's class embeddings by the mean embedding of all written prompts of each class and branch."""
    rows = []
    for name in model.config.class_names:
        for states in (NORMAL, ABNORMAL):
            texts = [frame.format(state.format(class_words(name))) for state in states for frame in FRAMES]
            ids = processor.tokenizer(texts, padding=True, return_tensors="pt").input_ids.to(model.device)
            vectors = torch.nn.functional.normalize(encode_text(model.clip, ids), dim=-1)
            rows.append(torch.nn.functional.normalize(vectors.mean(0), dim=-1))
    # (classes x 2, width) -> (classes, 2, width)
    model.class_embeddings = torch.stack(rows).unflatten(0, (-1, 2)).to(model.class_embeddings)


__all__ = ["write_prompts"]

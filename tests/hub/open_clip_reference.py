"""
Write down what open_clip itself computes, for `test_convert_open_clip.py`; runs in a process of its own.

Its torchvision may not fit the installed torch. Then the two operators that its import asks for are declared; nothing
calls them.
"""

import copy
import json
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor


def import_open_clip():
    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        operators = torch.library.Library("torchvision", "FRAGMENT")
        for name in ("nms", "qnms"):
            operators.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        import torchvision  # noqa: F401

        import_open_clip.operators = operators  # they live as long as this
    import open_clip

    return open_clip


SMALL = {
    "embed_dim": 48,
    "vision_cfg": {"image_size": 32, "layers": 3, "width": 128, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 4, "layers": 2},
}
WIDE_HEADS = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 42, "layers": 2, "width": 96, "patch_size": 14, "head_width": 32, "mlp_ratio": 2.5},
    "text_cfg": {"context_length": 20, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}
MODELS = {"exact": SMALL, "quick": {**SMALL, "quick_gelu": True}, "wide": WIDE_HEADS}
FULL = "ViT-B-16-plus-240"
TEXTS = [
    "a photo of a cat",
    "ABNORMAL Metal Nut.",
    "",
    "   spaces\tand\n\nlines   ",
    "don't, can't; we're & they'll: 100% of 3.14 (or 2,718)!?",
    "Nußschale, façade, naïve, Ångström, piñata, e\u0301tude",
    "Schraube_M4x20/rev.B #12 @home *** <tag> {x} [y] ~z^ \\ | $5 = `a`",
    "日本の部品 болт винт نص 🔩🔧",
    "x" * 100,
    "transistor " * 100,
    "1234567890 a1b2c3 ½ ² Ⅷ",
    "ΔΕΛΦΟΊ İstanbul Ⱥ ẞ Ω Å",
    "हिन्दी ไทย שָׁלוֹם 한국어 부품 a\u200db\u00a0c — …",
]
MENDED = ["“curly” ‘quotes’", "cafÃ© schÃ¶n", "salt &amp; pepper &lt;b&gt;", "ＡＢＣ１２３", "eﬃcient ﬂow ǅ"]


def fill(model: torch.nn.Module, seed: int) -> None:
    """Draw every weight, so that no two of them can be exchanged unseen."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            center = 1.0 if "ln_" in name and name.endswith("weight") else 0.0
            weight.normal_(center, 0.02 if weight.ndim > 1 and weight.shape[-1] > 512 else 0.1, generator=generator)


@torch.no_grad()
def answers(model, tokens: Tensor, *, seed: int, count: int = 2) -> dict[str, Tensor]:
    side = model.visual.image_size[0]
    pixels = torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(seed))
    model.eval().visual.output_tokens = True
    image, patches = model.visual(pixels)  # patches after the last LayerNorm, not projected
    block = model.visual.forward_intermediates(pixels, indices=[1], output_fmt="NLC", intermediates_only=True)
    found = {
        "pixels": pixels,
        "tokens": tokens,
        "image": image,
        "patches": patches,
        "block": block["image_intermediates"][0],
        "text": model.encode_text(tokens),
        "scale": model.logit_scale.exp(),
    }
    return {name: tensor.contiguous() for name, tensor in found.items()}


def main(folder: Path) -> None:
    open_clip = import_open_clip()
    tokenizer = open_clip.SimpleTokenizer()
    for seed, (name, config) in enumerate(MODELS.items()):
        model = open_clip.CLIP(**copy.deepcopy(config))
        fill(model, seed)
        (folder / f"{name}.json").write_text(json.dumps(config), encoding="utf-8")
        save_file(model.state_dict(), folder / f"{name}.safetensors")
        length = config["text_cfg"]["context_length"]
        save_file(answers(model, tokenizer(TEXTS, length), seed=seed), folder / f"{name}.answers")
    published = {name: open_clip.get_model_config(name) for name in sys.argv[2:]}
    with torch.device("meta"):
        models = {name: open_clip.CLIP(**copy.deepcopy(config)) for name, config in published.items()}
    shapes = {name: {key: list(value.shape) for key, value in m.state_dict().items()} for name, m in models.items()}
    (folder / "published.json").write_text(json.dumps({"configs": published, "shapes": shapes}), encoding="utf-8")
    ids = {text: [49406, *tokenizer.encode(text), 49407] for text in TEXTS}
    mended = {text: [tokenizer.clean_fn(text), tokenizer.encode(text)] for text in MENDED}
    (folder / "texts.json").write_text(json.dumps({"ids": ids, "mended": mended}), encoding="utf-8")
    # resized to 32 x 40; with an odd margin the two crops would lie a pixel apart
    noise = np.random.default_rng(0).integers(256, size=(41, 52, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "photograph.png")
    prepare = open_clip.image_transform(SMALL["vision_cfg"]["image_size"], is_train=False)
    save_file({"pixels": prepare(Image.fromarray(noise))}, folder / "photograph.answers")
    with torch.device("meta"):  # drawn once is enough
        full = open_clip.CLIP(**open_clip.get_model_config(FULL))
    full.to_empty(device="cpu").attn_mask = open_clip.CLIP(**copy.deepcopy(SMALL)).attn_mask
    fill(full, 9)
    full.half().float()  # so that a half-precision file holds it exactly
    torch.save({"epoch": 32, "name": FULL, "state_dict": {f"module.{k}": v.half() for k, v in full.state_dict().items()}},
               folder / "full.pt")  # fmt: skip
    save_file(answers(full, tokenizer(TEXTS[:2]), seed=9, count=1), folder / "full.answers")


if __name__ == "__main__":
    main(Path(sys.argv[1]))

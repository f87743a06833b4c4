"""
What an encoder of the memory's own costs: `python -m hub.benchmarks.encoder_rows` prints the rows alone.

A DINOv2-S/14 with random weights beside the embedded CLIP, cut after the last block that the memory takes, and all twelve
blocks of it bare as what each row is measured against. The memory holds drawn circuit boards, four of each product and their
eighth turns.
"""

import argparse
from collections.abc import Iterator

import torch
from transformers import Dinov2Config, Dinov2Model

from modeling_anople import AnoPLeModel
from modeling_anople.fitting_anople import remember
from modeling_anople.inference_anople import TiledImage

from .measuring import processor_of, row, timed
from .memory_rows import boards


SIDES, BATCHES, PRODUCTS, LIMITS = (224, 448), (1, 8), (1, 200), (1024, 4096, 0)
TARGET = 1.15
SMALL = {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6, "patch_size": 14, "image_size": 518}


def make_detector(encoder: Dinov2Model, side: int, names: list[str]) -> AnoPLeModel:
    """Build a detector on the embedded CLIP whose memory looks through the encoder, and remembers nothing yet."""
    seen = {"memory_image_mean": [0.485, 0.456, 0.406], "memory_image_std": [0.229, 0.224, 0.225]}
    model = AnoPLeModel.from_clip(
        "mini", names, memory_encoder=encoder, memory_image_size=side, memory_rotations="eighth_turns", **seen
    )
    return model.eval()


def encoder_rows(repeats: int) -> Iterator[dict]:
    """Predictions of one photograph and of eight, of one product and of 200, with memories of several sizes."""
    torch.manual_seed(0)
    encoder = Dinov2Model(Dinov2Config(**SMALL)).eval()
    for side in SIDES:
        names = [f"product {number}" for number in range(max(PRODUCTS))]
        model = make_detector(encoder, side, names)
        process = processor_of(names, side)
        images = [TiledImage.of(image, process, None) for image in boards(4, side)]
        model.config.memory_limit = 0
        remember(model, images, 0)
        whole = model.products[0].bank.vectors
        pixels = process(boards(max(BATCHES), side, seed=1))["pixel_values"]
        for limit in LIMITS:
            bank = model.products[0].bank
            bank.vectors, bank.boxes, bank.image_vectors = whole, None, [whole.shape[1]]
            if limit:
                bank.reduce(limit)
            for batch in BATCHES:
                yield _row(model, encoder, pixels[:batch], repeats, f"{side} px, batch {batch}, 1 product", limit)
        for product in list(model.products)[1:]:
            product.bank = model.products[0].bank
        pixels = pixels[:1]
        yield _row(model, encoder, pixels, repeats, f"{side} px, batch 1, {max(PRODUCTS)} products", LIMITS[-1])


def _row(model: AnoPLeModel, encoder: Dinov2Model, pixels: torch.Tensor, repeats: int, what: str, limit: int) -> dict:
    ids = torch.zeros(len(pixels), dtype=torch.long)
    pairs = timed(lambda: model(pixels, class_ids=ids), lambda: encoder(pixels), repeats)
    vectors = model.products[0].bank.size
    note = f"{vectors:,} vectors a product" + (f", `memory_limit` {limit:,}" if limit else "")
    return row(f"predict with an encoder, {what}", "all blocks of the encoder bare", pairs, TARGET, note)


@torch.inference_mode()
def main() -> None:
    """Print the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=4)
    options = parser.parse_args()
    print("| what | against | ratio | quartiles | target | |\n|---|---|---|---|---|---|")
    for entry in encoder_rows(options.repeats):
        low, high = entry["quartiles"]
        met = "met" if entry["ratio"] <= entry["target"] else "**missed**"
        print(
            f"| {entry['what']} | {entry['against']} | {entry['ratio']:.3f} | {low:.3f} - {high:.3f} | {TARGET} {met} | "
            f"{entry['note']} |",
            flush=True,
        )


if __name__ == "__main__":
    main()

"""What the tests of the model share: batches, fitted models and the comparison of answers."""

import torch
from torch import Tensor, nn

from modeling_anople import AnoPLeModel
from modeling_anople.fitting_anople import calibrate_product, remember
from modeling_anople.saving_anople import FROZEN
from modeling_anople.scoring_anople import AnoPLeOutput

from .detectors import pixel_images


def learnables(model: AnoPLeModel) -> dict[str, nn.Parameter]:
    return {name: weight for name, weight in model.named_parameters() if not name.startswith(FROZEN)}


def training_batch(model: AnoPLeModel, make_pixels) -> dict[str, Tensor]:
    """All views of two photographs: a good bolt, and a nut that is anomalous in every view."""
    views = model.config.num_views
    masks = torch.zeros(2 * views, 32, 32)
    masks[views:, 8:24, 8:24] = 1
    return {
        "pixel_values": make_pixels(2 * views),
        "class_ids": torch.tensor([0] * views + [1] * views),
        "view_ids": torch.arange(views).repeat(2),
        "mask_labels": masks,
        "noise_seeds": torch.arange(2 * views),
    }


def fill(model: AnoPLeModel, make_pixels) -> AnoPLeModel:
    """Let a model know two photographs of each class."""
    images = [pixel_images(make_pixels(2, seed=class_id)) for class_id in range(len(model.products))]
    for class_id, own in enumerate(images):
        remember(model, own, class_id)
    for class_id, own in enumerate(images):
        calibrate_product(model, own, class_id)
    return model


@torch.no_grad()
def judge(model: AnoPLeModel, make_pixels) -> AnoPLeOutput:
    return model(make_pixels(3, seed=7), class_ids=torch.tensor([0, 1, 0]))


ANSWERS = ("image_scores", "anomaly_maps", "calibrated_scores", "calibrated_maps")


def assert_same(first: AnoPLeOutput, second: AnoPLeOutput) -> None:
    for name in ANSWERS:
        assert torch.equal(first[name], second[name]), name

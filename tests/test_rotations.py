"""Copies of images: rotated ones, which the memory and training may take too, and jittered ones, which spread scores."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from modeling_anople import AnoPLeModel
from modeling_anople.fitting_anople import calibrate_product, remember
from modeling_anople.inference_anople import TiledImage
from modeling_anople.tiling_anople import jittered_copies, patch_boxes, rotated_boxes, rotated_copies
from modeling_anople.training.few_shot import FewShotDataset, ViewSettings

from .detectors import pixel_images


PATCHES = 16


def test_quarter_turns_are_exact_and_the_first_is_the_image_itself():
    pixels = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    copies = [copy for copy, _ in rotated_copies(pixels, "quarter_turns")]
    assert copies[0] is pixels and len(copies) == 4
    for number, copy in enumerate(copies):
        torch.testing.assert_close(copy, pixels.rot90(number, dims=(2, 3)), atol=1e-5, rtol=0)


def test_eighth_turns_mirror_what_lies_beyond_the_border():
    copies = [copy for copy, _ in rotated_copies(torch.ones(1, 3, 16, 16), "eighth_turns")]
    assert len(copies) == 8
    torch.testing.assert_close(torch.stack(copies), torch.ones(8, 1, 3, 16, 16))


def test_what_is_ignored_turns_with_the_image():
    masks = torch.zeros(1, 8, 8, dtype=torch.bool)
    masks[0, :2] = True
    turned = [mask[0] for _, mask in rotated_copies(torch.rand(1, 3, 8, 8), "quarter_turns", masks)]
    for number, mask in enumerate(turned):
        assert torch.equal(mask, masks[0].rot90(number, dims=(0, 1)))


def test_boxes_say_where_a_rotated_patch_lies_on_the_image():
    tiles = [(0, 0, 120, 80), (60, 0, 180, 80)]
    boxes = rotated_boxes(tiles, 4, "quarter_turns")
    exact = patch_boxes(tiles, 4)
    assert torch.equal(boxes[0], exact)
    for number in (1, 2, 3):  # patches change their places, and nothing else
        places = torch.arange(16).view(4, 4).rot90(number).flatten()
        assert torch.equal(boxes[number], exact[:, places])
    tilted = rotated_boxes(tiles, 4, "eighth_turns")[1]
    assert (tilted[..., :2] >= exact[:, 0, None, :2]).all() and (tilted[..., 2:] <= exact[:, -1, None, 2:]).all()


@torch.no_grad()
def test_a_rotated_product_is_remembered_and_the_image_can_be_left_out(make_model, make_pixels, tmp_path):
    model, pixels = make_model(memory_rotations="quarter_turns"), make_pixels(3)
    remember(model, pixel_images(pixels), 0)
    bank = model.products[0].bank
    assert bank.image_vectors == [4 * PATCHES] * 3 and bank.boxes is not None
    rotated = pixels[:1].rot90(1, dims=(2, 3))
    ids = torch.zeros(1, dtype=torch.long)
    assert model(rotated, class_ids=ids).memory_maps.max() < 1e-6
    assert model(rotated, class_ids=ids, exclude=(0, bank.vectors_of(0))).memory_maps.max() > 1e-4
    plain = make_model()
    remember(plain, pixel_images(pixels), 0)
    assert plain(rotated, class_ids=ids).memory_maps.max() > 1e-4
    torch.testing.assert_close(plain.products.prototypes(), model.products.prototypes())
    calibrate_product(model, pixel_images(pixels), 0)
    model.save_pretrained(tmp_path)
    loaded = AnoPLeModel.from_pretrained(tmp_path)
    assert torch.equal(loaded.products[0].bank.vectors, bank.vectors)
    assert torch.equal(loaded.products[0].bank.boxes, bank.boxes)


@torch.no_grad()
def test_tiles_are_rotated_each_for_itself(make_model, make_processor, photograph):
    model, processor = make_model(memory_rotations="quarter_turns", tiling="3,4"), make_processor()
    mask = np.zeros((96, 128), dtype=bool)
    mask[:20, :30] = True
    image = TiledImage.of(photograph(3).resize((128, 96)), processor, "3,4", mask)
    assert len(image.boxes) == 12  # more than are judged at once
    remember(model, [image], 0)
    bank = model.products[0].bank
    whole, rotated = len(image.boxes) * PATCHES, bank.size
    assert 3 * whole < rotated < 4 * whole
    assert (bank.boxes[:, 2] > bank.boxes[:, 0]).all() and (bank.boxes[:, 3] > bank.boxes[:, 1]).all()
    for vector in (0, 200, rotated - 1):  # the vector is of the patch that its box names
        left, top, right, bottom = bank.box_of(vector)
        assert not mask[top:bottom, left:right].all()


def test_training_may_rotate_what_it_draws():
    image = torch.randint(0, 255, (3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    views = ViewSettings(32, 1, (0.0,) * 3, (1.0,) * 3)
    plain = FewShotDataset([image], [0], views=views, anomaly=None, seed=0)
    turned = FewShotDataset([image], [0], views=views, anomaly=None, turns="quarter_turns", seed=0)
    expected = [image.float().rot90(number, dims=(1, 2)) / 255 for number in range(4)]
    seen = set()
    for number in range(12):
        torch.testing.assert_close(plain[number]["pixel_values"][0], image.float() / 255)
        found = [
            place for place, each in enumerate(expected) if F.l1_loss(turned[number]["pixel_values"][0], each) < 1e-3
        ]
        assert len(found) == 1
        seen.update(found)
        assert torch.equal(turned[number]["pixel_values"], turned[number]["pixel_values"])
    assert seen == {0, 1, 2, 3}


@pytest.mark.parametrize("kind", ["half_turns", 4])
def test_an_unknown_kind_is_refused(make_model, kind):
    with pytest.raises(ValueError, match="memory_rotations"):
        make_model(memory_rotations=kind)


def test_jittered_copies_are_the_image_moved_and_relit_a_little():
    side = 64
    rows, columns = torch.meshgrid(torch.arange(side) / side, torch.arange(side) / side, indexing="ij")
    image = torch.stack([rows, columns, rows * columns])
    copies = jittered_copies(image)
    assert copies.shape == (4, 3, side, side) and copies.isfinite().all()
    inner = slice(8, -8)
    for copy in copies:
        assert 1e-3 < float((copy - image)[:, inner, inner].abs().mean()) < 0.06
    # shifted by 2 % of the side: the ramp along each axis rises, or falls, by 0.02
    torch.testing.assert_close(copies[0, :2, inner, inner], image[:2, inner, inner] + 0.02, atol=1e-4, rtol=0)
    torch.testing.assert_close(copies[1, :2, inner, inner], image[:2, inner, inner] - 0.02, atol=1e-4, rtol=0)
    flat = jittered_copies(torch.ones(3, 8, 8))
    torch.testing.assert_close(flat.flatten(1).mean(1), torch.tensor([1.0, 1.0, 1.03, 0.97]))

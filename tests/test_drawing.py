import hashlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from modeling_anople.data.drawn_products import (
    DEFECTS,
    PRODUCTS,
    SIZED_DEFECTS,
    central_disc,
    draw_defect,
    draw_product,
    draw_sized_defect,
    find_object,
    write_dataset,
)


SIZE = 128
TEXTURES = {"woven fabric", "wooden board"}


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image, dtype=np.float64)


def tree(root: Path) -> dict[str, str]:
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return {path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def photographs() -> dict[str, list[tuple[Image.Image, np.ndarray]]]:
    return {name: [draw_product(name, np.random.default_rng(seed), SIZE) for seed in range(5)] for name in PRODUCTS}


def test_same_generator_state_same_photograph():
    for name in PRODUCTS:
        first, again = (draw_product(name, np.random.default_rng(4), 64) for _ in range(2))
        assert first[0].tobytes() == again[0].tobytes()
        assert np.array_equal(first[1], again[1])


def test_photograph_and_object_mask(photographs):
    for name, instances in photographs.items():
        for image, mask in instances:
            assert image.mode == "RGB" and image.size == (SIZE, SIZE)
            assert mask.shape == (SIZE, SIZE) and mask.dtype == bool
            assert mask.all() if name in TEXTURES else 0.1 < mask.mean() < 0.8
            assert pixels(image).std() > 10


def test_object_mask_lies_on_the_object(photographs):
    # Just inside its outline the object differs from the background just outside; a moved mask would mix the two.
    def contrast(image: Image.Image, mask: np.ndarray) -> float:
        inside = mask & ~ndimage.binary_erosion(mask, iterations=2, border_value=1)
        outside = ~mask & ndimage.binary_dilation(mask, iterations=2)
        return np.abs(pixels(image)[inside].mean(axis=0) - pixels(image)[outside].mean(axis=0)).max()

    for name in PRODUCTS.keys() - TEXTURES:
        image, mask = photographs[name][0]
        assert contrast(image, mask) > max(20, 1.5 * contrast(image, np.roll(mask, 5, axis=(0, 1))))


def test_instances_differ_but_the_product_is_recognisable(photographs):
    # The nearest other photograph in colour (mean and spread) shows the same product, for nearly all photographs.
    features, labels = [], []
    for name, instances in photographs.items():
        assert len({image.tobytes() for image, _ in instances}) == len(instances)
        for image, mask in instances:
            values = pixels(image)
            features.append([*values[mask].mean(axis=0), *values.mean(axis=(0, 1)), *values.std(axis=(0, 1))])
            labels.append(name)
    distances = np.linalg.norm(np.array(features)[:, None] - np.array(features)[None], axis=2)
    np.fill_diagonal(distances, np.inf)
    nearest = np.array(labels)[distances.argmin(axis=1)]
    assert (nearest == np.array(labels)).mean() >= 0.9


@pytest.mark.parametrize("kind", DEFECTS)
@pytest.mark.parametrize("name", PRODUCTS)
def test_defect_mask_is_exact_and_visible(photographs, name, kind):
    image, object_mask = photographs[name][0]
    defective, mask = draw_defect(kind, image, object_mask, np.random.default_rng(11))
    change = np.abs(pixels(defective) - pixels(image))
    assert mask.dtype == bool and mask.shape == object_mask.shape
    assert 0.0002 < mask.mean() < 0.3
    assert not change[~mask].any()  # no pixel outside the mask moved
    assert change[mask].max(axis=1).mean() > 12  # sensor noise is about 2 grey levels
    assert (change[mask].max(axis=1) > 0).mean() > 0.95  # the mask holds changed pixels only, but for pinholes
    near = ndimage.binary_dilation(object_mask, iterations=SIZE // 16)
    assert near[mask].mean() > 0.7  # on the object, but for a piece or a hair that juts out


@pytest.mark.parametrize("kind", DEFECTS)
def test_defects_vary_and_are_no_rectangles(photographs, kind):
    image, object_mask = photographs["bottle cap"][1]
    masks = [draw_defect(kind, image, object_mask, np.random.default_rng(seed))[1] for seed in range(6)]
    assert len({mask.tobytes() for mask in masks}) == len(masks)
    fill = [mask[box].mean() for mask in masks for box in ndimage.find_objects(mask.astype(int))]
    assert np.mean(fill) < 0.9


def test_same_generator_state_same_defect(photographs):
    image, object_mask = photographs["gear"][0]
    for kind in DEFECTS:
        first, again = (draw_defect(kind, image, object_mask, np.random.default_rng(2)) for _ in range(2))
        assert first[0].tobytes() == again[0].tobytes()
        assert np.array_equal(first[1], again[1])


def test_missing_part_shows_the_background(photographs):
    image, object_mask = photographs["capsule"][0]
    defective, mask = draw_defect("missing part", image, object_mask, np.random.default_rng(5))
    before, after = pixels(image), pixels(defective)
    background = np.median(before[~object_mask], axis=0)
    hole = ndimage.binary_erosion(mask & object_mask, iterations=2)
    assert hole.any()
    far, near = (np.abs(values[hole].mean(axis=0) - background).mean() for values in (before, after))
    assert near < 0.5 * far


def test_defect_on_an_oblong_photograph(photographs):
    image, object_mask = photographs["circuit board"][0]
    oblong = image.crop((0, 20, SIZE, SIZE - 24))
    for kind in DEFECTS:
        defective, mask = draw_defect(kind, oblong, object_mask[20 : SIZE - 24], np.random.default_rng(0))
        assert defective.size == oblong.size and mask.shape == (SIZE - 44, SIZE) and mask.any()


def test_refusals_name_the_value_and_the_remedy(photographs):
    image, object_mask = photographs["capsule"][0]
    generator = np.random.default_rng(0)
    with pytest.raises(ValueError, match="'teapot'.*'gear'"):
        draw_product("teapot", generator)
    with pytest.raises(ValueError, match="8 pixels"):
        draw_product("gear", generator, 8)
    with pytest.raises(ValueError, match="'dent'.*'scratch'"):
        draw_defect("dent", image, object_mask, generator)
    with pytest.raises(ValueError, match="match them"):
        draw_defect("scratch", image, object_mask[:-1], generator)
    with pytest.raises(ValueError, match="0 pixels"):
        draw_defect("scratch", image, np.zeros_like(object_mask), generator)


def test_write_dataset_layout(tmp_path):
    write_dataset(tmp_path / "drawn", 3, classes=["wire mesh", "gear"], train=2, good=1, defective=8, size=64)
    root = tmp_path / "drawn"
    assert {path.name for path in root.iterdir()} == {"wire_mesh", "gear"}
    for folder in root.iterdir():
        assert sorted(path.name for path in (folder / "train" / "good").iterdir()) == ["000.png", "001.png"]
        kinds = {path.name for path in (folder / "test").iterdir()}
        assert kinds == {"good", *(kind.replace(" ", "_") for kind in DEFECTS)}
        defective = [path for path in (folder / "test").rglob("*.png") if path.parent.name != "good"]
        assert len(defective) == 8 and len(list((folder / "test" / "good").iterdir())) == 1
        for path in defective:
            mask = Image.open(folder / "ground_truth" / path.parent.name / f"{path.stem}_mask.png")
            assert mask.mode == "L" and mask.size == Image.open(path).size == (64, 64)
            assert set(np.unique(mask)) == {0, 255}
        assert len(list((folder / "ground_truth").rglob("*.png"))) == len(defective)


def test_write_dataset_same_seed_same_bytes(tmp_path):
    numbers = {"train": 1, "good": 1, "defective": 6, "size": 64}
    write_dataset(tmp_path / "a", 3, **numbers)
    write_dataset(tmp_path / "b", np.random.default_rng(3), **numbers)
    write_dataset(tmp_path / "c", 3, classes=["capsule"], **numbers)
    write_dataset(tmp_path / "d", 4, classes=["capsule"], **numbers)
    whole = tree(tmp_path / "a")
    assert whole == tree(tmp_path / "b")
    part = tree(tmp_path / "c")
    assert part == {path: value for path, value in whole.items() if path.startswith("capsule/")}
    other = tree(tmp_path / "d")
    assert part.keys() == other.keys()
    assert not set(part.values()) & set(other.values())
    assert len(set(whole.values())) == len(whole)  # no photograph or mask occurs twice


def test_write_dataset_refuses_a_folder_in_use(tmp_path):
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(FileExistsError, match="not empty"):
        write_dataset(tmp_path, 0, classes=["gear"], train=1, good=0, defective=0, size=64)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    with pytest.raises(ValueError, match="teapot"):
        write_dataset(tmp_path / "new", 0, classes=["gear", "teapot"])
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("kind", SIZED_DEFECTS)
def test_a_sized_defect_has_its_size_and_contrast_and_stays_where_it_may(photographs, kind):
    image, object_mask = photographs["woven fabric"][0]
    allowed = np.zeros_like(object_mask)
    allowed[20:100, 30:110] = True
    for size in (8, 24):
        defect, pictures = draw_sized_defect(
            kind, image, allowed, np.random.default_rng(3), size=size, contrasts=(0.05, 0.15)
        )
        rows, columns = np.nonzero(defect.mask)
        assert 0.75 * size <= max(np.ptp(rows), np.ptp(columns)) + 1 <= size + 1
        for contrast, picture in zip((0.05, 0.15), pictures, strict=True):
            if picture is None:  # white or black itself
                continue
            change = np.abs(pixels(picture) - pixels(image)).max(axis=2)
            assert not change[~allowed].any()
            left, top, right, bottom = defect.box
            seen = change[top:bottom, left:right][defect.mask].mean() / 255
            assert 0.8 * contrast <= seen <= 1.05 * contrast
    with pytest.raises(ValueError, match="No 'scratch' of 2 pixels can be seen"):
        draw_sized_defect("scratch", image, allowed, np.random.default_rng(3), size=2, contrasts=(0.05,))


def test_the_object_is_found_where_one_stands_out_and_is_the_middle_otherwise(photographs):
    for name, share in (("bottle cap", 0.9), ("gear", 0.7)):
        image, object_mask = photographs[name][0]
        found = find_object(image)
        assert (found & object_mask).sum() >= share * (found | object_mask).sum(), name
    fabric = find_object(photographs["woven fabric"][0][0])
    assert np.array_equal(fabric, central_disc(*fabric.shape))

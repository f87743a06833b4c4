"""Pictures: the colour scale stays fixed to the line, photographs stay visible, pages stay safe and complete."""

import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFont

from modeling_anople.runtime import heat_maps as vis


ALL_SCORES = np.linspace(0, 1, 1001, dtype=np.float32)[None]  # one row, (1, 1001)


def warmth(colours: np.ndarray) -> np.ndarray:
    return colours[..., 0].astype(int) - colours[..., 2]


def photograph(width: int = 60, height: int = 40, *, mode: str = "RGB") -> Image.Image:
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(noise).convert(mode)


def one_hot_map(width: int = 60, height: int = 40, *, score: float = 1.0) -> np.ndarray:
    """A normal map with one hot rectangle, rows 10..19 and columns 20..34."""
    scores = np.zeros((height, width), dtype=np.float32)
    scores[10:20, 20:35] = score
    return scores


def picture_of(row: Image.Image, column: int, *, width: int) -> np.ndarray:
    """Cut the photograph (0), ground truth (1) or heat map (2) out of a panel."""
    left, top = vis.GAP + column * (width + vis.GAP), vis.PANEL_TEXT_HEIGHT
    return np.asarray(row.crop((left, top, left + width, top + vis.PICTURE_HEIGHT)))


def test_equal_values_get_equal_colours_whatever_the_rest_of_the_map():
    for score in (0.0, 0.2, 0.49, 0.51, 0.9):
        calm, wild = np.full((2, 2), score), np.array([[score, 0.0], [1.0, 0.7]])
        assert (vis.colorize(calm)[0, 0] == vis.colorize(wild)[0, 0]).all()


def test_scale_is_cool_up_to_the_line_and_warm_above_it():
    colours = vis.colorize(ALL_SCORES)[0]
    assert colours.dtype == np.uint8 and colours.shape == (1001, 3)
    cool = ALL_SCORES[0] <= 0.5
    assert warmth(colours[cool]).max() < 0 and warmth(colours[~cool]).min() > 150
    assert (np.diff(warmth(colours)) >= -1).all()  # one step of rounding


def test_line_itself_is_normal_and_the_next_number_is_not():
    at_line, above = vis.colorize(np.array([[0.5, np.nextafter(np.float32(0.5), np.float32(1))]]))[0]
    assert warmth(at_line) < 0 < warmth(above)


def test_lightness_rises_to_the_line_and_falls_beyond_it():
    lightness = np.asarray(Image.fromarray(vis.colorize(ALL_SCORES)).convert("L"))[0].astype(int)
    cool = ALL_SCORES[0] <= 0.5
    assert (np.diff(lightness[cool]) >= 0).all() and np.ptp(lightness[cool]) > 120
    assert (np.diff(lightness[~cool]) <= 0).all() and np.ptp(lightness[~cool]) > 100


def test_maps_that_are_not_calibrated_maps_are_refused():
    for scores in ([[0.25, 3.5]], [[-0.1, 0.5]], [[0.1, np.nan]]):
        with pytest.raises(ValueError, match=f"from .* to {scores[0][1]}: give calibrated"):
            vis.colorize(scores)
    for shape in ((1, 4, 4), (0, 4)):
        with pytest.raises(ValueError, match=re.escape(str(shape))):
            vis.colorize(np.zeros(shape))


def test_overlay_keeps_the_photograph_where_the_map_is_zero():
    photo = photograph()
    changed = (np.asarray(vis.overlay(photo, one_hot_map())) != np.asarray(photo)).any(axis=-1)
    assert changed[10:20, 20:35].mean() > 0.95
    changed[8:22, 18:37] = False  # the region and its outline
    assert not changed.any()


def test_opacity_grows_with_the_score_and_jumps_at_the_line():
    dark, light = (Image.new("RGB", (1001, 1), colour) for colour in ("black", "white"))
    seen = [np.asarray(vis.overlay(photo, ALL_SCORES, outline=False)).astype(int)[0, :, 1] for photo in (dark, light)]
    opacity = 1 - (seen[1] - seen[0]) / 255
    assert (np.diff(opacity) >= -1.5 / 255).all()
    assert opacity[0] == 0 and opacity[499] < 0.2 < 0.45 < opacity[502]
    assert opacity[-1] == pytest.approx(0.55, abs=0.01)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I", "F", "I;16"])
def test_overlay_takes_any_mode_and_keeps_the_size(mode):
    photo = photograph(mode="L").convert(mode) if mode == "I;16" else photograph(mode=mode)
    before = photo.tobytes()
    picture = vis.overlay(photo, one_hot_map())
    assert picture.mode == "RGB" and picture.size == (60, 40)
    assert photo.tobytes() == before


def test_sixteen_bit_photographs_are_not_clipped():
    ramp = Image.fromarray(np.arange(0, 65536, 256, dtype=np.uint16)[None])
    seen = np.asarray(vis.overlay(ramp, np.zeros((1, 256))))[0, :, 0]
    assert (seen == np.arange(256)).all()


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (300, 7)])
def test_every_picture_can_be_drawn_for_odd_sizes(size):
    photo, scores = Image.new("L", size, 120), np.ones(size[::-1])
    assert vis.overlay(photo, scores).size == size
    row = vis.panel(photo, anomaly_map=scores, mask=scores)
    assert row.height == vis.panel(photograph(), anomaly_map=one_hot_map()).height and row.width < 1400
    assert (warmth(np.asarray(row)) > 100).any()


def test_outline_is_a_white_and_dark_line_outside_the_region_only():
    photo = Image.new("RGB", (60, 40), (90, 120, 90))
    plain, outlined = (np.asarray(vis.overlay(photo, one_hot_map(), outline=on)) for on in (False, True))
    changed = (plain != outlined).any(axis=-1)
    expected = np.zeros((40, 60), dtype=bool)
    expected[8:22, 18:37] = True
    expected[10:20, 20:35] = False
    assert (changed == expected).all()
    assert (outlined[9, 19:36] == 255).all() and outlined[8, 18:37].max() < 60


def test_outline_grows_with_the_image_and_is_absent_up_to_the_line():
    scores = np.zeros((1600, 1600), dtype=np.float32)
    scores[800:] = 1
    column = np.asarray(vis.overlay(Image.new("RGB", (1600, 1600)), scores))[:, 0, 0]
    assert (column == 255).sum() == 4
    photo, at_line = photograph(), one_hot_map(score=0.5)
    assert vis.overlay(photo, at_line).tobytes() == vis.overlay(photo, at_line, outline=False).tobytes()


def test_numbers_stand_beside_their_regions_inside_the_picture():
    boxes = [(100, 60, 140, 80), (0, 0, 20, 20), (190, 0, 200, 100), (0, 0, 200, 100)]
    for number, (left, top, right, bottom) in enumerate(boxes):
        picture = Image.new("RGB", (200, 100), "grey")
        vis.number_regions(picture, [(100, 60, 140, 80)] * number + [(left, top, right, bottom)])
        first = Image.new("RGB", (200, 100), "grey")
        vis.number_regions(first, [(100, 60, 140, 80)] * number)
        rows, columns = (np.asarray(picture) != np.asarray(first)).any(-1).nonzero()
        assert len(rows) and abs(columns.mean() - min((left + right) / 2, 193)) < 3, number
        assert rows.max() <= top if top > 20 else rows.min() >= bottom if bottom < 80 else rows.max() < 30, number


@pytest.mark.parametrize("draw", [vis.overlay, lambda photo, scores: vis.panel(photo, anomaly_map=scores)])
def test_wrong_sizes_and_opacities_are_refused(draw):
    with pytest.raises(ValueError, match=r"anomaly_map is \(60, 40\).*\(40, 60\).*resize"):
        draw(photograph(40, 60), one_hot_map(60, 40))
    with pytest.raises(ValueError, match="alpha is 1.5"):
        vis.overlay(photograph(), one_hot_map(), alpha=1.5)


@pytest.mark.parametrize("height", [64, 224, 900])
def test_legend_shows_the_scale_at_the_height_asked_for(height):
    picture = np.asarray(vis.legend(height))
    assert picture.shape[0] == height
    coloured = set(map(tuple, picture[abs(warmth(picture)) > 20]))
    assert coloured <= set(map(tuple, vis.colorize(ALL_SCORES)[0]))
    assert coloured >= set(map(tuple, vis.colorize(np.array([[0, 1]]))[0]))
    rows = np.flatnonzero((warmth(picture) > 150).any(axis=1))
    assert rows[0] < 0.25 * height and abs(rows[-1] - height / 2) < 3  # warm from the top down to the line


def test_legend_makes_room_for_its_label_and_refuses_unreadable_heights():
    assert vis.legend(224, line_label="decision line\nof bottle").width > vis.legend(224).width
    with pytest.raises(ValueError, match="height is 20: .*at least 64"):
        vis.legend(20)


@pytest.mark.parametrize("size", [(60, 40), (1, 1), (30, 500)])
def test_with_legend_keeps_the_picture_and_adds_a_bar_at_its_right(size):
    photo = photograph(*size)
    combined = vis.with_legend(photo)
    assert combined.size == (photo.width + vis.legend(combined.height).width, max(photo.height, 64))
    assert combined.crop((0, 0, *size)).tobytes() == photo.tobytes()


@pytest.mark.parametrize("size", [(60, 40), (1, 1), (600, 400)])
def test_a_band_stands_below_the_picture_and_holds_all_that_is_said(size):
    photo, said = photograph(*size), "score 0.87, line 0.50, 3 regions above it"
    bands = [vis.with_band(vis.with_legend(photo), title, said, color="#d9480f") for title in ("gear: normal", "g")]
    for band in bands:
        assert band.width == vis.with_legend(photo).width and band.crop((0, 0, *size)).tobytes() == photo.tobytes()
        below = np.asarray(band.crop((0, vis.with_legend(photo).height, *band.size))).astype(int)
        assert (below[:, 0] == (217, 72, 15)).all()  # a bar at the left
        ink = (below.sum(axis=-1) < 3 * 90) & (warmth(below) < 50)
        assert ink.any() and not ink[:, -6:].any() and not ink[-3:].any()  # nothing is cut at an edge
    assert bands[0].tobytes() != bands[1].tobytes()


def test_letters_beyond_those_of_english_are_drawn_where_a_font_has_them():
    plain, accented = (vis.with_band(photograph(200, 60), name, "", color="red") for name in ("groo", "groß"))
    try:
        ImageFont.truetype(vis.FONTS[1], 13)
    except OSError:
        pytest.skip("no such font here")
    missing = vis.with_band(photograph(200, 60), "gro\uffff", "", color="red")
    assert len({each.tobytes() for each in (plain, accented, missing)}) == 3


def test_panel_says_in_color_whether_the_answer_was_right():
    row = {"anomaly_map": one_hot_map(), "title": "a.png", "subtitle": "score 0.9"}
    right, wrong = (
        np.asarray(vis.panel(photograph(), verdict="found", is_right=is_right, **row)) for is_right in (1, 0)
    )
    word = (slice(6, 26), slice(vis.GAP, vis.GAP + 40))
    assert (right[word][..., 1].astype(int) - right[word][..., 0]).max() > 80
    assert (wrong[word][..., 0].astype(int) - wrong[word][..., 1]).max() > 80
    assert (right[26:] == wrong[26:]).all()


def test_panel_shows_photograph_truth_and_map_side_by_side():
    photo = Image.new("RGB", (336, 224), (120, 120, 120))
    scores = np.zeros((224, 336), dtype=np.float32)
    scores[:100] = 0.9
    mask = Image.fromarray(((scores > 0) * 255).astype(np.uint8))
    row = vis.panel(photo, anomaly_map=scores, mask=mask, title="bottle", subtitle="score 0.90")
    assert row.size == (3 * 336 + 4 * vis.GAP, vis.PANEL_TEXT_HEIGHT + vis.PICTURE_HEIGHT + vis.GAP)
    seen, truth, heat = (picture_of(row, column, width=336) for column in range(3))
    assert (seen == 120).all() and (truth[110:] == 120).all() and (heat[110:] == 120).all()
    assert (truth[50, 50, 1] > truth[50, 50, [0, 2]]).all()  # a green tint: not a colour of the scale
    assert warmth(heat[50, 50]) > 50


def test_panel_says_that_there_is_no_mask():
    photo, scores = photograph(224, 224), np.zeros((224, 224))
    rows = [vis.panel(photo, anomaly_map=scores, mask=mask) for mask in (None, scores)]
    without, empty = (picture_of(row, 1, width=224) for row in rows)
    assert (empty == np.asarray(photo)).all()
    assert (without[:80] == without[0, 0]).all() and len(np.unique(without[80:144])) > 2  # text on a plain ground


def test_defect_of_one_pixel_survives_the_reduction():
    scores = np.full((1000, 1000), 0.2, dtype=np.float32)
    scores[617, 333] = 1
    row = vis.panel(Image.new("RGB", (1000, 1000), "gray"), anomaly_map=scores, mask=scores > 0.5)
    assert (warmth(picture_of(row, 2, width=224)) > 50).sum() == 1
    truth = picture_of(row, 1, width=224).astype(int)
    assert (truth[..., 1] - truth[..., 0] > 40).sum() == 1


def test_good_part_gets_no_warm_colour():
    scores = np.random.default_rng(1).uniform(0, 0.5, (224, 224)).astype(np.float32)
    row = vis.panel(Image.new("RGB", (224, 224), "gray"), anomaly_map=scores)
    assert warmth(np.asarray(row)).max() <= 0


@pytest.mark.parametrize("title", ["日本 ü \U0001f600", "two\nlines", "broken \udcff name", "very long " * 200, ""])
def test_any_title_fits_and_changes_nothing_but_text(title):
    plain = vis.panel(photograph(), anomaly_map=one_hot_map())
    row = vis.panel(photograph(), anomaly_map=one_hot_map(), title=title, subtitle=title)
    assert row.size == plain.size
    changed = (np.asarray(row) != np.asarray(plain)).any(axis=-1)
    assert changed.any() == bool(title)
    assert not changed[46:].any() and not changed[:, -vis.GAP :].any()


def test_mask_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"mask is \(8, 9\).*\(60, 40\)"):
        vis.panel(photograph(), anomaly_map=one_hot_map(), mask=np.ones((9, 8)))


def test_contact_sheet_stacks_rows_with_one_legend():
    rows = [vis.panel(photograph(*size), anomaly_map=one_hot_map(*size)) for size in ((60, 40), (40, 60), (60, 60))]
    sheet = vis.contact_sheet(rows, title="bottle")
    assert sheet.width == max(row.width for row in rows) + vis.legend(vis.PICTURE_HEIGHT).width
    top = sheet.height - sum(row.height + 1 for row in rows)
    for row in rows:
        assert sheet.crop((0, top + 1, row.width, top + 1 + row.height)).tobytes() == row.tobytes()
        top += row.height + 1
    right = np.asarray(sheet)[:, max(row.width for row in rows) :]
    legend_rows = np.flatnonzero((right != 255).any(axis=(1, 2)))
    assert legend_rows[-1] - legend_rows[0] < vis.PICTURE_HEIGHT


def test_contact_sheet_of_one_low_row_holds_the_legend_and_none_is_refused():
    assert vis.contact_sheet([photograph()]).height > vis.PICTURE_HEIGHT
    with pytest.raises(ValueError, match="rows is empty"):
        vis.contact_sheet([])


class Page(HTMLParser):
    """What a browser would see: tags with attributes, and table cells."""

    def __init__(self, index: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.cells: list[str] = []
        self.feed(index.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_data(self, data: str) -> None:
        if self.cells and self.tags[-1][0] in ("td", "th"):
            self.cells[-1] += data.strip()


def test_gallery_writes_one_picture_per_class_and_a_page_that_finds_them(tmp_path):
    names = ["bottle", "Bottle", "a/b", "a b", "../../x", "日本", "", "CON", "n" * 300, "bad \udcff"]
    sheets = {name: photograph(20 + number, 10) for number, name in enumerate(names)}
    index = vis.write_gallery(tmp_path / "new" / "gallery", sheets, summary_rows=[], title="All")
    assert index == tmp_path / "new" / "gallery" / "index.html"
    images = [attrs for tag, attrs in Page(index).tags if tag == "img"]
    assert len({image["src"].lower() for image in images}) == len(names)
    for image, sheet in zip(images, sheets.values(), strict=True):
        assert re.fullmatch(r"[A-Za-z0-9-]{1,70}\.png", image["src"])
        assert Image.open(index.parent / image["src"]).size == sheet.size
        assert (int(image["width"]), int(image["height"])) == sheet.size
        assert "heat map" in image["alt"]
    assert {path.parent for path in tmp_path.rglob("*") if path.is_file()} == {index.parent}


def test_gallery_escapes_every_text(tmp_path):
    bad = '<script>alert("{x}")</script>'
    rows = [{"class": bad, bad: 1.0}]
    page = vis.write_gallery(tmp_path, {bad: photograph()}, summary_rows=rows, title=bad, notes=bad)
    text = page.read_text(encoding="utf-8")
    assert "<script" not in text and text.count("&lt;script&gt;") >= 7
    assert any(attrs.get("alt", "").startswith(bad) for _, attrs in Page(page).tags)


def test_summary_table_shows_percent_counts_and_missing_values(tmp_path):
    rows = [
        {"class": "bottle", "images": 83, "image_auroc": 0.97345, "pixel_ap": np.float32(0.5), "threshold": 0.123456},
        {"class": "grid", "images": 0, "image_auroc": None, "pixel_ap": float("nan"), "f1_max": 1.0, "gap": 0.5},
    ]
    cells = Page(vis.write_gallery(tmp_path, {}, summary_rows=rows, title="T")).cells
    assert cells[:7] == ["class", "images", "image_auroc", "pixel_ap", "threshold", "f1_max", "gap"]
    assert cells[7:14] == ["bottle", "83", "97.3%", "50.0%", "0.1235", "n/a", "n/a"]
    assert cells[14:] == ["grid", "0", "n/a", "n/a", "n/a", "100.0%", "0.5"]


def test_columns_have_words_that_are_explained(tmp_path):
    words = {"found_rate": ("found", "of the <bad>"), "class": ("product", "a row"), "absent": ("absent", "not here")}
    rows = [{"class": "bottle", "found_rate": 0.5, "seconds": 2}]
    sentences = {"bottle": "Of 2 <bad> ones 1 was found."}
    page = vis.write_gallery(
        tmp_path, {"bottle": photograph()}, summary_rows=rows, title="T", words=words, sentences=sentences
    )
    assert Page(page).cells == ["found", "product", "seconds", "50.0%", "bottle", "2"]
    text = page.read_text("utf-8")
    assert "<dt>found</dt><dd>of the &lt;bad&gt;</dd><dt>product</dt>" in text and "absent" not in text
    assert "<p>Of 2 &lt;bad&gt; ones 1 was found.</p>" in text


def test_page_is_self_contained_and_suits_phones_and_dark_mode(tmp_path):
    page = vis.write_gallery(tmp_path, {"a": photograph()}, summary_rows=[{"class": "a"}], title="T")
    text = page.read_text("utf-8")
    assert not re.search(r"https?:|//|@import|url\(|<script|<link", text)
    assert "width=device-width" in text and "prefers-color-scheme: dark" in text
    assert "{{" not in text and text.count("{") == text.count("}")
    assert "<table" not in vis.write_gallery(tmp_path, {}, summary_rows=[], title="T").read_text("utf-8")

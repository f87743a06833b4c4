"""Pictures of calibrated anomaly maps, on a color scale that is fixed to the decision line.

A calibrated map is a float array (height, width) in [0, 1]; 0.5 is its product's decision line, and only values above
it are anomalous. Colors never depend on the other values of a map: a good part stays pale and pictures compare.
"""

import contextlib
import html
import numbers
import re
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType

import numpy as np
from PIL import Image, ImageColor, ImageDraw, ImageFont


LINE = 0.5
PICTURE_HEIGHT, PANEL_TEXT_HEIGHT, GAP = 224, 64, 12  # pixels, of a gallery row
MIN_PICTURE_WIDTH, MAX_PICTURE_WIDTH = 128, 448  # the lower leaves room for the caption of a narrow picture
MIN_LEGEND_HEIGHT = 64
# Fonts of Linux, Windows and macOS with more letters than Pillow's own, which has those of English.
FONTS = (
    "NotoSansCJK-Regular.ttc",
    "DejaVuSans.ttf",
    "NotoSans-Regular.ttf",
    "arialuni.ttf",
    "arial.ttf",
    "Arial Unicode.ttf",
)
SAMPLES = "samples"  # folder of a gallery with single pictures, and the name of their list
# 256 levels: 0..127 up to the line (blue to near white), 128..255 above it (amber to red). Lightness rises to the line
# and falls beyond it, so the scale can also be read with color-blind eyes.
_STOPS = {0: "#0a288c", 64: "#4076ba", 102: "#96b8d4", 127: "#e2e7e9", 128: "#ffc846", 192: "#fa7d23", 255: "#da1002"}
_STOP_COLOURS = np.array([ImageColor.getrgb(color) for color in _STOPS.values()])  # (stop, channel)
_COLOURS = np.stack([np.interp(range(256), list(_STOPS), channel) for channel in _STOP_COLOURS.T], axis=-1)
_COLOURS = _COLOURS.round().astype(np.uint8)  # (level, channel)
# Share of the overlay's opacity at each level: normal regions leave the photograph visible.
_OPACITY = np.interp(range(256), (0, 64, 127, 128, 255), (0.0, 0.06, 0.3, 0.9, 1.0))
WHITE, INK, GREY, _RULE, _PAPER = "#ffffff", "#1c2026", "#686e76", "#d5dade", "#f2f4f6"
RIGHT, WRONG = "#00704f", "#b3261e"  # of words: an answer that was right, or wrong
_TRUTH = "#00be96"  # the ground-truth tint, a color that the scale does not use


def colorize(anomaly_map: np.ndarray) -> np.ndarray:
    """Return the colors of a calibrated anomaly map, as uint8 (height, width, 3).

    Equal values get equal colors in every map; values up to 0.5 are blue to near white, values above it amber to red.
    Raises ValueError for a map that is not two-dimensional, is empty, or leaves [0, 1].
    """
    return _COLOURS[_levels(_checked(anomaly_map))]


def overlay(image: Image.Image, anomaly_map: np.ndarray, *, alpha: float = 0.55, outline: bool = True) -> Image.Image:
    """Lay a calibrated anomaly map over its photograph; returns an RGB image of the photograph's size.

    Opacity grows with the score, from 0 at score 0 to `alpha` at score 1, with a jump at the line. `outline` draws a
    thin line around the regions above 0.5. Raises ValueError where the map's size is not the photograph's (upright, as
    the map sees it), or where `alpha` leaves [0, 1].
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha is {alpha}: give an opacity between 0 (photograph only) and 1 (map only).")
    photograph = _to_rgb(image)
    scores = _checked(anomaly_map, size=photograph.size)
    levels = _levels(scores)
    opacity = (alpha * 255 * _OPACITY).round().astype(np.uint8)[levels]
    picture = Image.composite(Image.fromarray(_COLOURS[levels]), photograph, Image.fromarray(opacity))
    if outline:
        _draw_outline(picture, scores > LINE)
    return picture


def number_regions(picture: Image.Image, boxes: Sequence[tuple[float, float, float, float]]) -> None:
    """Write 1, 2, 3, ... beside boxes (left, top, right, bottom) of a picture, in place; the first on top."""
    draw, size = ImageDraw.Draw(picture), max(12, round((picture.width * picture.height) ** 0.5 / 28))
    font, edge = ImageFont.load_default(size), max(1, size // 8)
    for number, (left, top, right, bottom) in reversed([*enumerate(boxes, start=1)]):
        width = font.getlength(str(number))
        x = min(max((left + right - width) / 2, edge), picture.width - width - edge)
        above, below = top - 1.4 * size, bottom + 0.2 * size
        y = above if above >= 0 else below if below + 1.2 * size <= picture.height else edge
        draw.text((x, y), str(number), font=font, fill=WHITE, stroke_width=edge, stroke_fill=INK)


def legend(height: int, *, line_label: str = "line") -> Image.Image:
    """Draw the color scale as a vertical bar of `height` pixels with ticks at 0, 0.5 (`line_label`) and 1.

    Raises ValueError for a height below 64 pixels, where the labels would overlap.
    """
    if height < MIN_LEGEND_HEIGHT:
        raise ValueError(f"height is {height}: a legend needs at least {MIN_LEGEND_HEIGHT} pixels.")
    size = max(12, round(height / 28))  # of the font, and of all distances
    labels = {1.0: "1", LINE: _one_line(f"0.5 {line_label}"), 0.0: "0"}
    room = max(ImageFont.load_default(size).getlength(label) for label in labels.values())
    left, right, tick, top, bottom = size, round(2.2 * size), size // 3, size, height - 1 - size
    canvas = Image.new("RGB", (right + 2 * tick + int(room) + size, height), WHITE)
    scale = np.tile(np.linspace(1, 0, bottom - top + 1)[:, None], right - left)  # 1 at the top
    canvas.paste(Image.fromarray(colorize(scale)), (left, top))
    draw = ImageDraw.Draw(canvas)
    for value, label in labels.items():
        y, start = round(bottom + (top - bottom) * value), left if value == LINE else right
        draw.line([(start, y), (right + tick, y)], fill=INK, width=max(1, size // 12))
        write_line(draw, (right + 2 * tick, y), label, size=size, anchor="lm")
    return canvas


def with_legend(image: Image.Image) -> Image.Image:
    """Return the picture with the legend at its right; pictures lower than 64 pixels are padded with white below."""
    bar = legend(max(image.height, MIN_LEGEND_HEIGHT))
    canvas = Image.new("RGB", (image.width + bar.width, bar.height), WHITE)
    canvas.paste(_to_rgb(image), (0, 0))
    canvas.paste(bar, (image.width, 0))
    return canvas


def with_band(picture: Image.Image, title: str, text: str, *, color: str) -> Image.Image:
    """Return the picture with a title and a text in a white band below it, wrapped to its width, behind a bar of `color`."""
    size = max(13, round((picture.width * picture.height) ** 0.5 / 26))  # of the title's font, and of all distances
    left, right = size, picture.width - size // 2
    lines = [(line, size) for line in _wrapped(title, size, right - left)]
    lines += [(line, max(12, round(0.8 * size))) for line in _wrapped(text, max(12, round(0.8 * size)), right - left)]
    height = sum(round(1.3 * each) for _, each in lines) + size
    canvas = Image.new("RGB", (picture.width, picture.height + height), WHITE)
    canvas.paste(_to_rgb(picture), (0, 0))
    draw, top = ImageDraw.Draw(canvas), picture.height + size // 2
    draw.rectangle((0, picture.height, max(2, size // 3), canvas.height), fill=color)
    for line, each in lines:
        write_line(draw, (left, top), line, size=each, room=right - left)
        top += round(1.3 * each)
    return canvas


def panel(
    image: Image.Image,
    *,
    anomaly_map: np.ndarray,
    mask: Image.Image | np.ndarray | None = None,
    verdict: str = "",
    is_right: bool = True,
    title: str = "",
    subtitle: str = "",
) -> Image.Image:
    """Draw one gallery row: photograph, ground truth and heat map side by side, under a title and a subtitle.

    `verdict` stands before the title, green where it `is_right` and else red. `mask` marks the true defect with non-zero pixels; None shows "no mask". Pictures are 224 pixels high unless that
    makes them wider than 448; reduction keeps the largest score, so a defect of a few pixels stays visible. Raises
    ValueError where the map or the mask has another size than the photograph.
    """
    photograph = _to_rgb(image)
    scores = _checked(anomaly_map, size=photograph.size)
    scale = min(PICTURE_HEIGHT / photograph.height, MAX_PICTURE_WIDTH / photograph.width)
    size = (max(1, round(photograph.width * scale)), max(1, round(photograph.height * scale)))
    small, truth = photograph.resize(size, Image.Resampling.LANCZOS), None
    if mask is not None:
        truth = _ground_truth(small, _checked(np.asarray(mask) != 0, name="mask", size=photograph.size))
    heat_map = overlay(small, _resize_scores(scores, size))
    cell = max(size[0], MIN_PICTURE_WIDTH)
    canvas = Image.new("RGB", (3 * cell + 4 * GAP, PANEL_TEXT_HEIGHT + PICTURE_HEIGHT + GAP), WHITE)
    draw = ImageDraw.Draw(canvas)
    begin = GAP
    if verdict:
        write_line(draw, (begin, 6), verdict, size=15, fill=RIGHT if is_right else WRONG)
        begin += round(ImageFont.load_default(15).getlength(verdict)) + GAP
    write_line(draw, (begin, 6), title, size=15, room=canvas.width - begin - GAP)
    write_line(draw, (GAP, 26), subtitle, size=12, fill=GREY, room=canvas.width - 2 * GAP)
    true = "no defect" if mask is not None and not np.any(mask) else "true defect, green"
    columns = (("photograph", small), (true, truth), ("what the detector marks", heat_map))
    for left, (caption, picture) in zip(range(GAP, canvas.width, cell + GAP), columns, strict=False):
        write_line(draw, (left, 46), caption, size=12, fill=GREY)
        _place(canvas, picture, (left, PANEL_TEXT_HEIGHT, left + cell, PANEL_TEXT_HEIGHT + PICTURE_HEIGHT))
    return canvas


def contact_sheet(rows: Sequence[Image.Image], *, title: str = "") -> Image.Image:
    """Stack panels under one header, with one legend at the right; raises ValueError where there are no rows."""
    if not rows:
        raise ValueError("rows is empty: give at least one panel.")
    bar, top, width = legend(PICTURE_HEIGHT), 44, max(row.width for row in rows)
    height = max(sum(row.height + 1 for row in rows), PANEL_TEXT_HEIGHT + bar.height)
    canvas = Image.new("RGB", (width + bar.width, top + height), WHITE)
    canvas.paste(bar, (width, top + PANEL_TEXT_HEIGHT))
    draw = ImageDraw.Draw(canvas)
    write_line(draw, (GAP, 12), title, size=20, room=canvas.width - 2 * GAP)
    for row in rows:
        draw.line([(GAP, top), (width - GAP, top)], fill=_RULE)
        canvas.paste(_to_rgb(row), (0, top + 1))
        top += row.height + 1
    return canvas


def write_gallery(
    directory: str | Path,
    sheets: dict[str, Image.Image],
    *,
    summary_rows: list[dict],
    title: str,
    notes: str = "",
    words: Mapping[str, tuple[str, str]] = MappingProxyType({}),
    sentences: Mapping[str, str] = MappingProxyType({}),
) -> Path:
    """Write one PNG per class and an index.html with the summary table; returns the path of the index.

    `sheets` maps class names to pictures, `sentences` to what is said above them. `words` has, for a key of the table, the
    head of its column and what it means; those come first, in its order. The keys of `summary_rows` are the table's columns: fractions under a name
    that ends with auroc, aupro, ap, f1_max or rate are shown as percent, None and NaN as n/a. All text is escaped.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    sections = []
    for number, (name, sheet) in enumerate(sheets.items(), start=1):
        slug = re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-")[:60] or "class"
        file_name = f"{number:02d}-{slug}.png"  # the number separates names that differ in case or signs only
        sheet.save(directory / file_name)
        said = html.escape(sentences.get(name, ""))
        sections.append(_SECTION.format(name=html.escape(name), said=said, file_name=file_name, sheet=sheet))
    title, notes, table = html.escape(title), html.escape(notes), _table(summary_rows, words)
    used = {name: each for name, each in words.items() if any(name in row for row in summary_rows)}
    page = _PAGE.format(title=title, notes=notes, table=table, meanings=_meanings(used), sections="\n".join(sections))
    index = directory / "index.html"
    index.write_text(page, encoding="utf-8", errors="replace")  # lone surrogates of undecodable names
    return index


def _checked(values: np.ndarray, *, name: str = "anomaly_map", size: tuple[int, int] | None = None) -> np.ndarray:
    """Return a map or a mask as float32 (height, width), or raise; `size` is the photograph's (width, height)."""
    scores = np.asarray(values, dtype=np.float32)
    if scores.ndim != 2 or scores.size == 0:
        raise ValueError(f"{name} has shape {scores.shape}: give one channel as (height, width).")
    low, high = scores.min(), scores.max()
    if not (low >= 0 and high <= 1):  # NaN too
        raise ValueError(f"{name} runs from {low} to {high}: give calibrated scores in [0, 1] with the line at 0.5.")
    if size is not None and scores.shape[::-1] != size:
        sizes = f"is {scores.shape[::-1]} pixels (width, height) but the photograph {size}"
        raise ValueError(f"{name} {sizes}: resize the {name} to the photograph first.")
    return scores


def _to_rgb(image: Image.Image) -> Image.Image:
    """Convert any mode to RGB; 16-bit grey keeps its full range, which `convert` alone would clip at 255."""
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return image.convert("RGB")


def _levels(scores: np.ndarray) -> np.ndarray:
    """Return each score's level in the tables: 0.5 itself is the last cool level, anything above it is warm."""
    return np.clip(np.ceil(scores * 256) - 1, 0, 255).astype(np.uint8)


def _resize_scores(scores: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Reduce to the maximum of each block, or enlarge by repeating pixels."""
    columns, rows = (np.arange(new) * old // new for new, old in zip(size, scores.shape[::-1], strict=True))
    return np.maximum.reduceat(np.maximum.reduceat(scores, rows, axis=0), columns, axis=1)


def _grow(region: np.ndarray, radius: int) -> np.ndarray:
    """Dilate a boolean (height, width) region by a square of `radius` pixels, one axis after the other."""
    for _ in range(2):
        grown = region.copy()
        for step in range(1, radius + 1):
            grown[step:] |= region[:-step]
            grown[:-step] |= region[step:]
        region = np.ascontiguousarray(grown.T)
    return region


def _draw_outline(picture: Image.Image, region: np.ndarray) -> None:
    """Draw a white line with a dark edge just outside the region: it stands out on any photograph."""
    if region.any():
        width = max(1, round((picture.width * picture.height) ** 0.5 / 400))
        inner = _grow(region, width)
        picture.paste(INK, mask=Image.fromarray(_grow(inner, width) & ~inner))
        picture.paste(WHITE, mask=Image.fromarray(inner & ~region))


def _ground_truth(picture: Image.Image, mask: np.ndarray) -> Image.Image:
    region = _resize_scores(mask, picture.size) > 0
    tinted = picture.copy()
    tinted.paste(_TRUTH, mask=Image.fromarray(region * np.uint8(115)))
    _draw_outline(tinted, region)
    return tinted


def _place(canvas: Image.Image, picture: Image.Image | None, box: tuple[int, int, int, int]) -> None:
    """Centre a picture in a box of the canvas, or write "no mask" there."""
    left, top, right, bottom = box
    draw = ImageDraw.Draw(canvas)
    draw.rectangle((left - 1, top - 1, right, bottom), fill=_PAPER, outline=_RULE)
    if picture is None:
        write_line(draw, ((left + right) // 2, (top + bottom) // 2), "no mask", size=13, fill=GREY, anchor="mm")
    else:
        canvas.paste(picture, ((left + right - picture.width) // 2, (top + bottom - picture.height) // 2))


def _one_line(text: str) -> str:
    """Join lines, and replace the lone surrogates of undecodable file names, which cannot be drawn."""
    return " ".join(text.encode("utf-8", "replace").decode("utf-8").split())


@lru_cache(maxsize=64)
def _font(size: int, is_plain: bool) -> ImageFont.FreeTypeFont:
    """Return Pillow's own font, or for letters that it lacks one of the machine's, where there is one."""
    for name in () if is_plain else FONTS:
        with contextlib.suppress(OSError):
            return ImageFont.truetype(name, size)
    return ImageFont.load_default(size)


def _wrapped(text: str, size: int, room: int) -> list[str]:
    """Part a text between words into lines of at most `room` pixels; a longer word has a line of its own."""
    font, lines = _font(size, text.isascii()), []
    for word in _one_line(text).split():
        if lines and font.getlength(f"{lines[-1]} {word}") <= room:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines


def write_line(draw: ImageDraw.ImageDraw, at: tuple, text: str, *, size: int, room: int = 0, **style: str) -> None:
    """Write one line of text, cut to `room` pixels where that is given; `style` may hold `fill` and `anchor`."""
    text = _one_line(text)
    font = _font(size, text.isascii())
    if 0 < room < font.getlength(text):
        too_long = bisect_left(range(len(text)), room, key=lambda length: font.getlength(text[:length] + "..."))
        text = text[: max(0, too_long - 1)] + "..."
    draw.text(at, text, font=font, **({"fill": INK} | style))


def _cell_text(column: str, value: object) -> str:
    if value is None or value != value:  # NaN
        return "n/a"
    if isinstance(value, numbers.Integral) or not isinstance(value, numbers.Real):
        return str(value)
    is_fraction = re.search(r"(auroc|aupro|f1_max|_rate|(^|[^a-z])ap)$", column.lower())
    return f"{100 * value:.1f}%" if is_fraction else f"{value:.4g}"


def _table(rows: list[dict], words: Mapping[str, tuple[str, str]]) -> str:
    if not rows:
        return ""
    given = list(dict.fromkeys(column for row in rows for column in row))
    columns = [*(name for name in words if name in given), *(name for name in given if name not in words)]
    head = "".join(f'<th scope="col">{html.escape(words.get(name, (name,))[0])}</th>' for name in columns)
    cells = [[f"<td>{html.escape(_cell_text(name, row.get(name)))}</td>" for name in columns] for row in rows]
    body = "\n".join(f"<tr>{''.join(line)}</tr>" for line in cells)
    table = f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table></div>'
    return table + ('<p><a href="#columns">What the columns say</a></p>' if words else "")


def _meanings(words: Mapping[str, tuple[str, str]]) -> str:
    said = "".join(f"<dt>{html.escape(head)}</dt><dd>{html.escape(meaning)}</dd>" for head, meaning in words.values())
    return f'<section id="columns"><h2>What the columns say</h2><dl>{said}</dl></section>' if said else ""


_SECTION = """<section><h2>{name}</h2><p>{said}</p><a class="scroll" href="{file_name}">
<img src="{file_name}" width="{sheet.width}" height="{sheet.height}" loading="lazy"
alt="{name}: photographs, true defects and heat maps"></a></section>"""

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><style>
:root {{ color-scheme: light dark; --ink: #1c2026; --quiet: #59616b; --rule: #d5dade; --paper: #fff; --band: #f2f4f6 }}
@media (prefers-color-scheme: dark) {{
  :root {{ --ink: #e8eaed; --quiet: #a3abb5; --rule: #353b43; --paper: #15181c; --band: #1e2227 }} }}
body {{ margin: 0 auto; max-width: 106rem; padding: 1.2rem; color: var(--ink); background: var(--paper);
  font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere }}
h1 {{ font-size: 1.6rem; line-height: 1.25 }} h2 {{ font-size: 1.1rem }} h1, h2 {{ margin: 0 0 .5rem }}
p {{ max-width: 70ch; color: var(--quiet); white-space: pre-line }} p:empty {{ display: none }}
.scroll {{ display: block; overflow-x: auto; border: 1px solid var(--rule); border-radius: .5rem }}
table {{ border-collapse: collapse; width: 100%; font-size: .9rem; font-variant-numeric: tabular-nums }}
th {{ overflow-wrap: normal }} th, td {{ padding: .4rem .8rem; text-align: right; vertical-align: bottom; border-bottom: 1px solid var(--rule) }}
:is(th, td):first-child {{ position: sticky; left: 0; text-align: left }} td {{ white-space: nowrap }} th, td:first-child {{ background: var(--band) }}
main {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 42rem), 1fr)); gap: 2rem }}
section {{ min-width: 0 }} main, div.scroll {{ margin-top: 1.5rem }} a.scroll {{ background: #fff }}
a {{ color: inherit }} #columns {{ margin-top: 2rem }}
dl {{ max-width: 90ch; display: grid; grid-template-columns: max-content 1fr; gap: .3rem 1rem }} dt {{ font-weight: 600 }} dd {{ margin: 0 }}
img {{ display: block; height: auto; max-width: max(100%, 36rem) }}
</style></head><body>
<h1>{title}</h1>
<p>Each row is one photograph, the worst errors of a product first: the photograph, the true defect in green where a mask \
tells it, and what the detector marks.
Colors mean the same in every picture: blue to white up to the line between good and bad (0.5), amber to red above it. \
Outlined regions are above the line.</p>
{table}
<main>{sections}</main>
{meanings}
<p>{notes}</p>
</body></html>"""

"""
What a set-up can find: defects of growing size and contrast, drawn on a product's own good photographs, and its threshold.

And what it bears: how much a good photograph may change in light, sharpness, place and compression before it is set aside.
"""

import io
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFilter
from tqdm.auto import tqdm

from ..calibration_anople import ProductThreshold, percent
from ..data.drawn_products import SIZED_DEFECTS, draw_sized_defect, find_object
from ..enrollment_anople import digest_of, near_duplicates, seen_before
from ..images_anople import ImageError, ImageSource, PicturePrint, load_image, print_of, source_path
from ..inference_anople import TiledImage
from ..modeling_anople import AnoPLeModel
from ..pipeline_anople import Prediction, predict
from ..processing_anople import AnoPLeProcessor
from ..product_store_anople import FOUND_SHARE, MaskOpener, Sensitivity
from ..runtime import printable
from ..runtime.heat_maps import GREY, RIGHT, WHITE, WRONG, write_line
from ..scoring_anople import Detector
from ..tiling_anople import move


logger = logging.getLogger(__name__)

SIZES = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32)  # of the photograph's longer side
CONTRASTS = (0.05, 0.15, 0.3)  # of white
LEAST_CASES = 4  # fewer cannot tell that 90 % are found
ROUNDING = 1e-9
KNOWN = "is known to the product, or given twice"


# --- Changes of a good photograph that make it no worse ---


class Change(NamedTuple):
    """
    A way in which a photograph may change.

    Args:
        amounts: the steps, from the least on.
        apply: makes the change by an amount; odd photographs (`False`) the other way, where there are two.
    """

    amounts: Sequence[float]
    apply: Callable[[Image.Image, float, bool], Image.Image]


def _relit(image: Image.Image, stops: float) -> Image.Image:
    """Expose an image anew: by twice the light a stop, whose values a camera keeps to the power of 1 / 2.2."""
    table = [min(255, round(255 * ((value / 255) ** 2.2 * 2**stops) ** (1 / 2.2))) for value in range(256)]
    return image.point(table * 3)


def _blurred(image: Image.Image, share: float, _: bool) -> Image.Image:
    return image.filter(ImageFilter.GaussianBlur(share / 100 * max(image.size)))


def _shifted(image: Image.Image, share: float, even: bool) -> Image.Image:
    pixels = round(share / 100 * max(image.size)) * (1 if even else -1)
    return _moved(image, [[1, 0, 2 * pixels / image.width], [0, 1, 2 * pixels / image.height]])


def _turned(image: Image.Image, degrees: float, even: bool) -> Image.Image:
    angle = np.deg2rad(degrees if even else -degrees)
    sine, cosine, ratio = np.sin(angle), np.cos(angle), image.height / image.width
    return _moved(image, [[cosine, -sine * ratio, 0], [sine / ratio, cosine, 0]])


def _moved(image: Image.Image, places: list[list[float]]) -> Image.Image:
    pixels = torch.from_numpy(np.asarray(image, dtype=np.float32)).permute(2, 0, 1)[None]
    moved = move(pixels, torch.tensor([places], dtype=torch.float32))[0].permute(1, 2, 0)
    return Image.fromarray(moved.round().clamp(0, 255).numpy().astype(np.uint8))


def _compressed(image: Image.Image, quality: float, _: bool) -> Image.Image:
    file = io.BytesIO()
    image.save(file, format="JPEG", quality=int(quality))
    return Image.open(file).convert("RGB")


STOPS = (0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0)
CHANGES = {
    "darker, stops": Change(STOPS, lambda image, stops, _: _relit(image, -stops)),
    "brighter, stops": Change(STOPS, lambda image, stops, _: _relit(image, stops)),
    "blurred, sigma in % of the longer side": Change((0.05, 0.1, 0.2, 0.4, 0.8, 1.6), _blurred),
    "shifted, % of the longer side": Change((1, 2, 4, 8, 16), _shifted),
    "turned, degrees": Change((0.5, 1, 2, 5, 10, 20, 45), _turned),
    "JPEG quality": Change((95, 85, 70, 50, 30, 15, 5), _compressed),
}


# --- What was counted ---


@dataclass
class Count:
    """
    How many copies of good photographs were set aside, of those that were judged.

    Args:
        cases: how many were judged.
        flagged: how many of them were not called normal.
        reasons: of these, how many for what is wrong with their frame, by reason.
        failed: how many more could not be judged, by reason.
    """

    cases: int = 0
    flagged: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)

    def add(self, prediction: Prediction) -> None:
        """Count an answer; one that is missing is no case."""
        if prediction.error is not None:
            self.failed[prediction.error] += 1
            return
        self.cases += 1
        self.flagged += prediction.label != "normal"
        if prediction.reason is not None:
            self.reasons[prediction.reason] += 1

    @property
    def share(self) -> float:
        """Of the cases, how many were set aside; 0 without cases."""
        return self.flagged / self.cases if self.cases else 0.0

    def to_dict(self) -> dict:
        """Return plain numbers."""
        counts = {"cases": self.cases, "flagged": self.flagged, "frame_check": dict(self.reasons)}
        return counts | ({"failed": dict(self.failed)} if self.failed else {})

    def describe(self) -> str:
        """Say how many, whether by score or by the frame check, and how many could not be judged."""
        by_score = self.flagged - self.reasons.total()
        parts = [f"{by_score} of {self.cases} by their score"] if by_score else []
        parts += [f"{count} of {self.cases} by the frame check ({reason})" for reason, count in self.reasons.items()]
        parts += [describe_failed(self.failed)] if self.failed else []
        return " and ".join(parts) or "none"


def describe_failed(failed: Counter[str]) -> str:
    """Say how many copies could not be judged, and the most frequent reason."""
    [(reason, _)] = failed.most_common(1)
    return f"{failed.total()} could not be judged: {reason}"


@dataclass
class Example:
    """A piece of a photograph with a drawn defect, for the picture, its size in pixels, and whether it was found."""

    picture: Image.Image
    pixels: int
    found: bool


@dataclass
class SensitivityReport:
    """
    Result of [`measure_sensitivity`].

    Args:
        class_name: the product.
        limit: its threshold.
        threshold: calibrated score above which a photograph is anomalous.
        photographs: names of those that were measured on.
        left_out: name -> why not.
        plain: of the photographs as they are.
        defects: (kind, size, contrast) -> found ones; only photographs that are called normal as they are carry defects.
        changes: (change, amount) -> photographs set aside.
        pixels: longer side of the photographs, the least and the greatest.
        examples: (kind, size, contrast) -> one of them.
        seed, date: of the measurement.
    """

    class_name: str
    limit: ProductThreshold
    threshold: float
    seed: int
    date: str
    photographs: list[str] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    plain: Count = field(default_factory=Count)
    defects: dict[tuple[str, float, float], Count] = field(default_factory=dict)
    changes: dict[tuple[str, float], Count] = field(default_factory=dict)
    pixels: tuple[int, int] = (0, 0)
    examples: dict[tuple[str, float, float], Example] = field(default_factory=dict)

    @property
    def allowed(self) -> float:
        """Share of changed good photographs that may be set aside: the budget, or what it is of unchanged ones."""
        return max(self.limit.max_false_alarm_rate, self.plain.share)

    @property
    def failed(self) -> Counter[str]:
        """How many copies could not be judged, by reason."""
        return sum((count.failed for count in (*self.defects.values(), *self.changes.values())), Counter())

    def smallest(self, kind: str, contrast: float) -> tuple[float | None, float]:
        """
        Return the size from which on, at all larger ones too, `FOUND_SHARE` are found, and the largest that tells.

        A size tells with at least `LEAST_CASES`, and with fewer if some of them are missed. The former is `None` where that
        is no size, the latter 0 where no size has that many cases.
        """
        counts = {size: self.defects[kind, size, contrast] for size in SIZES}
        if all(count.cases < LEAST_CASES for count in counts.values()):
            return None, 0.0
        missed = {size for size, count in counts.items() if count.cases and count.share < FOUND_SHARE - ROUNDING}
        telling = [size for size, count in counts.items() if count.cases >= LEAST_CASES or size in missed]
        found = None
        for size in reversed(telling):
            if size in missed:
                break
            found = size
        return found, max(telling)

    def shown_size(self, kind: str, contrast: float) -> float:
        """Return the size that stands for a kind at a contrast: that of [`smallest`], or that with the most cases."""
        found, largest = self.smallest(kind, contrast)
        return found or largest or max(SIZES, key=lambda size: self.defects[kind, size, contrast].cases)

    def bears(self, name: str) -> tuple[float | None, str | None]:
        """Return the largest change up to which no more are set aside than allowed, and what came at the next step."""
        most = None
        for amount in CHANGES[name].amounts:
            count = self.changes[name, amount]
            if count.failed or count.share > self.allowed + ROUNDING:
                return most, f"at {amount:g}: {count.describe()}"
            most = amount
        return most, None

    def area(self) -> float:
        """
        Average the share of defects that are found over all kinds, sizes and contrasts that were drawn, all weighing alike.

        It is the area under the curve of detection over the logarithm of the size, within 0 and 1.
        """
        shares = [count.share for count in self.defects.values() if count.cases]
        return float(np.mean(shares)) if shares else 0.0

    def to_record(self) -> Sensitivity:
        """Return what the detector keeps of it."""
        found = {kind: [self.smallest(kind, contrast) for contrast in CONTRASTS] for kind in SIZED_DEFECTS}
        counts = {
            kind: [self.defects[kind, self.shown_size(kind, contrast), contrast] for contrast in CONTRASTS]
            for kind in SIZED_DEFECTS
        }
        borne = {name: self.bears(name) for name in CHANGES}
        return Sensitivity(
            date=self.date,
            photographs=self.plain.cases,
            false_alarms=self.plain.flagged,
            line=self.limit.image_threshold,
            threshold=self.threshold,
            contrasts=list(CONTRASTS),
            smallest={kind: [each for each, _ in cells] for kind, cells in found.items()},
            largest={kind: [each for _, each in cells] for kind, cells in found.items()},
            found={kind: [each.flagged for each in row] for kind, row in counts.items()},
            cases={kind: [each.cases for each in row] for kind, row in counts.items()},
            bears={name: most for name, (most, _) in borne.items()},
            breaks=[name for name, (_, text) in borne.items() if text is not None],
        )

    def to_dict(self) -> dict:
        """Return what `sensitivity.json` holds of the product: every count."""
        defects = [
            {"kind": kind, "size": size, "contrast": contrast, **count.to_dict()}
            for (kind, size, contrast), count in self.defects.items()
        ]
        changes = [
            {"change": name, "amount": amount, **count.to_dict()} for (name, amount), count in self.changes.items()
        ]
        return {
            "date": self.date,
            "seed": self.seed,
            "line": self.limit.image_threshold,
            "threshold": self.threshold,
            "max_false_alarm_rate": self.limit.max_false_alarm_rate,
            "longer_side": list(self.pixels),
            "photographs": self.photographs,
            "left_out": self.left_out,
            "unchanged": self.plain.to_dict(),
            "area": self.area(),
            "smallest": [self._smallest_in_json(kind, contrast) for kind in SIZED_DEFECTS for contrast in CONTRASTS],
            "defects": defects,
            "bears": {name: self.bears(name)[0] for name in CHANGES},
            "changes": changes,
        }

    def _smallest_in_json(self, kind: str, contrast: float) -> dict:
        found, largest = self.smallest(kind, contrast)
        pixels = None if found is None else [round(found * side) for side in self.pixels]
        count = self.defects[kind, self.shown_size(kind, contrast), contrast]
        return {
            "kind": kind,
            "contrast": contrast,
            "size": found,
            "pixels": pixels,
            "largest_drawn": largest,
            "found": count.flagged,
            "cases": count.cases,
        }

    def pixels_of(self, size: float) -> str:
        """Write a size in pixels; of photographs of different sizes the range."""
        low, high = (round(size * side) for side in self.pixels)
        return f"{low} px" if low == high else f"{low} to {high} px"

    def cell(self, kind: str, contrast: float) -> str:
        """Say of a kind at a contrast from which size on it is found, or why that is not known."""
        found, largest = self.smallest(kind, contrast)
        counts = [self.defects[kind, size, contrast] for size in SIZES]
        shown = self.defects[kind, self.shown_size(kind, contrast), contrast]
        if found is not None:
            said = f"from {percent(found)} ({self.pixels_of(found)}; {shown.flagged} of {shown.cases})"
        elif largest:
            best = max(count.share for count in counts if count.cases >= LEAST_CASES)
            said = f"not found up to size {percent(largest)} ({self.pixels_of(largest)}; at best {percent(best)})"
        else:
            said = f"too few could be drawn ({shown.flagged} of {shown.cases})" if shown.cases else "cannot be drawn"
        failed = sum((count.failed for count in counts), Counter())
        if failed and not shown.cases:
            return describe_failed(failed)
        return f"{said}; {describe_failed(failed)}" if failed else said

    def lines(self) -> list[str]:
        """Return the tables for a terminal, in markdown."""
        said = self.plain.describe()
        rows = [
            f"{self.class_name}: {self.plain.cases} good photographs; set aside as they are: {said}. Line at raw score "
            f"{self.limit.image_threshold:.4f}.",
            "",
            f"Defects of which {percent(FOUND_SHARE)} are found, by their longer side in percent of the photograph's:",
            "",
        ]
        heads = ["defect", *(f"contrast {percent(contrast)}" for contrast in CONTRASTS)]
        cells = [[kind, *(self.cell(kind, contrast) for contrast in CONTRASTS)] for kind in SIZED_DEFECTS]
        rows += _table(heads, cells)
        rows += ["", f"Changes of a good photograph at which at most {percent(self.allowed)} are set aside:", ""]
        changes = []
        for name in CHANGES:
            most, text = self.bears(name)
            changes.append([name, "none" if most is None else f"{most:g}", text or "all that was tried is borne"])
        return rows + _table(["change", "up to", "next step"], changes)


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
    lines = [heads, ["-" * width for width in widths], *rows]
    return [f"| {' | '.join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))} |" for line in lines]


# --- Measuring ---


class GoodPhotographs(NamedTuple):
    """Sources of good photographs that a product does not know, their names, and those that were left out, and why."""

    sources: list[ImageSource]
    names: list[str]
    left_out: dict[str, str]


def choose_photographs(
    model: Detector, processor: AnoPLeProcessor, class_name: str, sources: Sequence[ImageSource], *, most: int
) -> GoodPhotographs:
    """
    Take some good photographs, spread evenly over those that a product does not know.

    Scores of photographs that it does know would flatter it: in its memory they find themselves, and a threshold was set
    by the others.

    Raises:
        ValueError: for a product without a threshold, or where no photograph is left.
    """
    class_id = model.products.id_of(class_name)
    if model.products.thresholds(torch.tensor([class_id]), 1)[0] is None:
        raise ValueError(
            f"{class_name!r} has no threshold, so nothing is called anomalous: give it good images first."
        )
    names, left_out = [source_path(each) or f"photograph {number}" for number, each in enumerate(sources, start=1)], {}
    readable: list[int] = []
    digests: list[str] = []
    prints: list[PicturePrint] = []
    for number, source in enumerate(sources):
        try:
            image = load_image(source, white_value=processor.white_value)
        except ImageError as error:
            left_out[names[number]] = str(error)
            continue
        readable.append(number)
        digests.append(digest_of(image))
        prints.append(print_of(image))
    again = seen_before(model, class_id, digests, prints)
    if isinstance(model, AnoPLeModel):  # a graph shows nothing of single patches
        tiling, opener = model.products.tiling_of(class_id), model.products.mask_opener(class_id)
        again = {*again, *near_duplicates(model, _tiled(sources, readable, processor, tiling, opener), class_id)}
    known = {readable[place] for place in again}
    left_out |= {names[number]: KNOWN for number in known}
    kept = [number for number in readable if number not in known]
    if not kept:
        raise ValueError(
            f"No photograph of {class_name!r} is left to measure on: {len(known)} are known to it, whose scores would "
            f"flatter it, and {len(sources) - len(readable)} cannot be read. Give good photographs that it was not taught."
        )
    chosen = [
        kept[place] for place in np.unique(np.linspace(0, len(kept) - 1, min(most, len(kept))).round().astype(int))
    ]
    return GoodPhotographs([sources[number] for number in chosen], [names[number] for number in chosen], left_out)


def _tiled(
    sources: Sequence[ImageSource],
    numbers: Sequence[int],
    processor: AnoPLeProcessor,
    tiling: str | None,
    opener: MaskOpener | None,
) -> Iterator[TiledImage]:
    """Cut photographs as their product wants it; one that its mask does not fit is not masked."""
    for number in numbers:
        image = load_image(sources[number], white_value=processor.white_value)
        try:
            mask = opener and opener(image.size[::-1])
        except ImageError:  # refused when it is judged
            mask = None
        yield TiledImage.of(image, processor, tiling, mask)


def measure_sensitivity(
    model: Detector,
    processor: AnoPLeProcessor,
    class_name: str,
    photographs: GoodPhotographs,
    *,
    seed: int = 0,
    batch_size: int = 8,
    progress: bool = True,
) -> SensitivityReport:
    """
    Judge good photographs of a product with drawn defects of all kinds, sizes and contrasts, and with changes of no harm.

    Every photograph carries one defect of each kind and size, at each contrast, inside its object and outside the
    product's ignore mask. A photograph that cannot be judged is left out, and the others go on.

    Args:
        photographs: see [`choose_photographs`].
        seed: of all that is drawn; each photograph, kind and size has a stream of its own.

    Raises:
        ValueError: where not one photograph is called normal as it is, so that a defect can change nothing.
    """
    class_id = model.products.id_of(class_name)
    pooled = model.config.class_identity == "pooled"
    limit = model.products.thresholds(None if pooled else torch.tensor([class_id]), 1)[0]
    report = SensitivityReport(
        class_name,
        limit,
        model.config.threshold,
        seed,
        datetime.now(UTC).isoformat(timespec="seconds"),
        left_out=dict(photographs.left_out),
    )
    report.defects = {
        (kind, size, contrast): Count() for kind in SIZED_DEFECTS for size in SIZES for contrast in CONTRASTS
    }
    report.changes = {(name, amount): Count() for name, change in CHANGES.items() for amount in change.amounts}

    judge = partial(predict, model, processor, class_names=class_name, batch_size=batch_size)

    def opened() -> Iterator[Image.Image]:
        return (load_image(source, white_value=processor.white_value) for source in photographs.sources)

    # 1. As they are: which are called normal, on which a defect can be found.
    normal, judged = [], []
    for number, prediction in enumerate(judge(opened())):
        if prediction.error is not None:
            report.left_out[photographs.names[number]] = prediction.error
            continue
        judged.append(number)
        report.photographs.append(photographs.names[number])
        report.plain.add(prediction)
        normal += [number] if prediction.label == "normal" else []
    if not normal:
        raise ValueError(
            f"None of {len(photographs.sources)} good photographs of {class_name!r} is called normal as it is "
            f"({report.plain.describe()}), so a defect would change nothing: calibrate the product with more good ones."
        )
    # 2. One photograph after the other, so that no more than one is held.
    sides, opener = [], model.products.mask_opener(class_id)
    title = f"sensitivity {printable(class_name)}"
    with tqdm(total=len(report.photographs), desc=title, disable=None if progress else True) as bar:
        for number, image in enumerate(opened()):
            if number not in judged:
                continue
            sides.append(max(image.size))
            if number in normal:
                ignored = None if opener is None else opener(image.size[::-1])
                _measure_defects(report, _defects_on(image, ignored, [seed, number]), judge)
            steps = list(report.changes)
            changed = (CHANGES[name].apply(image, amount, number % 2 == 0) for name, amount in steps)
            for step, prediction in zip(steps, judge(changed), strict=True):
                report.changes[step].add(prediction)
            bar.update()
    report.pixels = min(sides), max(sides)
    return report


Judge = Callable[[Iterable[Image.Image]], Iterator[Prediction]]


def _measure_defects(report: SensitivityReport, drawn: Iterator["DrawnDefect"], judge: Judge) -> None:
    """Judge the defects on one photograph, as they are drawn, and keep one of each for the picture."""
    pieces: list[tuple[tuple[str, float, float], Example]] = []

    def pictures() -> Iterator[Image.Image]:
        for each in drawn:
            left, top, right, bottom = each.box
            example = Example(_piece(each.picture, each.box), max(right - left, bottom - top), False)
            pieces.append((each.key, example))
            yield each.picture

    for place, prediction in enumerate(judge(pictures())):
        key, example = pieces[place]
        report.defects[key].add(prediction)
        example.found = prediction.error is None and prediction.label != "normal"
        if key not in report.examples or (example.found and not report.examples[key].found):
            report.examples[key] = example


class DrawnDefect(NamedTuple):
    """A photograph with a defect of (kind, size, contrast), which lies in a box (left, top, right, bottom)."""

    key: tuple[str, float, float]
    picture: Image.Image
    box: tuple[int, int, int, int]


def _defects_on(image: Image.Image, ignored: np.ndarray | None, seed: list[int]) -> Iterator[DrawnDefect]:
    """Draw one defect of each kind and size, at each contrast that can be had."""
    allowed = find_object(image)
    if ignored is not None:
        allowed &= ~ignored
    for kind_number, kind in enumerate(SIZED_DEFECTS):
        for step, size in enumerate(SIZES):
            generator = np.random.default_rng([*seed, kind_number, step])
            try:
                defect, pictures = draw_sized_defect(
                    kind, image, allowed, generator, size=size * max(image.size), contrasts=CONTRASTS
                )
            except ValueError:  # none of this size can be seen on it: no case
                continue
            for contrast, picture in zip(CONTRASTS, pictures, strict=True):
                if picture is not None:
                    yield DrawnDefect((kind, size, contrast), picture, defect.box)


# --- The picture: what the smallest defects that are found look like, legible on a phone ---


PICTURE_WIDTH, GAP, TEXT, TITLE = 780, 12, 24, 32  # a phone shows it at half the size
PIECE = (PICTURE_WIDTH - 4 * GAP) // 3
LEAST_PIECE = 40  # pixels of the photograph


def _piece(picture: Image.Image, box: tuple[int, int, int, int]) -> Image.Image:
    """Cut a square about a defect, twice as wide as it, and enlarge it."""
    left, top, right, bottom = box
    half = max(LEAST_PIECE, 2 * max(right - left, bottom - top)) // 2
    half = min(half, min(picture.size) // 2)
    x, y = (
        min(max((low + high) // 2, half), length - half)
        for low, high, length in zip((left, top), (right, bottom), picture.size, strict=True)
    )
    return picture.crop((x - half, y - half, x + half, y + half)).resize((PIECE, PIECE), Image.Resampling.BICUBIC)


def draw_sensitivity(report: SensitivityReport) -> Image.Image:
    """
    Draw of each kind and contrast the smallest defect that is found, or the largest that is not, and what is borne.

    The writing and the colors are those of the heat maps.

    Returns:
        RGB, 780 pixels wide.
    """
    notes = [
        f"{name}: {'none' if most is None else f'{most:g}'}" for name in CHANGES for most, _ in [report.bears(name)]
    ]
    head = [
        f"Line at raw score {report.limit.image_threshold:.4f}; {report.plain.cases} good",
        f"photographs, {report.plain.flagged} set aside as they are; {report.date[:10]}.",
        f"Smallest defect of which {percent(FOUND_SHARE)} are found;",
        "size in % of the photograph's longer side:",
    ]
    line = round(1.35 * TEXT)
    block = line + PIECE + 2 * line + 2 * GAP
    height = 2 * GAP + TITLE + line * (len(head) + len(notes) + 2) + block * len(SIZED_DEFECTS) + 2 * GAP
    canvas = Image.new("RGB", (PICTURE_WIDTH, height), WHITE)
    draw, y = ImageDraw.Draw(canvas), GAP
    write_line(draw, (GAP, y), report.class_name, size=TITLE, room=PICTURE_WIDTH - 2 * GAP)
    y += TITLE + GAP
    for text in head:
        write_line(draw, (GAP, y), text, size=TEXT, fill=GREY)
        y += line
    y += GAP
    for kind in SIZED_DEFECTS:
        write_line(draw, (GAP, y), kind, size=TEXT)
        y += line
        for column, contrast in enumerate(CONTRASTS):
            _draw_cell(draw, canvas, (GAP + column * (PIECE + GAP), y), report, kind, contrast)
        y += PIECE + 2 * line + 2 * GAP
    write_line(draw, (GAP, y), "A good photograph bears up to", size=TEXT)
    for text in notes:
        y += line
        write_line(draw, (GAP, y), text, size=TEXT, fill=GREY)
    return canvas


def _draw_cell(
    draw: ImageDraw.ImageDraw,
    canvas: Image.Image,
    at: tuple[int, int],
    report: SensitivityReport,
    kind: str,
    contrast: float,
) -> None:
    """Draw one example with its caption in two lines."""
    found, largest = report.smallest(kind, contrast)
    key, (x, y) = (kind, report.shown_size(kind, contrast), contrast), at
    count, example = report.defects[key], report.examples.get(key)
    if example is None:
        draw.rectangle((x, y, x + PIECE, y + PIECE), outline=GREY)
    else:
        canvas.paste(example.picture, (x, y))
    write_line(draw, (x, y + PIECE + 4), f"contrast {percent(contrast)}", size=TEXT, fill=GREY)
    said, color = "cannot be drawn", GREY
    if found is not None:
        said, color = f"from {percent(found)}, {example.pixels} px", RIGHT
    elif largest:
        said, color = f"not up to {percent(largest)}", WRONG
    elif count.cases:
        said = f"too few: {count.flagged} of {count.cases}"
    elif any(report.defects[kind, size, contrast].failed for size in SIZES):
        said, color = "could not be judged", WRONG
    write_line(draw, (x, y + PIECE + 4 + round(1.2 * TEXT)), said, size=TEXT, fill=color, room=PIECE)


__all__ = [
    "CHANGES",
    "CONTRASTS",
    "GoodPhotographs",
    "KNOWN",
    "SIZES",
    "SensitivityReport",
    "choose_photographs",
    "describe_failed",
    "draw_sensitivity",
    "measure_sensitivity",
]

"""
What was inspected, as one page for people: verdicts by product and over time, the worst pictures, and what a verdict is worth.

The page is one file. It needs no network and no script, and prints. Whatever came from a file is escaped.
"""

import base64
import heapq
import html
import io
import platform
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..calibration_anople import describe_guarantee, percent
from ..configuration_anople import AnoPLeConfig
from ..images_anople import ImageError, load_image
from ..product_store_anople import UNKNOWN_PRODUCT, ProductRecord
from ..runtime.heat_maps import overlay, with_band, with_legend
from .feedback import Feedback, answers_in
from .records import Rows


MOST_PICTURES, MOST_LISTED = 24, 500  # of a page; so many of what people said are listed, too
PICTURE_SIDE, JPEG_QUALITY = 560, 82
FOLDERS = 2  # that are named with a photograph: names alone are often numbers
MOST_BARS, WIDEST_BAR = 40, 30  # of the course of time; 600 are the page's width
STEPS = (60, 300, 900, 3600, 6 * 3600, 86_400, 7 * 86_400, 30 * 86_400)  # seconds that a bar may stand for

# From the foot of a bar to its top, and from the right of a table to its left.
VERDICTS = ("normal", "unsure", UNKNOWN_PRODUCT, "anomalous", "no verdict", "error")
COLORS = dict(zip(VERDICTS, ("#7fa3c7", "#e0b84c", "#9a7bb5", "#d9480f", "#b9bec4", "#343a40"), strict=True))
MEANINGS = {
    "normal": "below the threshold",
    "unsure": "below the threshold, and yet odder than every good photograph that is known",
    UNKNOWN_PRODUCT: "like none of the products",
    "anomalous": "above the threshold, or no photograph of its product at all",
    "no verdict": "of a product without a threshold",
    "error": "could not be judged",
}


SET_ASIDE = {"normal": False, "unsure": False, UNKNOWN_PRODUCT: True, "anomalous": True}  # verdict -> whether it is
SAID = {"good": "good", "bad": "defective"}  # what people say -> of a part


# --- A row in words ---


def verdict_of(row: dict[str, Any]) -> str:
    """Name the verdict of a row, one of `VERDICTS`."""
    if row.get("error") or row.get("score") is None:
        return "error"
    if row.get("label") not in ("normal", "anomalous", UNKNOWN_PRODUCT):
        return "no verdict"
    return "unsure" if row["label"] == "normal" and row.get("unsure") else row["label"]


def describe_row(row: dict[str, Any], threshold: float, *, folders: int = 0) -> str:
    """
    Say what is known of one photograph in one sentence.

    Args:
        row: as of `records.to_row`.
        threshold: score above which it is anomalous.
        folders: how many of those that it lies in are named.
    """
    name, verdict = _name_of(row, folders), verdict_of(row)
    if verdict == "error":
        reason = str(row.get("error") or "it has no score").removeprefix(f"{row['path']}: ").rstrip(".")
        return f"{name}: could not be judged: {reason}."
    product = row.get("class") or "photograph"
    if verdict == "no verdict":
        return f"{name}: {product} has no threshold, so there is no verdict; raw score {row['score']:.3g}."
    reason = f" ({row['reason']})" if row.get("reason") else ""
    what = {
        "normal": f"normal {product}",
        "unsure": f"normal {product}, but odder than every good photograph that is known",
        UNKNOWN_PRODUCT: f"unknown product{reason}",
        "anomalous": f"anomalous {product}{reason}",
    }[verdict]
    said = f"{name}: {what}, score {row['score']:.2f} (threshold {threshold:.2f})"
    return f"{said}{'' if verdict == UNKNOWN_PRODUCT else _describe_regions(row.get('regions'))}."


def _describe_regions(regions: list[dict] | None) -> str:
    if not regions:
        return ""
    across, down = max(regions, key=lambda region: region["area"])["centroid"]
    at = f"{across:.0f},{down:.0f}"
    return f"; 1 region, at {at}" if len(regions) == 1 else f"; {len(regions)} regions, the largest at {at}"


def _name_of(row: dict[str, Any], folders: int) -> str:
    return "/".join(Path(row["path"]).parts[-1 - folders :]) or "(without a name)"


# --- Pictures of verdicts, and such as were drawn ---


def draw_verdict(photograph: Image.Image, full_map: np.ndarray, row: dict[str, Any], threshold: float) -> Image.Image:
    """
    Draw the heat map of a photograph, with its scale at the right, and product, verdict and score in a band below.

    Args:
        full_map: (height, width) as of `Prediction.full_size_map`.
        row, threshold: as of [`describe_row`]; the row has a score.
    """
    verdict, product = verdict_of(row), row.get("class")
    title = "normal, but unsure" if verdict == "unsure" else verdict
    if product and verdict != UNKNOWN_PRODUCT:
        title = f"{product}: {title}"
    text = f"raw score {row['score']:.3g}, no line between good and bad"
    if verdict != "no verdict":
        text = f"score {row['score']:.2f}, line {threshold:.2f}"
        text += f", {row['reason']}" if row.get("reason") else ""
        if verdict != UNKNOWN_PRODUCT and row.get("regions"):
            count = len(row["regions"])
            text += f", {count} region{'s' if count > 1 else ''} above it"
    return with_band(with_legend(overlay(photograph, full_map)), title, text, color=COLORS[verdict])


def picture_of(row: dict[str, Any], folder: Path) -> Image.Image | None:
    """
    Open the heat map that was drawn of a row, below the folder of results, which may have been moved since; or `None`.

    Nothing outside that folder is opened, whatever a row says.
    """
    parts = Path(str(row.get("overlay") or "")).parts
    for start in range(len(parts)):
        path = folder.joinpath(*parts[start:])
        if path.is_file() and path.resolve().is_relative_to(folder.resolve()):
            try:
                return load_image(path)
            except ImageError:
                return None
    return None


# --- The page ---


def _was_wrong(said: Feedback | None) -> bool | None:
    """Say whether the verdict that somebody spoke of was wrong by what was said; `None` where either is missing."""
    set_aside = None if said is None else SET_ASIDE.get(said.label)
    return None if set_aside is None else set_aside != (said.verdict == "bad")


@dataclass(order=True)
class _Shown:
    """A row with its picture; the least urgent comes first."""

    urgency: tuple[int, float]
    number: int
    row: dict[str, Any]
    said: Feedback | None = None
    jpeg: bytes | None = None


class Report:
    """
    Collect rows, of which there may be many, and write a page; of the most urgent ones alone pictures are kept.

    Args:
        inspected: what was inspected, in words.
        config: the detector's; without it the page does not say what its thresholds promise.
        detector: where that lies.
        threshold: score above which a photograph is anomalous; by default the config's.
        settings: what else is worth knowing, by name.
    """

    def __init__(
        self,
        inspected: str,
        *,
        config: AnoPLeConfig | None = None,
        detector: str | None = None,
        threshold: float | None = None,
        settings: dict[str, object] | None = None,
    ):
        self.inspected, self.config, self.detector = inspected, config, detector
        self.threshold = threshold if threshold is not None else 0.5 if config is None else config.threshold
        self.settings = {name: value for name, value in (settings or {}).items() if value not in (None, "", False)}
        self.broken = 0
        self._counts: dict[str, Counter[str]] = defaultdict(Counter)
        self._minutes: dict[int, Counter[str]] = defaultdict(Counter)
        self._truths: dict[str, Counter[str]] = defaultdict(Counter)
        self._shown: list[_Shown] = []  # a heap
        self._listed: list[tuple[tuple[int, float], int, str]] = []  # a heap; the items of a list
        self._answers: dict[str, tuple[Feedback, str]] = {}  # by id, with the item of a list
        self._unlisted, self._numbers = 0, count()

    def add(
        self, row: dict[str, Any], draw: Callable[[], Image.Image | None], *, said: Feedback | None = None
    ) -> None:
        """
        Add a row.

        Args:
            row: as of `records.to_row`; where the truth is known, `is_defective` and `defect` say it.
            draw: makes its picture; called only where the row is among the most urgent so far.
            said: what a person said of it, if anybody did.
        """
        verdict, product = verdict_of(row), row.get("class") or "no product"
        self._counts[product][verdict] += 1
        if (seconds := _seconds_of(row.get("time"))) is not None:
            self._minutes[seconds // 60][verdict] += 1
        defective = row.get("is_defective")
        if defective is not None and verdict not in ("error", "no verdict"):
            called = "anomalous" if verdict == "anomalous" else "normal"
            self._truths[product][f"{'defective' if defective else 'good'} {called}"] += 1
        if said is not None:
            self._answers[said.id] = said, self._item(row, said)
        if (urgency := self._urgency(row, verdict, said)) is None:
            return
        shown = _Shown(urgency, -next(self._numbers), row, said)
        if verdict == "error" or (len(self._shown) >= MOST_PICTURES and shown < self._shown[0]):
            self._list(shown)
            return
        picture = draw()
        shown.jpeg = None if picture is None else _jpeg_of(picture)
        heapq.heappush(self._shown, shown)
        if len(self._shown) > MOST_PICTURES:
            self._list(heapq.heappop(self._shown))

    def _urgency(self, row: dict[str, Any], verdict: str, said: Feedback | None) -> tuple[int, float] | None:
        """Order what somebody should look at, by its rank and then its score; `None` for what nobody need look at."""
        if verdict == "error":
            return 9, 0.0
        if row.get("is_defective") is not None:  # of a test set what was answered wrong comes first
            wrong = row["is_defective"] != (verdict == "anomalous")
            if verdict != "no verdict" and wrong:
                return 5, 1 - row["score"] if row["is_defective"] else row["score"]
        if _was_wrong(said):
            return 5, 1 - row["score"] if said.verdict == "bad" else row["score"]
        rank = {"anomalous": 4, UNKNOWN_PRODUCT: 3, "unsure": 2, "no verdict": 1}.get(verdict)
        return None if rank is None else (rank, 2.0 if row.get("reason") else row["score"])

    def _item(self, row: dict[str, Any], said: Feedback | None) -> str:
        words = _text(describe_row(row, self.threshold, folders=FOLDERS))
        return f"<li{_class_of(said)}>{words}{_words_of(said)}</li>"

    def _list(self, shown: _Shown) -> None:
        heapq.heappush(self._listed, (shown.urgency, shown.number, self._item(shown.row, shown.said)))
        if len(self._listed) > MOST_LISTED:
            heapq.heappop(self._listed)
            self._unlisted += 1

    def write(self, path: Path) -> None:
        """Write the page; that of an earlier run is replaced."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(self.page(), encoding="utf-8", errors="backslashreplace")

    def page(self) -> str:
        """Return the page as HTML."""
        total = Counter()
        for counts in self._counts.values():
            total.update(counts)
        sections = [
            _section("Verdicts", self._summary(total) + self._table()),
            _section("Over time", self._course()),
            *self._said(),
            _section("Look at these first", self._pictures(total)),
            _section("Also look at", self._list_of_others()),
            _section("What the verdicts are worth", self._worth()),
            _section("Settings and versions", self._facts()),
        ]
        return _PAGE.format(title=_text(f"{TITLE}: {self.inspected}"), sections="\n".join(filter(None, sections)))

    def _summary(self, total: Counter[str]) -> str:
        all_of_them = total.total()
        attention = all_of_them - total["normal"]
        words = f"{_photographs(all_of_them)} {'was' if all_of_them == 1 else 'were'} inspected. "
        words += (
            f"{total['normal']} need nobody; {attention} should be looked at." if attention else "None needs a look."
        )
        if total["error"]:
            words += f" {_photographs(total['error'])} could not be judged, which says nothing about the part."
        if self.broken:
            lines = "1 line of the results is" if self.broken == 1 else f"{self.broken} lines of the results are"
            words += f" {lines} damaged and not counted here."
        return f'<p class="lead">{_text(words)}</p>'

    def _table(self) -> str:
        columns = [name for name in reversed(VERDICTS) if any(counts[name] for counts in self._counts.values())]
        head = "".join(f'<th scope="col">{_swatch(name)}{_text(name)}</th>' for name in columns)

        def cells(counts: Counter[str]) -> str:
            return "".join(
                f'<td data-name="{_text(name)}" style="--color:{COLORS[name]}">{counts[name]}</td>' for name in columns
            )

        rows = [
            f'<tr><th scope="row">{_text(product)}</th><td data-name="inspected">{counts.total()}</td>{cells(counts)}</tr>'
            for product, counts in sorted(self._counts.items(), key=lambda pair: _severity(pair[1]), reverse=True)
        ]
        meanings = "; ".join(f"{name}: {MEANINGS[name]}" for name in columns)
        return (
            f'<table class="counts"><thead><tr><th scope="col">product</th><th scope="col">inspected</th>{head}</tr>'
            f'</thead><tbody>{"".join(rows)}</tbody></table><p class="note">{_text(meanings)}.</p>'
        )

    def _course(self) -> str:
        """Draw how many were judged in each span of time, and how; a sentence where there is nothing to see."""
        if not self._minutes:
            return ""
        first, last = 60 * min(self._minutes), 60 * max(self._minutes)
        span = f"From {_clock(first)} to {_clock(last)} UTC." if last > first else f"All at {_clock(first)} UTC."
        step = next((step for step in STEPS if (last - first) // step < MOST_BARS), STEPS[-1])
        if len({60 * minute // step for minute in self._minutes}) < 3:
            return f"<p>{span}</p>"
        begin = first // step
        bars = [Counter() for _ in range(last // step - begin + 1)]
        for minute, counts in self._minutes.items():
            bars[60 * minute // step - begin].update(counts)
        most = max(bar.total() for bar in bars)
        worst = max(range(len(bars)), key=lambda place: (_severity(bars[place]), -place))
        share = bars[worst]["anomalous"] / max(1, bars[worst].total())
        words = f"{span} A bar stands for {_span(step)}; the highest for {_photographs(most)}."
        if share:
            words += f" The largest share of anomalous ones, {percent(share)}, was from {_clock((begin + worst) * step)} on."
        return f"<p>{_text(words)}</p>{_bars(bars, most)}"

    def _said(self) -> list[str]:
        """Say what people said, and how often the detector was right by it; with a box that hides where it was."""
        if not self._answers:
            return []
        wrong, right, listed = Counter(), 0, []
        for said, item in self._answers.values():
            was_wrong = _was_wrong(said)
            wrong[said.verdict] += bool(was_wrong)
            right += was_wrong is False
            listed.append((not was_wrong, item))
        answers = len(listed)
        words = f"There {'is 1 answer' if answers == 1 else f'are {answers} answers'} of people. "
        if judged := right + wrong.total():
            words += f"By these the detector was right on {right} of {judged} ({percent(right / judged)})"
            kinds = {"bad": "defective, and called normal", "good": "good, and set aside"}
            told = [
                f"{wrong[said]} {'was' if wrong[said] == 1 else 'were'} {kinds[said]}" for said in kinds if wrong[said]
            ]
            words += f": {'; '.join(told)}." if told else "."
            words += " People answer mostly where something looks wrong, so this is no rate of errors."
        items = [item for _, item in sorted(listed, key=lambda each: each[0])]
        more = f"<p>And {answers - MOST_LISTED} more, which the results name.</p>" if answers > MOST_LISTED else ""
        box = (
            '<input type="checkbox" id="wrong"><label for="wrong">Show only those on which the detector was wrong '
            f"({wrong.total()})</label>"
        )
        return [
            _section("What people said", f"<p>{_text(words)}</p>"),
            box if wrong.total() else "",
            f'<section><ul class="list">{"".join(items[:MOST_LISTED])}</ul>{more}</section>',
        ]

    def _pictures(self, total: Counter[str]) -> str:
        if not self._shown:
            return ""
        cards = []
        for shown in sorted(self._shown, reverse=True):
            picture = '<div class="nothing">no picture was kept</div>'
            if shown.jpeg:
                data = base64.b64encode(shown.jpeg).decode("ascii")
                picture = f'<img alt="Heat map over {_text(_name_of(shown.row, FOLDERS))}" src="data:image/jpeg;base64,{data}">'
            caption = f"<figcaption>{self._caption(shown.row, shown.said)}</figcaption>"
            cards.append(f"<figure{_class_of(shown.said)}>{picture}{caption}</figure>")
        words = (
            "Worst first. Amber to red is above the threshold and outlined; blue to white is below. Colors mean the same in "
            "all pictures."
        )
        return f'<p>{words}</p><div class="cards">{"".join(cards)}</div>'

    def _caption(self, row: dict[str, Any], said: Feedback | None) -> str:
        verdict = verdict_of(row)
        truth = ""
        if (defective := row.get("is_defective")) is not None:
            kind = f"defective ({row['defect']})" if defective else "good"
            truth = f" <em>In truth it is {_text(kind)}.</em>"
        truth += _words_of(said)
        when = (
            f'<span class="when">{_text(str(row["time"]).replace("T", " ").rstrip("Z"))}</span>'
            if row.get("time")
            else ""
        )
        known = (
            f' <span class="when">id {_text(row["id"])}</span>' if row.get("id") else ""
        )  # as `anople feedback` wants it
        return f"{_swatch(verdict)}{_text(describe_row(row, self.threshold, folders=FOLDERS))}{truth} {when}{known}"

    def _list_of_others(self) -> str:
        if not self._listed:
            return ""
        items = "".join(item for _, _, item in sorted(self._listed, reverse=True))
        more = f"<p>And {self._unlisted} more, which the results name.</p>" if self._unlisted else ""
        return f'<ul class="list">{items}</ul>{more}'

    def _worth(self) -> str:
        sentences = []
        records = {} if self.config is None else {
            record.name: record for record in map(ProductRecord.from_dict, self.config.products)
        }  # fmt: skip
        for product in sorted(self._counts):
            said = []
            if (record := records.get(product)) and record.threshold:
                said.append(describe_guarantee(record.threshold))
                said.append(self._expected(product, record))
            elif record:
                said.append("It has no threshold: show it good photographs with anople add_normals.")
            said.append(_measured(self._truths[product]))
            if any(said):
                sentences.append(f"<li><strong>{_text(product)}.</strong> {_text(' '.join(filter(None, said)))}</li>")
        if self.config is None:
            note = "The detector was not given, so this page cannot say what its thresholds promise (--detector)."
            sentences.append(f"<li>{note}</li>")
        return f"<ul>{''.join(sentences)}</ul>" if sentences else ""

    def _expected(self, product: str, record: ProductRecord) -> str:
        """Compare how many were set aside with how many good ones would be."""
        counts = self._counts[product]
        judged = counts["normal"] + counts["unsure"] + counts["anomalous"]
        if not judged or product in self._truths or record.threshold.defects:  # a line by costs keeps no rate
            return ""
        rate = record.threshold.max_false_alarm_rate
        return (
            f"Of {_photographs(judged)} of it here, {counts['anomalous']} ({percent(counts['anomalous'] / judged)}) were "
            f"called anomalous; if all parts were good, about {rate * judged:.2g} would be expected at {percent(rate)}."
        )

    def _facts(self) -> str:
        facts: dict[str, object] = {"threshold": f"score {self.threshold:.2f}; 0.50 is the one that was fitted"}
        if self.config is not None:
            source = self.config.clip_source or {}
            facts |= {
                "detector": self.detector,
                "state of the detector": self.config.content_sha256,
                "backbone": source.get("name"),
                "tiles": self.config.tiling,
            }
        facts |= self.settings
        facts["versions"] = ", ".join(
            [
                *(f"{name} {version(name)}" for name in ("anople", "torch", "transformers")),
                f"Python {platform.python_version()}",
            ]
        )
        facts["written"] = f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
        rows = [
            f"<dt>{_text(name)}</dt><dd>{_text(str(value))}</dd>" for name, value in facts.items() if value is not None
        ]
        return f"<dl>{''.join(rows)}</dl>"


def _measured(truths: Counter[str]) -> str:
    """Say what came out where the truth is known."""
    said = []
    for kind, called, words in (
        ("good", "anomalous", "were called anomalous, which are false alarms"),
        ("defective", "anomalous", "were found"),
    ):
        if known := truths[f"{kind} anomalous"] + truths[f"{kind} normal"]:
            hits = truths[f"{kind} {called}"]
            said.append(f"Of {known} {kind} photographs {hits} ({percent(hits / known)}) {words}.")
    return " ".join(said)


def _class_of(said: Feedback | None) -> str:
    return ' class="wrong"' if _was_wrong(said) else ""


def _words_of(said: Feedback | None) -> str:
    if said is None:
        return ""
    wrong = f", so “{said.label}” was wrong" if _was_wrong(said) else ""
    return f" <em>A person said it is {SAID[said.verdict]}{wrong}.</em>"


def _severity(counts: Counter[str]) -> tuple[float, float]:
    total = max(1, counts.total())
    return counts["anomalous"] / total, (total - counts["normal"]) / total


def _seconds_of(time: object) -> int | None:
    try:
        return int(datetime.fromisoformat(str(time)).timestamp())
    except (ValueError, OverflowError):
        return None


def _jpeg_of(picture: Image.Image) -> bytes:
    picture = picture.convert("RGB")
    picture.thumbnail((PICTURE_SIDE, PICTURE_SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()


def _bars(bars: list[Counter[str]], most: int) -> str:
    """Draw stacked bars as SVG, 100 units high, what needs nobody at the foot."""
    width, shapes = min(WIDEST_BAR, 600 / len(bars)), []
    for place, bar in enumerate(bars):
        top = 100.0
        for name in VERDICTS:
            if bar[name]:
                height = 100 * bar[name] / most
                top -= height
                shapes.append(
                    f'<rect x="{place * width + 0.5:.1f}" y="{top:.2f}" width="{max(0.5, width - 1):.1f}" '
                    f'height="{height:.2f}" fill="{COLORS[name]}"/>'
                )
    return (
        '<svg viewBox="0 0 600 101" role="img" aria-label="Verdicts over time" preserveAspectRatio="none">'
        f'{"".join(shapes)}<path d="M0 100.5H600" stroke="currentColor" stroke-width="1"/></svg>'
    )


def _clock(seconds: int) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M}"


def _span(seconds: int) -> str:
    for size, name in ((86_400, "day"), (3600, "hour"), (60, "minute")):
        if seconds >= size:
            number = seconds // size
            return f"{number} {name}s" if number > 1 else f"one {name}"
    return f"{seconds} seconds"


def _photographs(number: int) -> str:
    return f"{number} photograph{'' if number == 1 else 's'}"


def _text(words: str) -> str:
    return html.escape("".join(each if each.isprintable() else " " for each in words))


def _swatch(verdict: str) -> str:
    return f'<i style="background:{COLORS[verdict]}"></i>'


def _section(title: str, content: str) -> str:
    return f"<section><h2>{title}</h2>{content}</section>" if content else ""


TITLE = "AnoPLe inspection"

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="generator" content="anople report"><title>{title}</title><style>
:root {{ --ink: #1c2026; --quiet: #59616b; --rule: #d5dade; --band: #f2f4f6 }}
* {{ box-sizing: border-box }}
body {{ margin: 0 auto; max-width: 72rem; padding: 1.2rem; color: var(--ink); background: #fff;
  font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere }}
h1 {{ font-size: 1.5rem; line-height: 1.25; margin: 0 0 1rem }} h2 {{ font-size: 1.15rem; margin: 2rem 0 .5rem }}
p, li {{ max-width: 75ch }} p {{ margin: .4rem 0 }} .lead {{ font-size: 1.1rem }} .note, .when {{ color: var(--quiet) }}
.note {{ font-size: .85rem }} .when {{ display: block; font-size: .8rem }} ul {{ padding-left: 1.2rem }} li {{ margin: .3rem 0 }}
.list {{ font-size: .9rem; columns: 26rem 2; column-gap: 2.5rem }} .list li {{ break-inside: avoid }}
#wrong {{ margin: .8rem .5rem .8rem 0 }} #wrong:checked ~ section :is(.list li, figure):not(.wrong) {{ display: none }}
table {{ border-collapse: collapse; margin: .8rem 0; font-variant-numeric: tabular-nums }}
th, td {{ padding: .35rem .8rem; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--rule); font-weight: 400 }}
thead th {{ background: var(--band) }} tr > :first-child {{ text-align: left; white-space: normal; min-width: 6rem }}
i {{ display: inline-block; width: .7em; height: .7em; border-radius: 2px; margin-right: .4em }}
svg {{ display: block; width: 100%; height: 9rem; margin-top: .8rem }}
.cards {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 18rem), 1fr)); gap: 1.2rem; margin-top: 1rem }}
figure {{ margin: 0; border: 1px solid var(--rule); border-radius: .4rem; overflow: hidden }}
figure img {{ display: block; width: 100%; height: 14rem; object-fit: contain }}
.nothing {{ height: 4rem; display: grid; place-items: center; background: var(--band); color: var(--quiet) }}
figcaption {{ padding: .6rem .8rem; border-top: 1px solid var(--rule); font-size: .9rem; line-height: 1.4 }}
dl {{ display: grid; grid-template-columns: max-content 1fr; gap: .3rem 1.2rem; font-size: .9rem }}
dt {{ color: var(--quiet) }} dd {{ margin: 0 }}
@media screen and (max-width: 54rem) {{
  .counts thead {{ display: none }} .counts, .counts tbody {{ display: block }}
  .counts tr {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(9rem, 1fr)); padding: .4rem 0; border-bottom: 1px solid var(--rule) }}
  .counts :is(th, td) {{ display: flex; gap: .5rem; padding: .15rem .4rem; text-align: left; border: 0; white-space: normal }}
  .counts th {{ grid-column: 1 / -1; font-weight: 600 }} .counts td::after {{ content: attr(data-name); color: var(--quiet) }}
  .counts td::before {{ content: ""; flex: 0 0 .3rem; background: var(--color, transparent) }}
}}
@page {{ size: A4; margin: 16mm }}
@media print {{
  body {{ max-width: none; padding: 0; font-size: 10pt }} .cards {{ grid-template-columns: repeat(3, 1fr); gap: 4mm }}
  figure img {{ height: 42mm }} figure, tr, li, dl {{ break-inside: avoid }} h2 {{ break-after: avoid }}
  * {{ -webkit-print-color-adjust: exact; print-color-adjust: exact }}
  #wrong:not(:checked), #wrong:not(:checked) + label {{ display: none }}
}}
</style></head><body><h1>{title}</h1>
{sections}
</body></html>
"""


# --- A page of what was written before ---


def report_of_results(place: Path, *, config: AnoPLeConfig | None = None, detector: str | None = None) -> Report:
    """
    Make the report of what predict, watch or serve have written into a folder, and of what people said of it.

    Args:
        place: the folder, or its file of JSON lines.
        config, detector: as of [`Report`].

    Raises:
        ValueError: where there are no results.
    """
    rows = Rows(place)
    report = Report(place.name or str(place), config=config, detector=detector, settings={"results": str(place)})
    folder = place if place.is_dir() else place.parent
    answers = answers_in(folder)
    for row in rows:
        report.add(row, lambda row=row: picture_of(row, folder), said=answers.get(row.get("id")))
    report.broken = rows.damaged
    return report


def page_of_evaluation(values: dict[str, Any], name: str) -> str:
    """
    Make the page of what `anople evaluate --json` has written: what was measured, product by product.

    Args:
        values: the content of the file.
        name: of what was measured.
    """
    items = []
    for product, figures in values["classes"].items():
        said = [f"{_photographs(figures['normal'])} of good parts and {figures['anomalous']} of defective ones."]
        if figures.get("false_alarm_rate") is not None:
            said.append(
                f"{percent(figures['false_alarm_rate'])} of the good ones were called anomalous (false alarms)."
            )
        if figures.get("detection_rate") is not None:
            said.append(f"{percent(figures['detection_rate'])} of the defective ones were found.")
        if figures.get("image_auroc") is not None:
            said.append(
                f"A defective one has the higher score than a good one in {percent(figures['image_auroc'])} of all pairs."
            )
        if figures.get("pixel_auroc") is not None:
            said.append(f"The same of defective and good pixels: {percent(figures['pixel_auroc'])}.")
        items.append(f"<li><strong>{_text(product)}.</strong> {_text(' '.join(said))}</li>")
    errors = [f"<li>{_text(f'{path}: {error}')}</li>" for path, error in values["errors"].items()]
    facts = {name.replace("_", " "): value for name, value in values.items() if isinstance(value, (str, int, float))}
    rows = [f"<dt>{_text(name)}</dt><dd>{_text(str(value))}</dd>" for name, value in facts.items()]
    sections = [
        _section("What was measured", f"<ul>{''.join(items)}</ul>"),
        _section("Could not be judged", f"<ul>{''.join(errors)}</ul>" if errors else ""),
        _section("Settings", f"<dl>{''.join(rows)}</dl>"),
    ]
    return _PAGE.format(title=_text(f"{TITLE}: {name}"), sections="\n".join(filter(None, sections)))


__all__ = ["Report", "describe_row", "page_of_evaluation", "report_of_results", "verdict_of"]

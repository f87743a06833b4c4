"""The findings of many photographs: rows of a table, and a zip with a CSV file and all heat maps."""

import csv
import io
import re
import zipfile
from pathlib import Path

from modeling_anople.runtime.heat_maps import with_legend

from .explaining import data_address
from .inspecting import Finding


COLUMNS = ("no", "photograph", "verdict", "score", "line", "product", "ms", "remark")
PAGE_COLUMNS = ("no", "heat map", *COLUMNS[1:])
THUMBNAIL_SIDE = 72  # pixels


def table_row(number: int, finding: Finding) -> list:
    """Turn a finding into a row of `COLUMNS`."""
    if finding.error:
        return [number, finding.name, "not judged", None, None, "", None, finding.error]
    remark = "product found by the detector" if finding.found and finding.product else ""
    score, spent = round(finding.score, 4), round(finding.milliseconds)
    return [number, finding.name, finding.verdict, score, finding.line, finding.product or "", spent, remark]


def page_row(number: int, finding: Finding) -> list:
    """Turn a finding into a row of `PAGE_COLUMNS`: one of `COLUMNS` with a small heat map in it, as HTML."""
    picture = ""
    if finding.heat_map is not None:
        small = finding.heat_map.copy()
        small.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
        picture = f'<img src="{data_address(small)}" alt="heat map {number}" class="thumbnail">'
    number, *others = table_row(number, finding)
    return [number, picture, *others]


def write_report(folder: Path, findings: list[Finding]) -> Path:
    """Write results.csv and the heat maps with their legend into one zip file in a folder, and return its path."""
    path = folder / "anople_results.zip"
    table = io.StringIO()
    writer = csv.writer(table)
    writer.writerow([*COLUMNS, "heat_map"])
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for number, finding in enumerate(findings, start=1):
            name = ""
            if finding.heat_map is not None:
                name = f"heat_maps/{number:03d}-{_plain(Path(finding.name).stem)}.png"
                picture = io.BytesIO()
                with_legend(finding.heat_map).save(picture, "PNG")
                archive.writestr(zipfile.ZipInfo(name), picture.getvalue())  # no date: equal findings, equal files
            writer.writerow([_inert(value) for value in [*table_row(number, finding), name]])
        archive.writestr("results.csv", table.getvalue())
    return path


def _plain(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_-]+", "_", name)[:60] or "photograph"


def _inert(value: object) -> object:
    """Keep a spreadsheet from taking a text for a formula."""
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t")) else value

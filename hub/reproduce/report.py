"""One table as JSON, Markdown and a plot: mean and standard deviation over seeds, the paper's figures beside ours."""

import json
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from modeling_anople.cli import compare
from modeling_anople.data import read_source
from modeling_anople.data.public_sets import SETS
from modeling_anople.runtime.outputs import Output, check_outputs, json_of

from .options import ReproduceOptions
from .tables import Cell, Table


# --- Whether what is tested is what the paper tested, told by names and numbers: no photograph is opened ---


def count_tests(source: str, classes: Sequence[str] | None = None) -> dict[str, tuple[int, int]]:
    """Count the good and the defective test photographs of each class."""
    rows = read_source(source, split="test", classes=classes)
    names = rows["class_name"][:]
    counts = Counter(zip(names, rows["label"][:], strict=True))
    return {name: (counts[name, 0], counts[name, 1]) for name in dict.fromkeys(names)}


def unlike_paper(tested: Mapping[str, tuple[int, int]], options: ReproduceOptions) -> str | None:
    """
    Say why the paper's figures do not stand beside ours: what is tested is not the whole set that `data_set` names.

    Args:
        tested: class -> good and defective test photographs.

    Returns:
        A sentence; `None` where it is that set, as far as official numbers are known, and where `data_set` names none.
    """
    if options.data_set == "other":
        return None
    facts = SETS[options.data_set]
    reasons = [f"--{name} was given" for name in ("classes", "test_images") if getattr(options, name)]
    if missing := [name for name in facts.classes if name not in tested]:
        reasons.append(f"missing: {', '.join(missing)}")
    if others := [name for name in tested if name not in facts.classes]:
        reasons.append(f"no classes of it: {', '.join(others)}")
    known = [name for name in tested if name in facts.classes]
    differ = [name for name in known if not _agrees(tested[name], facts.classes[name])]
    if differ and not options.test_images:
        reasons.append(f"other numbers of test photographs than the official ones: {', '.join(differ)}")
    total = tuple(map(sum, zip(*tested.values(), strict=True)))
    if not reasons and not _agrees(total, facts.totals):
        reasons.append("another number of test photographs in all than the official one")
    left_out = f"The paper's figures are left out, for what is tested is not the whole {facts.title}"
    return f"{left_out} ({'; '.join(reasons)})." if reasons else None


def _agrees(tested: tuple[int, ...], official: tuple | None) -> bool:
    """Compare the numbers of test photographs alone, where they are known."""
    return compare((None, *tested), official and (None, *official[1:]), None)[1]


# --- The table, its Markdown and its plot ---


COLUMNS = {"image_auroc": "I-AUROC", "image_ap": "I-AP", "pixel_auroc": "P-AUROC", "aupro": "AUPRO"}

TRIAL_STEPS = 10  # a fit of so few teaches nothing


def summarize(name: str, table: Table, records: dict[str, Sequence[dict]], options: ReproduceOptions) -> dict:
    """
    Gather a table from its cells' records.

    Args:
        records: per cell one record for each seed; a cell without any was not run.
    """
    some = next((record for found in records.values() for record in found), {})
    tested, left_out = _tested(some), _why_left_out(table, records, options)
    rows = [_row(cell, records.get(cell.name, ()), options, beside=not left_out) for cell in table.cells]
    # differences to the reference row, ours beside the paper's
    reference = next(row for row in rows if row["cell"] == table.reference)
    for row in rows:
        row["to_reference"] = _difference(records.get(row["cell"], ()), records.get(table.reference, ()))
        row["paper_to_reference"] = _minus(row["paper"], reference["paper"])
    first = {seed: record["files"] for found in records.values() for record in found for seed in [record["seed"]]}
    tests = {
        "normal": sum(good for good, _ in tested.values()),
        "anomalous": sum(defective for _, defective in tested.values()),
    }
    protocol = {**options.settings(), "shots": options.shots, "seeds": sorted(first)}
    protocol |= {"test_photographs": tests, "classes_measured": sorted(tested)}
    kept = {key: some.get(key) for key in ("date", "commit", "versions")}
    return {
        "table": name,
        "title": table.title,
        "reference": table.reference,
        "rows": rows,
        "protocol": protocol,
        "files": first,
        "paper_left_out": left_out,
        "notes": list(table.notes),
        "command": options.command(name),
        **kept,
        # rows of several tables may share a record: it goes by the name of this table's row
        "records": [{**record, "cell": cell} for cell, found in records.items() for record in found],
    }


def _tested(record: dict) -> dict[str, tuple[int, int]]:
    """Count the good and the defective test photographs of each class; where kinds of defect were measured apart, all."""
    return {
        name: (entry["normal"], sum(kind["anomalous"] for kind in entry.get("defects", {"all": entry}).values()))
        for name, entry in record.get("products", {}).items()
    }


def _why_left_out(table: Table, records: dict[str, Sequence[dict]], options: ReproduceOptions) -> str | None:
    """Say why the paper's figures are left out of a table that has some; one record of other photographs is enough."""
    if not any(cell.paper for cell in table.cells):
        return None
    reasons = (unlike_paper(_tested(record), options) for found in records.values() for record in found)
    return next(filter(None, reasons), None)


def _row(cell: Cell, records: Sequence[dict], options: ReproduceOptions, *, beside: bool) -> dict:
    """Gather a row; `beside` says whether the paper's figure stands there."""
    row = {"cell": cell.name, "seeds": [record["seed"] for record in records]}
    for metric in COLUMNS:
        values = [record["mean"][metric] for record in records if record["mean"][metric] is not None]
        row[metric] = [100 * statistics.fmean(values), 100 * statistics.pstdev(values)] if values else None
    row["paper"] = cell.paper.get("mvtec" if options.data_set == "other" else options.data_set) if beside else None
    # figures of other products or other shots cannot be compared with the paper's; only orders can
    comparable = row["image_auroc"] and options.data_set != "other" and (cell.shots or options.shots) == 1
    row["difference"] = _minus(row["image_auroc"][0], row["paper"]) if comparable else None
    row["seconds"] = round(sum(record["seconds"] for record in records), 1)
    return row


def _minus(left: float | None, right: float | None) -> float | None:
    return None if left is None or right is None else left - right


def _difference(left: Sequence[dict], right: Sequence[dict]) -> float | None:
    """Compare image AUROCs, percent, over the seeds that both have: another seed's shots are easier or harder."""
    first, second = ({record["seed"]: record["mean"]["image_auroc"] for record in found} for found in (left, right))
    common = [seed for seed in first if first[seed] is not None and second.get(seed) is not None]
    return 100 * statistics.fmean(first[seed] - second[seed] for seed in common) if common else None


def to_json(summary: dict) -> str:
    """Render a table with the records of its cells: a line for each entry, row and record, so that changes can be read."""
    entries = []
    for key, value in summary.items():
        rows = ",\n".join(map(json.dumps, value)) if key in ("rows", "records") else None
        entries.append(f"{json.dumps(key)}: " + (json.dumps(value) if rows is None else f"[\n{rows}\n]"))
    return "{\n" + ",\n".join(entries) + "\n}\n"


def to_markdown(summary: dict) -> str:
    """Render a table with its protocol."""
    protocol = summary["protocol"]
    column = "MVTec AD" if protocol["data_set"] == "other" else protocol["data_set"]
    left_out = summary["paper_left_out"]
    papers = [f"paper, {column}, 1 shot: I-AUROC", "ours - paper", "paper: to reference"]
    head = ["cell", "seeds", *COLUMNS.values(), "to reference", *([] if left_out else papers)]
    lines = [f"# {summary['title']}", ""]
    if protocol["max_steps"] <= TRIAL_STEPS:
        lines += [f"**A trial run of {protocol['max_steps']} steps: that the table can be made, and no result.**", ""]
    lines += [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for row in summary["rows"]:
        name = f"**{row['cell']}**" if row["cell"] == summary["reference"] else row["cell"]
        figures = [_pair(row[metric], len(row["seeds"])) if row["seeds"] else "not run" for metric in COLUMNS]
        papers = [_number(row["paper"]), _signed(row["difference"]), _signed(row["paper_to_reference"])]
        others = [_signed(row["to_reference"]), *([] if left_out else papers)]
        lines.append(f"| {' | '.join([name, str(len(row['seeds'])), *figures, *others])} |")
    steps = f"{protocol['max_steps']} steps of {protocol['batch_size']} photographs"
    tests = protocol["test_photographs"]
    lines += ["", f"    {summary['command']}", ""]
    lines.append(
        f"Percent; mean over products with equal weight, then mean ± standard deviation over seeds {protocol['seeds']}. "
        f"Backbone `{protocol['clip']}`, {protocol['shots']} shot(s) unless a row says otherwise, {steps}, the last step "
        f"kept; class given unless a row says otherwise; maps measured at {protocol['evaluation_size']} pixels. Tested on "
        f"{tests['normal']} good and {tests['anomalous']} defective photographs; classes measured: "
        f"{', '.join(protocol['classes_measured']) or 'none'}. `to reference` is the difference of image "
        "AUROCs over the seeds that both rows have."
    )
    if protocol["data_set"] == "other":
        lines.append("\nThe paper's column is another data set: only orders can be compared, hence no difference.")
    lines += [f"\n{note}" for note in (left_out, *summary["notes"]) if note]
    made = summary["versions"] or {}
    lines.append(
        f"\n{summary['date']}, commit `{summary['commit']}`, {', '.join(f'{k} {v}' for k, v in made.items())}."
    )
    lines.append("\nShots:\n")
    for seed, files in sorted(summary["files"].items()):
        names = "; ".join(f"{name}: {', '.join(Path(path).name for path in paths)}" for name, paths in files.items())
        lines.append(f"- seed {seed}: {names}")
    return "\n".join(lines) + "\n"


def _pair(value: list[float] | None, seeds: int) -> str:
    if value is None:
        return "n/a"
    return f"{value[0]:.1f} ± {value[1]:.1f}" if seeds > 1 else f"{value[0]:.1f}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


def _signed(value: float | None) -> str:
    return "" if value is None else f"{value:+.1f}"


def draw(summary: dict) -> Figure:
    """Draw image AUROC of all rows that were run, with the standard deviation and the paper's figure as a cross."""
    rows = [row for row in summary["rows"] if row["image_auroc"]]
    figure = Figure(figsize=(7, 1.2 + 0.4 * len(rows)), layout="constrained")
    axes = figure.subplots()
    means, deviations = ([row["image_auroc"][part] for row in rows] for part in (0, 1))
    axes.barh(range(len(rows)), means, xerr=deviations, color="#4878a8", height=0.6, label="ours")
    known = [(place, row["paper"]) for place, row in enumerate(rows) if row["paper"] is not None]
    if known:
        axes.plot([x for _, x in known], [y for y, _ in known], "x", color="black", label="paper")
    axes.set_yticks(range(len(rows)), [row["cell"] for row in rows])
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    axes.set_xlabel("image AUROC, %")
    axes.set_title(summary["title"], fontsize=10)
    axes.legend(fontsize=8, loc="lower left")
    return figure


def check_places(tables: Iterable[str], folder: Path, *, overwrite: bool) -> None:
    """Refuse to write tables over files that are none; errors as of [`check_outputs`]."""
    is_table = json_of(("table", "rows", "protocol", "records"))
    outputs = []
    for name in tables:
        table = folder / f"{name}.json"
        outputs.append(Output("--output_dir", table, is_table))
        for ending in (".md", ".png"):  # ours if they lie beside a table
            outputs.append(
                Output("--output_dir", table.with_suffix(ending), lambda path: is_table(path.with_suffix(".json")))
            )
    check_outputs(outputs, overwrite=overwrite)


def write(summary: dict, folder: Path) -> Path:
    """Write NAME.json, NAME.md and NAME.png; return the Markdown file."""
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{summary['table']}.md"
    target.with_suffix(".json").write_text(to_json(summary), encoding="utf-8")
    target.write_text(to_markdown(summary), encoding="utf-8")
    draw(summary).savefig(target.with_suffix(".png"), dpi=100)
    return target


__all__ = [
    "check_places",
    "count_tests",
    "draw",
    "summarize",
    "to_json",
    "to_markdown",
    "unlike_paper",
    "write",
]

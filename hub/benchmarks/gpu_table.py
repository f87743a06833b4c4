"""
What the paper's main table costs on a GPU: `python -m hub.benchmarks.gpu_table FOLDER`.

B/16+ at 240 pixels with random weights, as many products and test photographs as MVTec AD has, drawn, PNG files of
900 x 900 (eight test photographs a product, the others are links to them): time and memory mean something here, figures of
merit nothing, and none is kept. Fits and measurements are those of `python -m hub.reproduce main`, run in FOLDER one after
the other.
"""

import argparse
import json
import os
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
import transformers

from hub.mini_clip.small_clip import byte_tokenizer, write_clip
from hub.reproduce.cells import fit_cell, run_cell
from hub.reproduce.options import ReproduceOptions
from hub.reproduce.tables import TABLES
from modeling_anople.data.drawn_products import PRODUCTS, write_dataset
from modeling_anople.data.public_sets import SETS

from .measuring import RESULTS, b16_plus_config


DIFFERENT = {"train": 4, "good": 2, "defective": 6}  # photographs drawn of a product; the others are links to them


def write_photographs(root: Path, size: int = 900) -> None:
    """Draw a tree with as many products, good and defective test photographs as MVTec AD has."""
    known = SETS["mvtec"]
    products, (_, good, defective) = len(known.classes), known.totals
    with ProcessPoolExecutor() as pool:
        list(pool.map(_draw, [root] * products, range(products), [size] * products))
    for number in range(products):
        folder = root / f"product_{number:02d}"
        _link_up_to(sorted((folder / "test/good").iterdir()), _share(good, products, number))
        kinds = sorted(path for path in (folder / "test").iterdir() if path.name != "good")
        wanted = _share(defective, products, number)
        for place, kind in enumerate(kinds):
            count = _share(wanted, len(kinds), place)
            _link_up_to(sorted(kind.iterdir()), count)
            _link_up_to(sorted((folder / "ground_truth" / kind.name).iterdir()), count)


def _draw(root: Path, number: int, size: int) -> None:
    name = list(PRODUCTS)[number % len(PRODUCTS)]
    write_dataset(root / f"drawn_{number}", number, classes=[name], size=size, **DIFFERENT)
    (root / f"drawn_{number}" / name.replace(" ", "_")).rename(root / f"product_{number:02d}")
    (root / f"drawn_{number}").rmdir()


def _share(total: int, parts: int, number: int) -> int:
    """Cut a total into whole parts that differ by one at most."""
    return total * (number + 1) // parts - total * number // parts


def _link_up_to(paths: list[Path], count: int) -> None:
    for number in range(len(paths), count):
        source = paths[number % len(paths)]
        os.link(source, source.with_name(source.name.replace("0", f"{number}x", 1)))


def main() -> None:
    """Run the table, and keep how long it took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="Where to work; must be new.")
    parser.add_argument("--max_steps", type=int, nargs="+", default=[2000], help="Of each cell, or of all.")
    parser.add_argument("--mixed_precision", default="bf16", choices=["no", "bf16"])
    parser.add_argument("--num_workers", type=int, default=8)
    places = parser.parse_args()
    if places.folder.exists():
        parser.error(f"{places.folder} exists: name a new folder")
    tokenizer = byte_tokenizer()
    write_clip(places.folder / "clip", b16_plus_config(len(tokenizer), tokenizer.eos_token_id), tokenizer)
    write_photographs(places.folder / "photographs")
    rows, cells = [], TABLES["main"].cells
    for cell, steps in zip(cells, places.max_steps * (1 if len(places.max_steps) > 1 else len(cells)), strict=False):
        options = ReproduceOptions(
            str(places.folder / "photographs"),
            str(places.folder / "out"),
            str(places.folder / "clip"),
            seeds=[0],
            max_steps=steps,
            mixed_precision=places.mixed_precision,
            num_workers=places.num_workers,
        )
        start = time.perf_counter()
        torch.cuda.reset_peak_memory_stats()
        fit_cell(cell, 0, options, options.data_root, None)
        fitted, peak = time.perf_counter() - start, torch.cuda.max_memory_allocated() / 2**20
        rows.append({"cell": cell.name, "steps": steps, "fit_seconds": fitted, "fit_peak_mb": peak})
        keep(rows, places)
        torch.cuda.reset_peak_memory_stats()
        record = run_cell(cell, 0, options)  # finds the fit there
        tested, peak = _tested(record), torch.cuda.max_memory_allocated() / 2**20
        rows[-1] |= {"tested": tested, "test_seconds": record["seconds"], "test_peak_mb": peak}
        keep(rows, places)
        print(rows[-1], flush=True)


def _tested(record: dict) -> int:
    return sum(entry["normal"] + entry["anomalous"] for entry in record["products"].values())


def keep(rows: list[dict], places: argparse.Namespace) -> None:
    """Write the table as JSON and Markdown."""
    about = {"device": torch.cuda.get_device_name(), "torch": torch.__version__, "CUDA": torch.version.cuda}
    about |= {"transformers": transformers.__version__, "cores": os.cpu_count()}
    options = {name: getattr(places, name) for name in ("max_steps", "mixed_precision", "num_workers")}
    (RESULTS / "gpu_table.json").write_text(
        json.dumps({"rows": rows, **options, **about}, indent=2) + "\n", encoding="utf-8"
    )
    lines = [
        "# The main table on a GPU, with random weights",
        "",
        f"`python -m hub.benchmarks.gpu_table FOLDER --max_steps {' '.join(map(str, places.max_steps))} "
        f"--mixed_precision {places.mixed_precision} --num_workers {places.num_workers}`; "
        + ", ".join(f"{name} {value}" for name, value in about.items())
        + ".",
        "",
        *__doc__.strip().splitlines()[2:],
        "",
        "| 15 products | steps of 8 photographs | fit | fit / steps | GPU memory, fit | measuring | photographs a second | GPU memory, measuring |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        cells = (row["cell"], f"{row['steps']:,}", f"{row['fit_seconds']:.0f} s")
        cells += (f"{1000 * row['fit_seconds'] / row['steps']:.0f} ms", f"{row['fit_peak_mb']:,.0f} MB")
        if "tested" in row:
            cells += (f"{row['test_seconds']:.0f} s", f"{row['tested'] / row['test_seconds']:.0f}")
            cells += (f"{row['test_peak_mb']:,.0f} MB",)
        else:
            cells += ("not done", "", "")
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "How that run went: [gpu_runs.md](gpu_runs.md)."]
    (RESULTS / "gpu_table.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

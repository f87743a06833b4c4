"""
The paper's tables and our ablations, each cell fitted and measured as a person would.

    python -m hub.reproduce main --data_root DATA --data_set mvtec --clip CLIP
    python -m hub.reproduce coupling,scale,alignment --data_root DATA
    python -m hub.reproduce all --data_root DATA --cells 1

Cells that are done are kept in output_dir, so a stopped run goes on where it stopped. The JSON file of a table holds the
records of its cells, so that a folder of tables alone is enough to go on from. Nothing is chosen by a figure.
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from tqdm.auto import tqdm

from modeling_anople.backbone_anople import load_clip_config
from modeling_anople.runtime import run_program

from .cells import cell_file, commit, run_cell, unpack_records
from .options import ReproduceOptions
from .report import check_places, count_tests, summarize, unlike_paper, write
from .tables import TABLES, Cell, Table, tables_of


logger = logging.getLogger(__name__)


def cells_of(table: Table, options: ReproduceOptions, blocks: int) -> list[Cell]:
    """Return the cells to run: those that this CLIP can tell apart, on what there is, or the first few of them."""
    cells = [cell for cell in table.cells if cell.blocks <= blocks and (options.memory_encoder or not cell.encoder)]
    return cells[: options.cells or None]


def warn_if_unlike(options: ReproduceOptions) -> None:
    """Warn before the first fit if the paper's figures will be left out of the tables."""
    if options.data_set != "other" and (why := unlike_paper(count_tests(options.data_root, options.classes), options)):
        logger.warning("%s", why)


def reproduce(places: argparse.Namespace, options: ReproduceOptions) -> None:
    """Run every cell of the tables named, all of one seed before the next, and write a table when a seed of it is done."""
    tables, folder = tables_of(places.table, options.given), Path(options.output_dir)
    check_places(tables, folder, overwrite=options.overwrite)
    blocks = load_clip_config(options.clip).vision_config.num_hidden_layers
    rows = {name: cells_of(table, options, blocks) for name, table in tables.items()}
    records: dict[str, dict[str, list[dict]]] = {name: {} for name in tables}
    if not options.collect:  # which needs no data
        warn_if_unlike(options)
    unpack_records(folder)
    commit()  # of the code that runs, whatever is committed meanwhile
    with tqdm(total=len(options.seeds) * sum(map(len, rows.values())), desc="cells") as bar:
        # seeds outermost: after the first one every table is there, and more seeds only narrow it
        for seed in options.seeds:
            for name, cells in rows.items():
                for cell in cells:
                    if options.collect and not cell_file(cell, seed, options).exists():
                        continue
                    tqdm.write(f"{name}: {cell.name}, seed {seed}", file=sys.stderr)
                    records[name].setdefault(cell.name, []).append(run_cell(cell, seed, options))
                    bar.update()
                write(summarize(name, tables[name], records[name], options), folder)
    logger.info("Tables are in %s.", folder)


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the command line and run; return the exit code."""
    text = f"One of {', '.join(TABLES)}; several with commas between; or all (that make sense)."
    return run_program("python -m hub.reproduce", ReproduceOptions, reproduce, arguments, table=text)


if __name__ == "__main__":
    sys.exit(main())

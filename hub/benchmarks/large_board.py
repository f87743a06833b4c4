"""
A defect of 30 pixels on a board of 8000 x 2000, with tiling and without: `python -m hub.benchmarks.large_board`.

Boards are drawn; the detector stands on the embedded CLIP and learns both ways from the same three good boards, without
training. Writes results/large_board.md and docs/large_board.jpg.
"""

import argparse
import time
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from modeling_anople import AnoPLeModel, AnoPLeProcessor
from modeling_anople.enrollment_anople import add_normals
from modeling_anople.pipeline_anople import predict
from modeling_anople.runtime.heat_maps import overlay
from modeling_anople.tiling_anople import plan_tiles


ROOT = Path(__file__).parents[2]
RESULTS = Path(__file__).parent / "results"
SPOTS = [(5213, 871), (1402, 1544)]
DEFECT = 30


def draw_board(seed: int, size: tuple[int, int], spot: tuple[int, int] | None = None) -> Image.Image:
    """
    Draw a board of traces, pads and chips, and a burned spot where that is asked for.

    Each has noise of its own, and lies and is lit as boards before a camera do: up to 6 pixels off, some 2 gray levels
    brighter or darker.
    """
    width, height = size
    board = Image.new("RGB", size, (24, 92, 58))
    pen = ImageDraw.Draw(board)
    for top in range(40, height, 100):
        pen.rectangle((0, top, width, top + 14), fill=(40, 128, 84))
    for top in range(60, height - 100, 200):
        for left in range(60, width - 200, 250):
            pen.rectangle((left, top, left + 120, top + 70), fill=(34, 34, 38))
            for place in range(0, 120, 24):
                pen.rectangle((left + place, top - 12, left + place + 12, top), fill=(190, 180, 120))
                pen.rectangle((left + place, top + 70, left + place + 12, top + 82), fill=(190, 180, 120))
    if spot:
        pen.ellipse((*spot, spot[0] + DEFECT - 1, spot[1] + DEFECT - 1), fill=(226, 120, 44))
    generator = np.random.default_rng(seed)
    noise = generator.integers(-6, 7, (height, width, 1), dtype=np.int16) + np.int16(generator.normal(0, 2))
    pixels = np.roll(np.asarray(board, dtype=np.int16), generator.integers(-6, 7, 2), axis=(0, 1))
    return Image.fromarray(np.clip(pixels + noise, 0, 255).astype(np.uint8))


def measure(size: tuple[int, int], normals: int) -> tuple[list[dict], np.ndarray]:
    """Learn boards in both ways and judge good and bad ones; also the tiled map of the first bad one."""
    processor = AnoPLeProcessor.from_clip("mini", ["board"])
    rows, shown = [], None
    spots = [(int(left * size[0] / 8000), int(top * size[1] / 2000)) for left, top in SPOTS]
    for way in ("auto", None):
        model = AnoPLeModel.from_clip("mini", ["board"], tiling=way)
        start = time.perf_counter()
        boards = (draw_board(number, size) for number in range(normals))
        add_normals(model, processor, "board", boards)
        learned = time.perf_counter() - start
        for number, spot in enumerate((spots[0], None, spots[1], None), start=100):
            found = next(predict(model, processor, [draw_board(number, size, spot)], class_names="board"))
            values = found.full_size_map()
            top, left = (int(place) for place in np.unravel_index(values.argmax(), values.shape))
            at = "" if spot is None else round(max(abs(left - spot[0] - 15), abs(top - spot[1] - 15)))
            row = {"tiling": way or "none", "board": "defective" if spot else "good", "raw": found.raw_score}
            row |= {"score": found.score, "label": found.label, "off": at, "seconds": found.seconds, "learnt": learned}
            rows.append(row)
            shown = values if shown is None else shown
    return rows, shown


def write(
    rows: list[dict], size: tuple[int, int], normals: int, shown: np.ndarray, picture: Path, table: Path
) -> None:
    """Write the table and the picture."""
    layout = plan_tiles(size[::-1], "auto", 224)
    lines = [
        "# A 30-pixel defect on a board of {} x {}\n".format(*size),
        f"`python -m hub.benchmarks.large_board`, embedded CLIP, {normals} good boards, no training, the usual line. "
        f'"auto" lays {len(layout.boxes)} tiles of {layout.side} pixels; without tiling the board becomes 224 x 224.\n',
        "| tiling | board | raw score | score | label | peak of the map from the defect, pixels | seconds |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        lines.append(
            f"| {row['tiling']} | {row['board']} | {row['raw']:.4f} | {row['score']:.3f} | {row['label']} | {row['off']} "
            f"| {row['seconds']:.1f} |"
        )
    table.parent.mkdir(exist_ok=True)
    table.write_text("\n".join(lines) + "\n", encoding="utf-8")
    small = (1600, 1600 * size[1] // size[0])
    spot = (int(SPOTS[0][0] * size[0] / 8000), int(SPOTS[0][1] * size[1] / 2000))
    board = draw_board(100, size, spot).resize(small, Image.Resampling.LANCZOS)
    heat = np.array(Image.fromarray(shown.astype(np.float32)).resize(small, Image.Resampling.BILINEAR))
    overlay(board, heat).convert("RGB").save(picture, quality=80)


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--normals", type=int, default=3)
    parser.add_argument("--size", type=int, nargs=2, default=[8000, 2000])
    options = parser.parse_args()
    rows, shown = measure(tuple(options.size), options.normals)
    table = RESULTS / "large_board.md"
    write(rows, tuple(options.size), options.normals, shown, ROOT / "docs" / "large_board.jpg", table)
    print(table.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()

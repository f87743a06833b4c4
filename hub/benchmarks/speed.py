"""
The table of speed and memory: `python -m hub.benchmarks.speed`, or `make benchmark`; on a GPU with `--device cuda`.

Every figure is the median over pairs, run in turn in one process, of the processor time of one thing by that of another
(on a GPU, of the time until it has done its work): a noisy machine slows both. B/16+ at 240 pixels has random weights, 2
products and 4 photographs of each, if nothing else is said. What needs a fresh interpreter, or on a CPU peak memory, runs
in processes of its own.
"""

import argparse
import json
import os
import platform

import torch
import transformers

from . import gpu_rows, memory_rows, speed_rows
from .prediction_cost import RESULTS, make_detector


PARTS = {
    "predict": lambda model, repeats: speed_rows.predict_rows(model, repeats),
    "memory": lambda model, repeats: memory_rows.memory_rows(model, max(2, repeats // 2)),
    "forms": lambda model, repeats: speed_rows.form_rows(model, max(2, repeats // 2)),
    "fit": lambda model, repeats: speed_rows.fit_rows(model, max(2, repeats // 2)),
    "fit_products": lambda model, repeats: speed_rows.many_product_rows(max(2, repeats // 2)),
    "products": lambda model, repeats: speed_rows.product_rows(10 * repeats),
    "start": lambda model, repeats: speed_rows.start_rows(model, 4 * repeats),
    "metrics": lambda model, repeats: speed_rows.metric_rows(),
}

GPU_PARTS = {
    "predict": lambda model, repeats: gpu_rows.predict_rows(model, repeats),
    "memory": lambda model, repeats: memory_rows.memory_rows(model, max(2, repeats // 2)),
    "forms": lambda model, repeats: gpu_rows.form_rows(model, max(2, repeats // 2)),
    "fit": lambda model, repeats: gpu_rows.fit_rows(model, max(2, repeats // 4)),
    "fit_products": lambda model, repeats: speed_rows.many_product_rows(max(2, repeats // 4), model.device),
    "products": lambda model, repeats: speed_rows.product_rows(repeats, model.device),
}


def to_table(rows: list[dict], about: dict, command: str) -> str:
    """Write the rows as Markdown."""
    lines = ["| what | against | ratio | quartiles | target | |", "|---|---|---|---|---|---|"]
    for entry in rows:
        target = (
            ""
            if entry["target"] is None
            else f"{entry['target']:g} {'met' if entry['ratio'] <= entry['target'] else '**missed**'}"
        )
        low, high = entry["quartiles"]
        spread = f"{low:.3f} - {high:.3f}" if entry["pairs"] > 1 else "one pair"
        cells = (entry["what"], entry["against"], f"{entry['ratio']:.3f}", spread, target, entry["note"])
        lines.append(f"| {' | '.join(cells)} |")
    shown = ", ".join(f"{name} {value}" for name, value in about.items())
    return f"# Speed and memory\n\n`{command}`; {shown}.\n\n{__doc__.strip()}\n\n" + "\n".join(lines) + "\n"


def main() -> None:
    """Measure, print and keep the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"], help="Where to measure.")
    parser.add_argument("--repeats", type=int, help="Pairs of each row; by default 8, on a GPU 40.")
    parser.add_argument("--only", nargs="+", choices=PARTS, help="Measure these parts anew and keep the other rows.")
    parser.add_argument("--peak", choices=["fit", "bare"], help="Print the peak memory of such steps in MB, and end.")
    options = parser.parse_args()
    if options.peak:
        print(speed_rows.peak_memory(options.peak))
        return
    about = {"torch": torch.__version__, "Python": platform.python_version()}
    if options.device == "cpu":
        about |= {"threads": torch.get_num_threads(), "cores": os.cpu_count()}
        about |= {"instructions": torch.backends.cpu.get_cpu_capability()}
        parts, repeats, name, command = PARTS, options.repeats or 8, "speed", "python -m hub.benchmarks.speed"
    else:
        about |= {"CUDA": torch.version.cuda, "device": torch.cuda.get_device_name(), "cores": os.cpu_count()}
        about |= {"TF32": torch.backends.cuda.matmul.allow_tf32, "transformers": transformers.__version__}
        parts, repeats, name = GPU_PARTS, options.repeats or 40, "speed_cuda"
        command = "python -m hub.benchmarks.speed --device cuda"
    if others := sorted(set(options.only or ()) - set(parts)):
        parser.error(f"--only {' '.join(others)}: there is no such part on {options.device}")
    file = RESULTS / f"{name}.json"
    known = json.loads(file.read_text(encoding="utf-8"))["rows"] if options.only and file.exists() else []
    rows = {part: [row for row in known if row.get("part") == part] for part in parts}
    model = make_detector().to(options.device)
    for part in options.only or parts:
        rows[part] = []
        with torch.inference_mode():
            for entry in parts[part](model, repeats):
                rows[part].append({"part": part, **entry})
                print(f"{entry['ratio']:.3f}  {entry['what']} / {entry['against']}  {entry['note']}", flush=True)
        done = [row for part in parts for row in rows[part]]
        file.write_text(json.dumps({"rows": done, **about}, indent=2) + "\n", encoding="utf-8")
    (RESULTS / f"{name}.md").write_text(to_table(done, about, command), encoding="utf-8")


if __name__ == "__main__":
    main()

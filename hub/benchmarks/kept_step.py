"""
What it would be worth to keep the step with the best test score: `python -m hub.benchmarks.kept_step DATA FOLDER`.

A predecessor's published code measures the test set as it trains and keeps the best. AnoPLe keeps the last step and looks at no
test photograph before. Here a fit is measured at several of its steps, each finished as a fit's end is; the table has the last
one and the best by image AUROC of the test set, which nobody would know. Nothing is kept.
"""

import argparse
import copy
import statistics
from pathlib import Path

from accelerate.utils import set_seed
from torch.utils.data import DataLoader

from modeling_anople import AnoPLeModel, AnoPLeProcessor
from modeling_anople.evaluation import evaluate
from modeling_anople.training import fit_steps, make_accelerator, make_optimizer
from modeling_anople.training.few_shot import StepSampler, choose_shots, collate_views, make_samples
from modeling_anople.training.finishing import finish
from modeling_anople.training.options import RECIPES, TrainingConfig


METRICS = {"image_auroc": "I-AUROC", "pixel_auroc": "P-AUROC", "aupro": "AUPRO"}


def measured_steps(config: TrainingConfig, every: int) -> dict[int, dict[str, float]]:
    """Fit, and measure the test set every so many steps: step -> metrics, means over products."""
    set_seed(config.seed)
    accelerator, shots = make_accelerator(config), choose_shots(config)
    names = list(shots.files)
    model = AnoPLeModel.from_clip(config.clip, names, **RECIPES[config.recipe]).freeze_clip()
    processor = AnoPLeProcessor.from_clip(config.clip, names)
    samples = make_samples(config, processor, shots, model.config.view_grid)
    sampler = StepSampler(0, config.max_steps * config.batch_size)
    loader = DataLoader(samples, config.batch_size, sampler=sampler, collate_fn=collate_views)
    wrapped, optimizer, loader = accelerator.prepare(model, make_optimizer(model, config), loader)
    found = {}
    for step, _ in fit_steps(accelerator, wrapped, optimizer, loader, config):
        if step % every == 0 or step == config.max_steps:
            now = copy.deepcopy(accelerator.unwrap_model(wrapped))
            finish(now, processor, shots, None, config)
            mean = evaluate(now, processor, config.data_root, progress=False).mean
            found[step] = {name: 100 * mean[name] for name in METRICS}
            print(f"seed {config.seed}, step {step}: " + ", ".join(f"{value:.1f}" for value in found[step].values()))
    return found


def main() -> None:
    """Print a row for each seed, and the mean."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="Products with a test split, in any form that `anople fit` reads.")
    parser.add_argument("folder", type=Path, help="Where accelerate works.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--max_steps", type=int, default=80)
    parser.add_argument("--every", type=int, default=20)
    parser.add_argument("--shots", type=int, default=4)
    options = parser.parse_args()
    rows = []
    for seed in options.seeds:
        config = TrainingConfig(
            options.data,
            str(options.folder),
            shots=options.shots,
            seed=seed,
            max_steps=options.max_steps,
            batch_size=4,
            monitor_images=0,
        )
        found = measured_steps(config, options.every)
        last, best = found[options.max_steps], max(found, key=lambda step: found[step]["image_auroc"])
        rows.append((seed, last, best, found[best]))
    print(f"| seed | last step: {' / '.join(METRICS.values())} | best step | the same of it |\n|---|---|---|---|")
    for seed, last, best, kept in rows:
        print(f"| {seed} | {_figures(last)} | {best} | {_figures(kept)} |")
    means = [{name: statistics.fmean(row[at][name] for row in rows) for name in METRICS} for at in (1, 3)]
    print(f"| mean | {_figures(means[0])} | | {_figures(means[1])} |")


def _figures(metrics: dict[str, float]) -> str:
    return " / ".join(f"{metrics[name]:.1f}" for name in METRICS)


if __name__ == "__main__":
    main()

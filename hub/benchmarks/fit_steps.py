"""
What a step of a fit takes here, and what of it a GPU computes: `python -m hub.benchmarks.fit_steps FOLDER`.

B/16+ at 240 pixels with random weights and 15 products, one photograph of 900 x 900 of each; a step is of 8 photographs of
five views. Once as a fit has it, once with the same batch again and again, and five of these under torch's profiler.
"""

import argparse
import itertools
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

from torch.profiler import ProfilerActivity, profile
from torch.utils.data import DataLoader

from hub.mini_clip.small_clip import byte_tokenizer, write_clip
from modeling_anople import AnoPLeModel, AnoPLeProcessor
from modeling_anople.runtime.loading import loader_workers, one_order_of_sums
from modeling_anople.training import fit_steps, make_accelerator, make_optimizer
from modeling_anople.training.few_shot import StepSampler, choose_shots, collate_views, make_samples
from modeling_anople.training.options import TrainingConfig

from .measuring import b16_plus_config, write_jpeg


SKIPPED, PROFILED = 20, 5  # steps


def write_products(folder: Path, products: int = 15) -> Path:
    """Write products to fit, one photograph of each."""
    for number in range(products):
        place = folder / f"product_{number:02d}" / "train" / "good"
        place.mkdir(parents=True, exist_ok=True)
        write_jpeg(place / "0.jpg")
    return folder


def timed(steps: Iterator) -> str:
    """Take all steps; the median and the mean of a step but for the first ones, in ms."""
    moments = []
    for _ in steps:
        moments.append(time.perf_counter())
    spent = [1000 * (later - earlier) for earlier, later in itertools.pairwise(moments[SKIPPED:])]
    return f"{statistics.median(spent):.0f} ms (median of {len(spent)} steps), {statistics.fmean(spent):.0f} ms (mean)"


def main() -> None:
    """Fit, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="Where to work.")
    parser.add_argument("--clip", help="Another CLIP, such as mini.")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--mixed_precision", default="bf16", choices=["no", "bf16"])
    parser.add_argument("--num_workers", type=int)
    places = parser.parse_args()
    clip, tokenizer = places.clip or str(places.folder / "clip"), byte_tokenizer()
    if places.clip is None and not Path(clip).exists():
        write_clip(Path(clip), b16_plus_config(len(tokenizer), tokenizer.eos_token_id), tokenizer)
    data = write_products(places.folder / "photographs")
    config = TrainingConfig(
        str(data), str(places.folder), clip, shots=1, max_steps=places.steps, mixed_precision=places.mixed_precision
    )
    accelerator, shots = make_accelerator(config), choose_shots(config)
    names, device = list(shots.files), accelerator.device
    model = AnoPLeModel.from_clip(clip, names).freeze_clip()
    samples = make_samples(config, AnoPLeProcessor.from_clip(clip, names), shots, model.config.view_grid)
    workers = loader_workers(device) if places.num_workers is None else places.num_workers
    sampler = StepSampler(0, places.steps * config.batch_size)
    loader = DataLoader(samples, config.batch_size, sampler=sampler, collate_fn=collate_views, num_workers=workers)
    wrapped, optimizer, loader = accelerator.prepare(model, make_optimizer(model, config), loader)
    batch = next(iter(loader))

    def steps(batches) -> Iterator:
        return fit_steps(accelerator, wrapped, optimizer, batches, config)

    with one_order_of_sums(device):
        print(f"with {workers} workers: {timed(steps(loader))}")
        print(f"the same batch: {timed(steps([batch] * places.steps))}")
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
        with profile(activities=activities) as found:
            list(steps([batch] * PROFILED))
    entries = found.key_averages()
    kernels = sum(entry.count for entry in entries if "LaunchKernel" in entry.key) / PROFILED
    spent = (
        sum(entry.self_device_time_total for entry in entries if entry.device_type.name == "CUDA") / PROFILED / 1000
    )
    print(f"the GPU computes {spent:.0f} ms of a step, in {kernels:,.0f} kernels")


if __name__ == "__main__":
    main()

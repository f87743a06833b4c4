"""Judge a CLIP's patches on held-out drawn products: by the memory alone, as `hub.measure_backbone` does on photographs.

The held-out products come from `modeling_anople.drawing`, another draughtsman with other materials, shapes, light and
defects than the one that trains, so that nothing is chosen by what the training pictures look like.
"""

import shutil
from pathlib import Path

from transformers import CLIPModel

from modeling_anople.data.drawn_products import write_dataset

from .measure_backbone import measure
from .mini_clip import MEAN, STD
from .patch_features import SIDE, tower_features


SEED, SHOTS, BANKS = 2026, (1, 4), (0, 1)


class DrawnValidation:
    """Held-out products, drawn once into a folder."""

    def __init__(self, folder: Path, seed: int = SEED):
        self.folder = Path(folder)
        if not self.folder.exists():
            unfinished = self.folder.with_suffix(".part")
            shutil.rmtree(unfinished, ignore_errors=True)  # of a run that was killed while it drew
            write_dataset(unfinished, seed, train=8, good=8, defective=12, size=SIDE)
            unfinished.rename(self.folder)

    def measure(self, clip: CLIPModel, layers: tuple[int, ...]) -> dict[str, float]:
        """Return `i_auroc_1`, `p_auroc_1`, `i_auroc_4`, `p_auroc_4` in percent and `score`, their mean."""
        features = tower_features(clip, layers, mean=MEAN, std=STD)
        results = measure(self.folder, {"clip": features}, shots=SHOTS, seeds=BANKS, progress=False)
        means = {shots: summary["mean"] for shots, summary in results["features"]["clip"].items()}
        figures = {
            f"{short}_{shots}": round(100 * metrics[name]["mean"], 2)
            for shots, metrics in means.items()
            for short, name in (("i_auroc", "image_auroc"), ("p_auroc", "pixel_auroc"))
        }
        return figures | {"score": round(sum(figures.values()) / len(figures), 3)}

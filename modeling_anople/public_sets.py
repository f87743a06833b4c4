"""What is known of the public data sets: where they are to be had, under which licence, how they lie, how large they are."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class PublicSet:
    """
    Facts on one set, each from its authors' pages or, where so said, from others.

    Args:
        home: where it is to be had.
        licence: of the photographs; says who says so where the authors' own words could not be read.
        layout: the tree that the reader expects.
        classes: name -> (train, good test, defective test photographs); `None` stands for a number in which the trees in
            use differ, or for all three where we do not know them.
        both_splits: name -> (good photographs of both splits, defective ones), where only these are published.
        totals: (train, good test, defective test) over all classes.
    """

    title: str
    home: str
    licence: str
    layout: str
    classes: dict[str, tuple[int | None, int, int] | None] = field(default_factory=dict)
    both_splits: dict[str, tuple[int, int]] = field(default_factory=dict)
    totals: tuple[int, int, int] | None = None

    def refusal(self, root: object, missing: str) -> str:
        """Say what is missing and where the set is to be had."""
        return f"{root} is no whole {self.title}: {missing}. Expected: {self.layout}. It is to be had at {self.home}; licence: {self.licence}."


# 3,629 train, 467 + 1,258 test in all
MVTEC = {
    "bottle": (209, 20, 63),
    "cable": (224, 58, 92),
    "capsule": (219, 23, 109),
    "carpet": (280, 28, 89),
    "grid": (264, 21, 57),
    "hazelnut": (391, 40, 70),
    "leather": (245, 32, 92),
    "metal_nut": (220, 22, 93),
    "pill": (267, 26, 141),
    "screw": (320, 41, 119),
    "tile": (230, 33, 84),
    "toothbrush": (60, 12, 30),
    "transistor": (213, 60, 40),
    "wood": (247, 19, 60),
    "zipper": (240, 32, 119),
}
# by the authors' table of their split, 1cls.csv: 8,659 train, 962 + 1,200 test in all
VISA = {
    "candle": (900, 100, 100),
    "capsules": (542, 60, 100),
    "cashew": (450, 50, 100),
    "chewinggum": (453, 50, 100),
    "fryum": (450, 50, 100),
    "macaroni1": (900, 100, 100),
    "macaroni2": (900, 100, 100),
    "pcb1": (904, 100, 100),
    "pcb2": (901, 100, 100),
    "pcb3": (905, 101, 100),
    "pcb4": (904, 101, 100),
    "pipe_fryum": (450, 50, 100),
}
REAL_IAD = [
    "audiojack",
    "bottle_cap",
    "button_battery",
    "end_cap",
    "eraser",
    "fire_hood",
    "mint",
    "mounts",
    "pcb",
    "phone_battery",
    "plastic_nut",
    "plastic_plug",
    "porcelain_doll",
    "regulator",
    "rolled_strip_base",
    "sim_card_set",
    "switch",
    "tape",
    "terminalblock",
    "toothbrush",
    "toy",
    "toy_brick",
    "transistor1",
    "u_block",
    "usb",
    "usb_adaptor",
    "vcpill",
    "wooden_beads",
    "woodstick",
    "zipper",
]
# as listings of the two archives have them; their sums are the published totals
MPDD = {
    "bracket_black": (289, 32, 47),
    "bracket_brown": (185, 26, 51),
    "bracket_white": (110, 30, 30),
    "connector": (128, 30, 14),
    "metal_plate": (54, 26, 71),
    "tubes": (122, 32, 69),
}
BTAD = {"01": (400, 21, 49), "02": (399, 30, 200), "03": (1000, 400, 41)}
NOT_READ = "named on that page, which we could not read"
MEDICAL = "CC BY-NC-SA 4.0, says anomalib of BMAD"
BMAD = (
    "{0}/train/good (or {0}/valid/good/img), {0}/test/good, {0}/test/Ungood, masks in .../Ungood/label or anomaly_mask"
)

SETS = {
    "mvtec": PublicSet(
        "MVTec AD",
        "https://www.mvtec.com/company/research/datasets/mvtec-ad",
        "CC BY-NC-SA 4.0",
        "CLASS/train/good, CLASS/test/DEFECT, CLASS/ground_truth/DEFECT/STEM_mask.png",
        classes=dict(MVTEC),
        totals=(3629, 467, 1258),
    ),
    "visa": PublicSet(
        "VisA",
        "https://github.com/amazon-science/spot-diff",
        "CC BY 4.0",
        "split_csv/1cls.csv beside CLASS/Data/Images (raw), or CLASS/train/good, CLASS/test/bad (reorganised, also in 1cls/)",
        classes=dict(VISA),
        totals=(8659, 962, 1200),
    ),
    # realiad_jsons, by the notes of somebody who counted it: 36,465 to train on, 114,585 to test on, 51,329 of them with
    # a mask; the sum, 151,050, is the one that its authors state
    "real_iad": PublicSet(
        "Real-IAD",
        "https://realiad4ad.github.io/Real-IAD",
        "CC BY-NC-SA 4.0, says anomalib",
        "realiad_jsons/CLASS.json beside realiad_1024/CLASS (or 512, 256, raw)",
        classes=dict.fromkeys(REAL_IAD),
        totals=(36465, 63256, 51329),
    ),
    "mpdd": PublicSet(
        "MPDD",
        "https://github.com/stepanje/MPDD",
        "CC BY-NC-SA 4.0, says anomalib",
        "CLASS/train/good, CLASS/test/DEFECT, CLASS/ground_truth/DEFECT",
        classes=dict(MPDD),
        totals=(888, 176, 282),
    ),
    "btad": PublicSet(
        "BTAD",
        "http://avires.dimi.uniud.it/papers/btad/btad.zip",
        "CC BY-NC-SA 4.0, says anomalib; others found no word of its authors",
        "01, 02 and 03, each with train/ok, test/ok, test/ko, ground_truth/ko",
        classes=dict(BTAD),
        totals=(1799, 451, 290),
    ),
    "brain_mri": PublicSet(
        "BrainMRI",
        "https://www.kaggle.com/datasets/navoneel/brain-mri-images-for-brain-tumor-detection",
        NOT_READ,
        "yes/ and no/, also in brain_tumor_dataset/",
        classes={"brain": None},
        both_splits={"brain": (98, 155)},
    ),
    "br35h": PublicSet(
        "Br35H",
        "https://www.kaggle.com/datasets/ahmedhamada0/brain-tumor-detection",
        NOT_READ,
        "yes/ and no/",
        classes={"brain": None},
        both_splits={"brain": (1500, 1500)},
    ),
    "head_ct": PublicSet(
        "HeadCT",
        "https://www.kaggle.com/datasets/felipekitamura/head-ct-hemorrhage",
        NOT_READ,
        "labels.csv (id, hemorrhage) beside head_ct/head_ct/000.png",
        classes={"head": None},
        both_splits={"head": (100, 100)},
    ),
    # BMAD's tree has 1,542 and 4,297 to train on; the one with `valid` in their place has fewer
    "liver_ct": PublicSet(
        "LiverCT",
        "https://github.com/DorisBao/BMAD",
        MEDICAL,
        BMAD.format("Liver_AD"),
        classes={"liver": (None, 833, 660)},
    ),
    "resc": PublicSet(
        "RESC",
        "https://github.com/DorisBao/BMAD",
        MEDICAL,
        BMAD.format("Retina_RESC_AD"),
        classes={"retina": (None, 1041, 764)},
    ),
}


__all__ = ["SETS", "PublicSet"]

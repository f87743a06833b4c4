"""Which cells each table has, and what the paper reports of them."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Literal


Kind = Literal["known", "left_out", "hand_written", "subspace", "transfer", "target"]
Defects = Literal["together", "alone", "worst"]


@dataclass(frozen=True)
class Cell:
    """
    One row of a table.

    Args:
        name: the row's label.
        fit: options of `anople fit` that differ from the defaults.
        changes: fields of [`AnoPLeConfig`] that differ when the fitted detector is measured.
        part: which score and map are measured.
        shots: good photographs per product, where the row fixes them.
        trained: whether there are any steps; without, the CLIP stays as it is.
        kind: `known` measures the products fitted on; `left_out` fits once for each product without it, enrolls it from
            its shots and measures it alone; `hand_written` measures with an ensemble of written prompts; `subspace` measures
            what a principal subspace of the remembered patches leaves over; `transfer` fits the products and enrolls those
            of `transfer_root` from their shots; `target` fits only the latter.
        defects: all kinds of defect of a product `together` against its good photographs; or each kind `alone`, the mean
            over kinds; or the `worst` of them by image AUROC.
        per_view: draw so many shots of each view.
        blocks: blocks that a vision tower must have for the row to differ from others.
        encoder: whether the memory holds patches of `--memory_encoder`; without that option the row is left out.
        paper: image AUROC that the paper reports at one shot, percent, by data set (paper.md 2.1 and 2.2).
    """

    name: str
    fit: tuple[str, ...] = ()
    changes: Mapping[str, object] = field(default_factory=dict)
    part: Literal["fused", "memory", "decoder", "text"] = "fused"
    shots: int | None = None
    trained: bool = True
    kind: Kind = "known"
    defects: Defects = "together"
    per_view: bool = False
    blocks: int = 0
    encoder: bool = False
    paper: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Table:
    """
    A table: its title, its cells, the row that the others are compared with, and what a reader must know.

    Args:
        needs: an option of the program without which the table makes no sense.
    """

    title: str
    cells: tuple[Cell, ...]
    reference: str
    notes: tuple[str, ...] = field(default=())
    needs: Literal["", "transfer_root", "view_pattern", "memory_encoder"] = ""


FULL = {"mvtec": 94.5, "visa": 86.0, "real_iad": 81.2}
BARE = ("--coupling", "none", "--prefix", "none")
TURNED = ("--memory_rotations", "eighth_turns")
IMAGE_LOSS_ALONE = ("--view_grid", "1", "--prefix", "none", "--pixel_loss_weight", "0", "--alignment_loss_weight", "0")


# read in their papers and repositories, not reproduced here
PUBLISHED = (
    "Published on MVTec AD with 1 and 4 shots, image AUROC: AnomalyDINO (DINOv2-S, 448 to 672 px) 96.6 and 97.7; SubspaceAD "
    "(DINOv2 giant with registers, 672 px) 97.1 and 98.0; VisionAD (DINOv2-L with registers, 392 px, one bank for all products) "
    "97.4 and 98.6; INP-Former 96.6 and 97.6; FoundAD (DINOv3-B) 96.1 and 97.1; AnoPLe's paper 94.5 with 1. On VisA: 87.4 and "
    "92.6; 93.4 and 94.7; 94.8 and 95.7; 91.4 and 96.4; 92.6 and 94.4; 86.0. A row is to be held against them where the data "
    "are that whole set."
)
BEST = ("--recipe", "best", "--memory_image_size")
LAST_BLOCK = "{last}"  # of the encoder, whichever it is


def _memories(name: str, fit: tuple[str, ...], *, encoder: bool = False) -> tuple[Cell, Cell]:
    """Make rows of a memory alone, without and with turned copies of the shots."""
    settings = {"part": "memory", "trained": False, "encoder": encoder}
    return (
        Cell(f"memory of {name}", (*BARE, *fit), **settings),
        Cell(f"memory of {name}, turned by eighths", (*BARE, *fit, *TURNED), **settings),
    )


def _on_encoder(name: str, fit: tuple[str, ...] = (), **settings) -> tuple[Cell, Cell]:
    """Make rows of a peer that needs no training, whose memory holds patches of the encoder, without and with turned copies."""
    settings = {"part": "memory", "trained": False, "encoder": True, **settings}
    fit = (*BARE, "--memory_image_size", "224", *fit)
    return Cell(name, fit, **settings), Cell(f"{name}, turned by eighths", (*fit, *TURNED), **settings)


def _choices(option: str, values: tuple[str, ...], name: str) -> tuple[Cell, ...]:
    return tuple(Cell(f"{name} {value}", (option, value)) for value in values)


TABLES = {
    "main": Table(
        "AnoPLe with 1, 2 and 4 shots",
        (Cell("1 shot", shots=1, paper=FULL), Cell("2 shots", shots=2), Cell("4 shots", shots=4)),
        "1 shot",
        ("Of 2 and 4 shots no source names the paper's figures.",),
    ),
    "coupling": Table(
        "Which prompts exist, and how they meet",
        (
            Cell("text only", ("--coupling", "text_only"), paper={"mvtec": 93.0, "visa": 81.7}),
            Cell("vision only", ("--coupling", "vision_only"), paper={"mvtec": 90.3, "visa": 82.0}),
            Cell("text to vision", ("--coupling", "text_to_vision"), paper={"mvtec": 93.5, "visa": 84.2}),
            Cell("vision to text", ("--coupling", "vision_to_text"), paper={"visa": 82.0}),
            Cell("both ways", paper=FULL),
            Cell("free on both sides, uncoupled", ("--coupling", "uncoupled")),
            Cell("none: CLIP as it is", ("--coupling", "none")),
            Cell("both ways, a projection per layer", ("--coupling_projection", "per_layer")),
        ),
        "both ways",
        ("VisA's 82.0 of vision to text equals that of vision only: perhaps a slip of the source.",),
    ),
    "scale": Table(
        "Views and the scale-aware prefix",
        (
            Cell(
                "single scale, no prefix",
                ("--view_grid", "1", "--prefix", "none"),
                paper={"mvtec": 89.9, "visa": 82.3},
            ),
            Cell("multi-scale, no prefix", ("--prefix", "none"), paper={"mvtec": 91.8}),
            Cell("multi-scale, prefix", paper=FULL),
        ),
        "multi-scale, prefix",
    ),
    "alignment": Table(
        "The alignment loss",
        (
            Cell("no alignment", ("--alignment_loss_weight", "0"), paper={"mvtec": 93.7, "real_iad": 73.3}),
            Cell("alignment, decoder detached, after a warm-up", paper=FULL),
            Cell("alignment as written", ("--alignment_detach", "none", "--alignment_warmup", "0")),
        ),
        "alignment, decoder detached, after a warm-up",
        ("Whether the paper detaches or warms up is not known; its full figure stands beside our default.",),
    ),
    "encoders": Table(
        "Whose patches the memory holds, at which size, and turned or not",
        (
            *_memories("the CLIP's own tower", ()),
            *_memories("the encoder, 224 px", ("--memory_image_size", "224"), encoder=True),
            *_memories("the encoder, 448 px", ("--memory_image_size", "448"), encoder=True),
            Cell("whole detector, the CLIP alone, standard", ("--recipe", "standard")),
            Cell("whole detector, the CLIP alone, best", ("--recipe", "best")),
            Cell("whole detector, encoder, 224 px, best", (*BEST, "224"), encoder=True),
            Cell("whole detector, encoder, 448 px, best", (*BEST, "448"), encoder=True),
        ),
        "whole detector, the CLIP alone, standard",
        (
            "Rows of a memory alone need no training: nothing but the shots is looked at.",
            "Of the encoder two blocks about the middle of its depth are remembered, which was chosen on drawn defects on "
            "training photographs, not by these figures.",
        ),
        needs="memory_encoder",
    ),
    "prompts": Table(
        "Length and depth of the prompts",
        (
            *_choices("--prompt_depth", ("1", "3"), "depth"),
            Cell("depth 9, length 4", paper=FULL),
            Cell("depth 12", ("--prompt_depth", "12"), blocks=12),
            *_choices("--prompt_length", ("2", "8"), "length"),
        ),
        "depth 9, length 4",
        ("Depth and length of the paper are not known. Depths beyond a tower's blocks prompt all of its blocks.",),
    ),
    "pseudo": Table(
        "Kinds of pseudo-anomalies",
        (
            Cell("pixels: cut and paste", ("--pixel_anomaly", "cut_paste")),
            Cell("pixels: Perlin noise, latent noise 0.015", paper=FULL),
            Cell("pixels: both kinds", ("--pixel_anomaly", "both")),
            Cell("latent alone", ("--pixel_anomaly", "none")),
            Cell("pixels alone", ("--latent_noise", "0")),
            Cell("latent noise 0.05", ("--latent_noise", "0.05")),
        ),
        "pixels: Perlin noise, latent noise 0.015",
        ("The paper's recipes are not known.",),
    ),
    "identity": Table(
        "Where the class of a photograph comes from",
        (
            Cell("predicted", changes={"class_identity": "predicted"}),
            Cell("given", paper=FULL),
            Cell("pooled", changes={"class_identity": "pooled"}),
            Cell("predicted from the text", changes={"class_identity": "predicted", "class_prediction": "text"}),
        ),
        "given",
        ("Whether the paper gives the class name is not known.",),
    ),
    "unseen": Table(
        "Products left out of the fit",
        (
            Cell("each product left out, then enrolled", kind="left_out", paper={"mvtec": 94.5 - 6.3}),
            Cell("all fitted", paper=FULL),
        ),
        "all fitted",
        (
            "A product left out is enrolled from its shots without a step: memory, text embedding and line.",
            "The paper reports a drop of 6.3 over the held-out classes; 88.2 is our subtraction.",
        ),
    ),
    "defects": Table(
        "Kinds of defect, each alone",
        (
            Cell("each kind alone, mean over kinds", defects="alone"),
            Cell("all kinds together", paper=FULL),
            Cell("each product's hardest kind", defects="worst"),
        ),
        "all kinds together",
        (
            "No fit ever sees a defect, so every kind is one that was left out; only the test differs between rows.",
            "A mean over kinds counts a rare kind as much as a frequent one.",
        ),
    ),
    "views": Table(
        "Shots per product, or per product and view",
        (Cell("k of each product and view", per_view=True), Cell("k of each product", paper=FULL)),
        "k of each product",
        ("Which of the two the paper means on Real-IAD is not known; they are tens of points apart elsewhere.",),
        needs="view_pattern",
    ),
    "transfer": Table(
        "To pictures far from the products: medical ones, for instance",
        (
            Cell("prompts of the products, enrolled without a step", kind="transfer"),
            Cell("fitted on its own good pictures", kind="target"),
            Cell("memory alone, CLIP as it is", BARE, part="memory", trained=False, kind="target"),
        ),
        "fitted on its own good pictures",
        ("The paper's medical figures are not known.",),
        needs="transfer_root",
    ),
    "recipe": Table(
        "The paper's recipe and ours",
        (
            Cell("standard: parts weighed by what each finds", ("--recipe", "standard")),
            Cell("best: the same, and a memory of eighth turns", ("--recipe", "best")),
            Cell("paper", paper=FULL),
            Cell("memory of quarter turns", ("--memory_rotations", "quarter_turns")),
            Cell("training turned by eighths", ("--normal_turns", "eighth_turns")),
            Cell("tiles of half the side", ("--tiling", "2,2")),
        ),
        "paper",
        ("The recipe was chosen on good photographs with drawn defects, not by these figures.",),
    ),
    "peers": Table(
        "Peers from our own parts, on the same backbone and the same shots",
        (
            Cell(
                "memory alone (PatchCore-like)",
                BARE,
                part="memory",
                trained=False,
                paper={"mvtec": 66.5, "visa": 69.8},
            ),
            Cell("written prompts alone", BARE, part="text", trained=False, kind="hand_written"),
            Cell(
                "written prompts and memory (WinCLIP-like)",
                BARE,
                {"map_fusion": "memory"},
                trained=False,
                kind="hand_written",
                paper={"mvtec": 77.5, "visa": 70.0},
            ),
            Cell("learnt text prompts alone (CoOp-like)", ("--coupling", "text_only", *IMAGE_LOSS_ALONE), part="text"),
            Cell(
                "text projected into vision (MaPLe-like)",
                ("--coupling", "text_to_vision", "--coupling_projection", "per_layer", *IMAGE_LOSS_ALONE),
                part="text",
            ),
            Cell("AnoPLe", paper=FULL),
            *_on_encoder("memory of the last block (AnomalyDINO-like)", ("--memory_layers", LAST_BLOCK)),
            *_on_encoder("memory thinned to 256 vectors (PatchCore-like)", ("--memory_limit", "256")),
            *_on_encoder("principal subspace of the memory (SubspaceAD-like)", kind="subspace"),
            *_on_encoder(
                "written prompts and memory (WinCLIP- and PromptAD-like)",
                kind="hand_written",
                part="fused",
                changes={"map_fusion": "memory"},
            ),
            Cell("AnoPLe on the encoder, best", (*BEST, "224"), encoder=True),
        ),
        "AnoPLe",
        (
            "Rows on the encoder are there where --memory_encoder names one. It sees 224 px, as the CLIP does, so that all rows "
            "look at the same pixels; their authors take 448 to 672 px and larger encoders.",
            "All image scores are the maximum of the map, which did best in each row here; AnomalyDINO and SubspaceAD take the "
            "mean of its highest 1 %.",
            PUBLISHED,
            "Real-IAD has two protocols, shots of each product and shots of each product and view: see the table views.",
            "Written prompts: WinCLIP's window scores are left out, text and memory meet in our harmonic mean.",
            "MaPLe-like: the vision tower keeps free prompts beside the projected ones; MaPLe has none.",
            "CoOp-like and MaPLe-like learn from the image loss on pseudo-anomalies alone and have no map.",
            "The paper's peers probably had no class name and one pooled memory; ours are given the class.",
        ),
    ),
    "parts": Table(
        "Parts of the fitted detector, each alone",
        (
            Cell("memory", part="memory"),
            Cell("decoder", part="decoder"),
            Cell("text", part="text"),
            Cell("all", paper=FULL),
            Cell("all, image score from the fused map", changes={"image_map": "fused"}),
            Cell("decoder head: convolution", ("--decoder_head", "conv")),
            Cell("no image loss", ("--image_loss_weight", "0")),
        ),
        "all",
    ),
}


def tables_of(names: str, given: Collection[str] = ()) -> dict[str, Table]:
    """
    Pick tables by a comma-separated list, or `all` that make sense.

    Args:
        given: the options that a table may need, as far as they were given.

    Raises:
        ValueError: for a table that does not exist, or one that is named and lacks what it needs.
    """
    if names == "all":
        return {name: table for name, table in TABLES.items() if not table.needs or table.needs in given}
    wanted = [name.strip() for name in names.split(",")]
    if unknown := [name for name in wanted if name not in TABLES]:
        raise ValueError(f"No table {', '.join(map(repr, unknown))}: choose from {', '.join(TABLES)}, or all.")
    for name in wanted:
        if TABLES[name].needs and TABLES[name].needs not in given:
            raise ValueError(f"The table {name!r} needs --{TABLES[name].needs}.")
    return {name: TABLES[name] for name in wanted}


__all__ = ["TABLES", "Cell", "Table", "tables_of"]

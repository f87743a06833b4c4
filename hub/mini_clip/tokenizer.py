"""The tokenizer of the embedded CLIP, and the vocabulary of products, looks and defects that it learns from."""

import json
from itertools import count

from tokenizers import AddedToken, Tokenizer
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import CLIPTokenizer

from .small_clip import byte_tokenizer


# --- Words for captions of product pictures, and sentences made of them for the tokenizer to learn from ---


MACHINE_PARTS = (
    "gear", "sprocket", "washer", "screw", "bolt", "nut", "metal nut", "hex nut", "rivet", "nail", "pin", "spring",
    "bearing", "ball bearing", "bushing", "shaft", "axle", "pulley", "belt", "chain", "chain link", "cam", "crank",
    "lever", "handle", "knob", "hinge", "bracket", "clamp", "clip", "hook", "flange", "gasket", "seal", "o-ring",
    "valve", "piston", "cylinder", "nozzle", "pump", "impeller", "propeller", "rotor", "stator", "turbine blade",
    "fan", "pipe", "pipe fitting", "elbow", "hose", "tube", "coupling", "spacer", "collar", "wheel", "castor", "tire",
    "rim", "brake disc", "brake pad", "clutch", "spark plug", "radiator", "exhaust pipe", "filter", "bellows",
    "casting", "forging", "weld", "weld seam", "housing", "cover", "plate", "metal plate", "base plate", "frame",
    "rail", "beam", "rod", "bar", "ingot", "magnet", "cotter pin", "threaded rod", "insert", "anchor", "wall plug",
    "end cap", "rivet nut", "thumb screw", "worm gear", "gear rack", "crankshaft", "connecting rod", "rolled strip",
)  # fmt: skip

ELECTRONICS = (
    "circuit board", "printed circuit board", "pcb", "chip", "wafer", "transistor", "resistor", "capacitor", "diode",
    "inductor", "coil", "transformer", "relay", "fuse", "switch", "toggle switch", "push button", "key", "keyboard",
    "socket", "plug", "connector", "terminal", "terminal block", "audio jack", "usb plug", "usb adapter", "adapter",
    "charger", "power supply", "cable", "wire", "wire harness", "cable tie", "antenna", "sensor", "camera", "lens",
    "display", "screen", "panel", "solar panel", "solar cell", "battery", "button battery", "lamp", "light bulb", "led",
    "led strip", "motor", "phone battery", "phone", "sim card", "sim card holder", "memory card", "heat sink",
    "loudspeaker", "microphone", "buzzer", "remote control", "mouse", "router", "meter", "clock", "watch", "crystal",
    "optical fibre", "solder joint", "pin header", "contact", "electrode", "insulator", "ribbon cable", "thermostat",
)  # fmt: skip

FOOD = (
    "hazelnut", "cashew", "almond", "walnut", "peanut", "pistachio", "chestnut", "coffee bean", "cocoa bean", "bean",
    "pea", "lentil", "rice", "corn", "wheat", "grain", "seed", "sunflower seed", "cookie", "biscuit", "cracker",
    "pretzel", "bread", "toast", "roll", "bun", "bagel", "croissant", "cake", "muffin", "waffle", "pancake", "pizza",
    "macaroni", "noodle", "pasta", "spaghetti", "chips", "crisps", "fryum", "pipe fryum", "popcorn", "cereal",
    "candy", "chewing gum", "chewinggum", "chocolate", "chocolate bar", "lollipop", "marshmallow", "jelly", "raisin",
    "date", "fig", "apple", "pear", "peach", "plum", "cherry", "grape", "berry", "strawberry", "banana", "orange",
    "lemon", "lime", "mango", "kiwi", "melon", "tomato", "potato", "carrot", "onion", "garlic", "pepper", "cucumber",
    "mushroom", "olive", "egg", "cheese", "sausage", "ham", "meat", "fish", "shrimp", "tofu", "sushi", "dumpling",
    "juice bottle", "milk", "butter", "honey", "sugar cube", "tea bag", "breakfast box", "fruit", "vegetable",
    "mint", "fruit jelly", "plum candy", "sandwich", "sheet of nori",
)  # fmt: skip

HOUSEHOLD = (
    "toothbrush", "brush", "comb", "hairpin", "hair clip", "razor", "razor blade", "soap", "sponge", "towel", "candle",
    "match", "lighter", "cup", "mug", "glass", "wine glass", "bowl", "dish", "saucer", "jug", "vase", "pot", "pan",
    "kettle", "spoon", "fork", "knife", "chopsticks", "ladle", "sieve", "whisk", "grater", "peeler", "tray", "bucket",
    "basket", "broom", "mop", "clothes peg", "hanger", "needle", "thimble", "button", "zipper", "snap fastener",
    "buckle", "shoe", "shoe sole", "sandal", "boot", "glove", "sock", "hat", "belt buckle", "glasses", "ring",
    "necklace", "earring", "coin", "medal", "badge", "toy", "toy brick", "brick toy", "doll", "dice", "marble ball",
    "ball", "balloon", "chess piece", "domino", "puzzle", "pen", "pencil", "crayon", "marker", "eraser", "ruler",
    "stapler", "paper clip", "push pin", "stamp", "envelope", "notebook", "book", "card", "playing card", "umbrella",
    "chair", "table", "drawer", "shelf", "mirror", "curtain", "pillow", "mattress", "mask", "face mask", "lipstick",
    "eyeshadow", "hair dryer", "iron", "vacuum cleaner", "drain plug", "shower head", "tap", "toilet seat", "guitar",
)  # fmt: skip

PACKAGING = (
    "bottle", "bottle cap", "bottle crown", "cap", "lid", "cork", "can", "tin can", "can lid", "jar", "box", "carton",
    "cardboard box", "crate", "pallet", "barrel", "drum", "canister", "bag", "sack", "pouch", "sachet", "wrapper",
    "label", "sticker", "barcode", "tag", "tape", "tape roll", "paper roll", "package", "parcel", "blister pack",
    "tube cap", "spray bottle", "dispenser", "drinking straw", "paper cup", "food tray", "egg box", "plastic nut",
)  # fmt: skip

MEDICAL = (
    "capsule", "pill", "tablet", "syringe", "vial", "ampoule", "test tube", "pipette", "petri dish", "slide", "bandage",
    "plaster", "swab", "catheter", "infusion bag", "implant", "bone screw", "dental crown", "thermometer", "inhaler",
    "mask filter", "surgical mask", "stopper", "microscope slide", "contact lens", "hearing aid", "rubber stopper",
)  # fmt: skip

TOOLS = (
    "hammer", "screwdriver", "wrench", "spanner", "pliers", "saw", "saw blade", "drill", "drill bit", "milling cutter",
    "chisel", "file", "axe", "shovel", "rake", "scissors", "tape measure", "caliper", "vice", "hex key", "crowbar",
    "grinding wheel", "sandpaper", "paint brush", "paint roller", "trowel", "padlock", "lock", "ladder", "tool",
)  # fmt: skip

SURFACES = (
    "tile", "ceramic tile", "magnetic tile", "floor tile", "roof tile", "brick", "stone", "concrete", "concrete wall",
    "asphalt", "road", "plasterboard", "wall", "floor", "wood", "wooden board", "plank", "plywood", "veneer", "log",
    "carpet", "rug", "fabric", "woven fabric", "cloth", "textile", "denim", "felt", "knitwear", "lace", "yarn",
    "thread", "rope", "net", "wire mesh", "mesh", "grid", "metal grid", "grate", "honeycomb", "leather",
    "artificial leather", "fur", "foam", "sheet", "steel sheet", "metal sheet", "steel strip", "foil", "film",
    "aluminium foil", "paper", "cardboard", "wallpaper", "painted surface", "brushed surface", "car door", "car body",
    "windscreen", "window", "door", "fence", "railway track", "bridge", "leaf", "feather", "shell", "ice",
)  # fmt: skip

NOUNS = tuple(dict.fromkeys(MACHINE_PARTS + ELECTRONICS + FOOD + HOUSEHOLD + PACKAGING + MEDICAL + TOOLS + SURFACES))

PARTS = (
    "part", "ring", "hole", "slot", "groove", "notch", "edge", "corner", "rim", "tooth", "teeth", "thread", "stripe",
    "line", "dot", "spot", "square", "circle", "disc", "bar", "cross", "star", "logo", "text", "number", "letter",
    "mark", "print", "label", "pin", "lead", "pad", "wire", "seam", "stitch", "rib", "fin", "blade", "spoke", "hub",
    "handle", "lid", "window", "button", "screw", "bristle", "head", "neck", "base", "side", "tip", "arm", "leg",
    "pattern", "checks", "border", "coating", "layer", "core", "surface", "texture", "background", "shadow",
)  # fmt: skip

MATERIALS = (
    "metal", "steel", "stainless steel", "iron", "cast iron", "copper", "brass", "bronze", "aluminium", "aluminum",
    "zinc", "tin", "lead", "nickel", "chrome", "titanium", "gold", "silver", "plastic", "rubber", "silicone", "nylon",
    "vinyl", "acrylic", "resin", "epoxy", "carbon fibre", "glass", "ceramic", "porcelain", "clay", "stone", "marble",
    "granite", "slate", "concrete", "plaster", "gypsum", "wood", "wooden", "oak", "pine", "bamboo", "cork", "paper",
    "cardboard", "leather", "cotton", "wool", "silk", "linen", "polyester", "felt", "foam", "wax", "fiberglass",
)  # fmt: skip

COLORS = (
    "red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "beige", "white", "grey", "gray", "black",
    "turquoise", "cyan", "magenta", "violet", "crimson", "maroon", "olive", "lime", "teal", "navy", "golden", "silver",
    "cream", "ivory", "tan", "amber", "dark", "light", "pale", "bright", "colourful", "transparent", "clear",
)  # fmt: skip

LOOKS = (
    "smooth", "rough", "shiny", "glossy", "matte", "dull", "polished", "brushed", "woven", "knitted", "striped",
    "checked", "dotted", "speckled", "spotted", "grained", "fibrous", "porous", "ribbed", "grooved", "perforated",
    "corrugated", "embossed", "engraved", "printed", "painted", "coated", "plated", "galvanized", "anodized", "cast",
    "forged", "milled", "turned", "drilled", "threaded", "welded", "moulded", "round", "oval", "square", "rectangular",
    "flat", "curved", "hollow", "solid", "thin", "thick", "long", "short", "small", "large", "tiny", "big", "soft",
    "hard", "wet", "dry", "clean", "new", "old", "regular", "irregular", "toothed", "wavy", "layered", "tilted",
)  # fmt: skip

STATES = (  # of a part that has a defect; they stand before a noun
    "abnormal", "anomalous", "defective", "damaged", "faulty", "flawed", "broken", "scratched", "cracked", "chipped",
    "dented", "bent", "torn", "cut", "stained", "dirty", "contaminated", "rusty", "corroded", "worn", "burnt",
    "melted", "deformed", "twisted", "crushed", "squeezed", "folded", "wrinkled", "frayed", "loose", "missing",
    "misplaced", "misaligned", "flipped", "swapped", "incomplete", "leaking", "punctured", "split", "peeling",
    "discoloured", "faded", "mouldy", "rotten", "warped", "scorched", "scraped", "pitted", "fractured", "shattered",
)  # fmt: skip

DEFECTS = (  # things to be found on a part
    "defect", "anomaly", "flaw", "damage", "scratch", "crack", "chip", "dent", "hole", "stain", "contamination",
    "dirt", "dust", "rust", "corrosion", "oil spot", "glue", "glue strip", "grease", "burr", "bubble", "blister",
    "pit", "pore", "void", "inclusion", "fracture", "break", "cut", "tear", "fold", "wrinkle", "crease", "fibre",
    "hair", "loose thread", "foreign body", "liquid", "water drop", "ink", "smudge", "fingerprint", "burn mark",
    "mould", "wrong colour", "colour error", "print error", "faulty imprint", "missing part", "extra part",
    "missing wire", "missing pin", "missing hole", "moved part", "wrong part", "broken pattern", "broken teeth",
    "bent lead", "bent wire", "cut lead", "poor weld", "short circuit", "cold solder", "excess solder", "poke",
    "squeeze", "rough edge", "worn edge", "chipped edge", "split seam", "open seam", "knot", "wormhole", "leak",
    "deformation", "misalignment", "discolouration", "texture error", "scuff", "abrasion", "gap", "bulge", "notch",
)  # fmt: skip

# every slot is filled from the tuple of its name; {a} is the article of what follows
TEMPLATES = (
    "{noun}.",
    "abnormal {noun}.",
    "a photo of {a} {noun}.",
    "a photo of an abnormal {noun}.",
    "a photo of {a} {colour} {noun}",
    "a photo of {a} {colour} {noun} with {colour} parts",
    "a photo of {a} {colour} {material} {noun} with {a} {part}",
    "a picture of {a} {look} {noun} made of {material}",
    "a close-up photo of the {noun} without defect",
    "a cropped image of {a} normal {noun} with {look} surface",
    "{a} {state} {noun}",
    "a photo of {a} {noun} with {a} {defect}",
    "a photo of {a} {noun} with {a} {defect} on the {part}",
    "{a} flawless {look} {noun} for visual inspection",
    "the {noun} is {state}, not perfect",
    "several {colour} {noun} parts in rows on {a} {colour} background",
)
SLOTS = {
    "colour": COLORS,
    "material": MATERIALS,
    "look": LOOKS,
    "part": PARTS,
    "state": STATES,
    "defect": DEFECTS,
}


def caption(template: str, noun: str, number: int) -> str:
    """
    Fill in a template; `number` picks the words of the other slots, so that the next number picks the next words.

    >>> caption("a photo of {a} {color} {noun}", "gear", 1)
    'a photo of an orange gear'
    """
    numbers = count(number)
    filled = []
    for word in template.split():
        before, brace, rest = word.partition("{")
        name, _, after = rest.partition("}")
        if brace and name != "a":
            filler = noun if name == "noun" else SLOTS[name][next(numbers) % len(SLOTS[name])]
            word = before + filler + after
        filled.append(word)
    return " ".join(article(filled[i + 1]) if word == "{a}" else word for i, word in enumerate(filled))


def article(following: str) -> str:
    """Return the indefinite article before a word."""
    return "an" if following[0] in "aeiou" and not following.startswith("us") else "a"


def corpus() -> list[str]:
    """
    Write captions of every noun, and every word of the other tuples alone; the same list in the same order each time.

    Returns:
        About 14 thousand sentences; each noun stands in as many of them as there are templates.
    """
    captions = [
        caption(template, noun, 7 * position + 3 * row)
        for position, noun in enumerate(NOUNS)
        for row, template in enumerate(TEMPLATES)
    ]
    return captions + [word for words in SLOTS.values() for word in words for _ in TEMPLATES]


# --- The tokenizer of the small CLIP that we pretrain: CLIP's byte-level BPE, trained on captions of products ---


MAX_LENGTH = 77
START, END = "<|startoftext|>", "<|endoftext|>"


def train_tokenizer(vocab_size: int = 2048) -> CLIPTokenizer:
    """
    Train CLIP's lower-case byte-level BPE on `corpus()`; the same tokenizer each time.

    As in OpenAI's CLIP the ids are: 256 bytes, the same bytes at the end of a word, the merges in the order learned, the
    start token, the end token (the highest id). Single bytes spell whatever the corpus lacks, in any script.

    Raises:
        ValueError: if `vocab_size` is too small for the bytes, or larger than the corpus gives merges for.
    """
    untrained = byte_tokenizer()
    pieces = sorted(set(untrained.get_vocab()) - {START, END}, key=untrained.get_vocab().get)
    smallest = len(pieces) + 2
    if vocab_size < smallest:
        raise ValueError(f"vocab_size is {vocab_size}; bytes and special tokens need {smallest}: give at least that.")
    vocab, merges = _learn_merges(untrained.backend_tokenizer, pieces, vocab_size - 2)
    if len(vocab) != vocab_size - 2:
        raise ValueError(
            f"vocab_size is {vocab_size}; the corpus gives only {len(vocab) + 2} tokens: give at most that, "
            "or add words to hub/mini_clip/tokenizer.py."
        )
    vocab |= {START: vocab_size - 2, END: vocab_size - 1}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=MAX_LENGTH)


def _learn_merges(clip: Tokenizer, pieces: list[str], size: int) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Train on words split as `clip` splits them; `pieces` get the first ids."""
    learner = Tokenizer(BPE(end_of_word_suffix="</w>"))
    learner.normalizer, learner.pre_tokenizer = clip.normalizer, clip.pre_tokenizer
    trainer = BpeTrainer(
        vocab_size=size,
        end_of_word_suffix="</w>",
        # named beforehand: the trainer would number pieces with "</w>" by a hash order that differs from run to run
        special_tokens=[AddedToken(piece, special=True) for piece in pieces],
        show_progress=False,
    )
    learner.train_from_iterator(corpus(), trainer)
    model = json.loads(learner.to_str())["model"]
    return model["vocab"], [tuple(merge) for merge in model["merges"]]


__all__ = [
    "COLORS",
    "DEFECTS",
    "LOOKS",
    "MATERIALS",
    "MAX_LENGTH",
    "NOUNS",
    "PARTS",
    "STATES",
    "TEMPLATES",
    "caption",
    "corpus",
    "train_tokenizer",
]

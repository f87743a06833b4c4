"""What a maintainer runs: pretrain and measure the embedded backbone, convert CLIPs, publish, reproduce and benchmark."""

import sys


# Programs that moved: `python -m hub.OLD` imports this package first, and is told here where its program went.
MOVED = {
    "hub.ablate_mini_clip": "hub.mini_clip.ablate",
    "hub.blend_mini_clip": "hub.mini_clip.blend",
    "hub.convert_open_clip": "hub.open_clip",
    "hub.drawn_defects": "hub.reproduce.drawn_defects",
    "hub.measure_backbone": "hub.mini_clip.measure",
    "hub.plot_learning": "hub.mini_clip.plot",
    "hub.pretrain_mini_clip": "hub.mini_clip",
    "hub.push": "hub.publish",
    "hub.push_space": "hub.publish.space",
    "hub.round_trip": "tests.local_hub",
}

for word, name in zip(sys.orig_argv, sys.orig_argv[1:], strict=False):
    if word == "-m" and name in MOVED:
        sys.exit(f"`python -m {name}` is now `python -m {MOVED[name]}`, with the same options.")

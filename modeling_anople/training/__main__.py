"""Fit from the command line: `accelerate launch -m modeling_anople.training ...`."""

from . import main


main()

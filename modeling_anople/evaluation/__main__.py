"""Measure from the command line: `accelerate launch -m modeling_anople.evaluation ...`."""

import sys

from . import main


sys.exit(main())

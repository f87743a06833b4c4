"""The `anople` program as a module: `accelerate launch -m modeling_anople.cli ...`."""

import sys

from . import main


sys.exit(main())

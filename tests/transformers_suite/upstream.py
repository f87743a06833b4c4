"""
transformers' own test classes, read from the source distribution that `make test-transformers` unpacks.

The distribution holds the mixins of `tests/`, but neither the folders below it nor `utils/`: the few names that the mixins
import from there stand here, without a test in them.
"""

import importlib
import json
import os
import sys
import types
from pathlib import Path


SOURCE = os.environ.get("TRANSFORMERS_SOURCE")  # the unpacked distribution; nothing here is collected without it
PACKAGE = "transformers_tests"  # what its `tests` are called here, where `tests` are our own
ABSENT = {
    f"{PACKAGE}.exporters.test_export": {"ExportTesterMixin": type("ExportTesterMixin", (), {})},
    f"{PACKAGE}.generation.test_utils": {"GenerationTesterMixin": type("GenerationTesterMixin", (), {})},
    f"{PACKAGE}.utils.test_configuration_utils": {"config_common_kwargs": {}},
    "fetch_hub_objects_for_ci": {"url_to_local_path": lambda url: url},
}


def load(name: str) -> types.ModuleType:
    """Import a module of transformers' `tests`, such as `test_modeling_common`."""
    if PACKAGE not in sys.modules:
        folder = Path(SOURCE) / "tests"
        (folder / "__init__.py").touch()  # `test_configuration_common` imports its own folder as a package
        _add(PACKAGE, __path__=[str(folder)])
        for absent, names in ABSENT.items():
            if "." in absent:
                _add(absent.rpartition(".")[0], __path__=[])
            _add(absent, **names)
    return importlib.import_module(f"{PACKAGE}.{name}")


def offer_detector(folder: Path, architecture: str, image_processor: str) -> None:
    """Let the pipeline mixin find detectors in a folder, at `anople/<architecture>`, in place of tiny models on the Hub."""
    (folder / "reports").mkdir()
    summary = {architecture: {"tokenizer_classes": [], "processor_classes": [image_processor]}}
    (folder / "reports" / "tiny_model_summary.json").write_text(json.dumps(summary), encoding="utf-8")
    os.environ["TRANSFORMERS_TINY_MODEL_PATH"] = str(folder)


def _add(name: str, **names) -> None:
    module = types.ModuleType(name)
    vars(module).update(names)
    sys.modules[name] = module

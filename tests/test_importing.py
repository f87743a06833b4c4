"""What an import of the package costs and registers, each in a fresh interpreter."""

import subprocess
import sys

import pytest

import modeling_anople


REGISTERED = """
from transformers import AutoConfig, AutoModel
from transformers.pipelines import PIPELINE_REGISTRY
assert "image-anomaly-detection" in PIPELINE_REGISTRY.get_supported_tasks()
assert type(AutoModel.from_config(AutoConfig.for_model("anople", class_names=["a"]))).__name__ == "AnoPLeModel"
"""


@pytest.mark.parametrize(
    "program",
    [
        "import sys, modeling_anople, modeling_anople.cli; assert not {'torch', 'transformers'} & set(sys.modules)",
        "from modeling_anople import TASK" + REGISTERED,
        "import modeling_anople; modeling_anople.AnoPLeConfig" + REGISTERED,
        "from transformers import pipeline, AutoModel; import modeling_anople" + REGISTERED,
        "import transformers; import modeling_anople" + REGISTERED,
        "import modeling_anople.runtime.loading" + REGISTERED,
        "from modeling_anople.training import train" + REGISTERED,
    ],
    ids=["nothing heavy", "a name", "an attribute", "after its models", "after transformers", "loading", "training"],
)
def test_an_import_is_light_and_the_first_use_registers(program):
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_all_public_names_are_there_and_no_other():
    for name in modeling_anople.__all__:
        assert getattr(modeling_anople, name) is not None and name in dir(modeling_anople)
    with pytest.raises(AttributeError, match="has no attribute 'AnoPLe'"):
        modeling_anople.AnoPLe  # noqa: B018

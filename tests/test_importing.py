"""What an import of the package costs and registers, each in an interpreter that has neither it nor transformers."""

import json
import subprocess
import sys

import pytest

import modeling_anople


REGISTERED = """
from transformers import AutoConfig, AutoModel
from transformers.pipelines import PIPELINE_REGISTRY
assert "image-anomaly-detection" in PIPELINE_REGISTRY.get_supported_tasks()
small = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}
config = AutoConfig.for_model("anople", class_names=["a"], clip_config={"text_config": small, "vision_config": small})
assert type(AutoModel.from_config(config)).__name__ == "AnoPLeModel"
"""
PROGRAMS = {
    "a name": "from modeling_anople import TASK",
    "after its models": "from transformers import pipeline, AutoModel; import modeling_anople",
    "after transformers": "import transformers; import modeling_anople",
    "loading": "import modeling_anople.runtime.loading",
    "training": "from modeling_anople.training import train",
}
# what transformers imports takes most of the time, and knows nothing of it: it is imported once, each program run in a fork
FORKS = """
import gc, json, os, sys, traceback
gc.disable()
import huggingface_hub, scipy.optimize, torch._dynamo, torch.distributed.tensor, torch.export
assert not {"transformers", "modeling_anople"} & set(sys.modules)
codes = {}
for name, program in json.loads(sys.argv[1]).items():
    if not (child := os.fork()):
        try:
            exec(program, {"__name__": "__main__"})
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    codes[name] = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
print(json.dumps(codes))
"""


def run(program: str, *arguments: str) -> subprocess.CompletedProcess:
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done


def test_an_import_is_light():
    run("import sys, modeling_anople, modeling_anople.cli; assert not {'torch', 'transformers'} & set(sys.modules)")


def test_the_first_use_registers():
    done = run(FORKS, json.dumps({name: program + REGISTERED for name, program in PROGRAMS.items()}))
    assert json.loads(done.stdout) == dict.fromkeys(PROGRAMS, 0), done.stderr


def test_all_public_names_are_there_and_no_other():
    for name in modeling_anople.__all__:
        assert getattr(modeling_anople, name) is not None and name in dir(modeling_anople)
    with pytest.raises(AttributeError, match="has no attribute 'AnoPLe'"):
        modeling_anople.AnoPLe  # noqa: B018

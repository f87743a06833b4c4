"""Roads of torch, transformers and PEFT that AnoPLe does not build itself: a detector answers the same on each, or says why not."""

import copy
import shutil

import pytest
import torch
from transformers import AutoModel, BitsAndBytesConfig, pipeline

from modeling_anople import AnomalyDetectionPipeline, AnoPLeModel, AnoPLeProcessor

from .contract import ANSWERS, assert_same
from .detectors import detector_of, normals_of, write_detector


@pytest.fixture(scope="module")
def folder(tmp_path_factory, small_clip_folder, photograph):
    """A saved detector of bolts and nuts, which no test changes."""
    return write_detector(tmp_path_factory.mktemp("roads") / "detector", small_clip_folder, photograph)


@pytest.fixture
def model(folder) -> AnoPLeModel:
    return AnoPLeModel.from_pretrained(folder)


@pytest.fixture
def ask(make_pixels):
    """Ask a model of three photographs, a bolt, a nut and a bolt."""
    with torch.no_grad():
        yield lambda model: model(make_pixels(3).to(model.dtype), class_ids=torch.tensor([0, 1, 0]))


def assert_close(first, second, atol: float = 1e-6) -> None:
    for name in ANSWERS:
        torch.testing.assert_close(
            first[name], second[name], atol=atol, rtol=0, msg=lambda text, name=name: name + text
        )


def test_a_compiled_detector_answers_the_same_and_is_saved(model, ask, tmp_path):
    expected = ask(model)
    compiled = torch.compile(model, backend="eager")
    assert_close(ask(compiled), expected)
    compiled.save_pretrained(tmp_path)
    assert_same(ask(AnoPLeModel.from_pretrained(tmp_path)), expected)


def test_torch_export_of_a_whole_detector_names_the_export_there_is(model, make_pixels):
    with pytest.raises(ValueError, match="use anople export"):
        torch.export.export(model, (make_pixels(3),), {"class_ids": torch.tensor([0, 1, 0])}, strict=False)


def test_a_deep_copy_is_a_detector_of_its_own(model, folder, ask, photograph):
    detector = detector_of(model, AnoPLeProcessor.from_pretrained(folder))
    before, copied = ask(model), copy.deepcopy(detector)
    assert_same(ask(copied.model), before)
    copied.enroll("screw", normals_of(photograph, 5, 4))
    assert [record.name for record in detector.products] == detector.processor.class_names == ["bolt", "nut"]
    assert_same(ask(model), before)


def test_a_detector_in_a_subfolder(folder, model, ask, photograph, tmp_path):
    shutil.copytree(folder, tmp_path / "repository" / "detectors" / "first")
    place, inner = tmp_path / "repository", {"subfolder": "detectors/first"}
    found = AnoPLeModel.from_pretrained(place, **inner)
    assert_same(ask(found), ask(model))
    assert_same(ask(AutoModel.from_pretrained(place, **inner)), ask(model))
    AnomalyDetectionPipeline(found).save_pretrained(tmp_path / "own")  # with the processor that lies beside it there
    expected = pipeline("image-anomaly-detection", model=str(folder))(photograph(1))["score"]
    assert pipeline("image-anomaly-detection", model=str(tmp_path / "own"))(photograph(1))["score"] == expected


def test_a_variant_is_read_by_its_name_alone(model, ask, tmp_path):
    copy.deepcopy(model).half().save_pretrained(tmp_path, variant="fp16")
    with pytest.raises(OSError, match=r"no file named model\.safetensors"):
        AnoPLeModel.from_pretrained(tmp_path)
    half = AnoPLeModel.from_pretrained(tmp_path, variant="fp16")
    assert half.dtype == torch.float16
    assert_close(ask(half), ask(model), atol=0.01)


def test_an_absent_variant_is_not_replaced_by_another_file(folder):
    with pytest.raises(OSError, match=r"no file named model\.fp16\.safetensors"):
        AnoPLeModel.from_pretrained(folder, variant="fp16")


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_shards(model, ask, tmp_path, variant):
    model.save_pretrained(tmp_path, max_shard_size="100KB", variant=variant)
    assert len(list(tmp_path.glob("model*-of-*.safetensors"))) > 5
    assert_same(ask(AnoPLeModel.from_pretrained(tmp_path, variant=variant)), ask(model))


@pytest.mark.parametrize("device_map", ["cpu", "auto", {"": "cpu"}], ids=["cpu", "auto", "dict"])
def test_a_device_map_of_one_device(folder, model, ask, photograph, tmp_path, device_map):
    placed = AnoPLeModel.from_pretrained(folder, device_map=device_map).cpu()
    assert_same(ask(placed), ask(model))
    detector = detector_of(placed, AnoPLeProcessor.from_pretrained(folder))
    detector.enroll("screw", normals_of(photograph, 5, 4))
    detector.save_pretrained(tmp_path)
    assert_same(ask(AnoPLeModel.from_pretrained(tmp_path)), ask(model))


@pytest.mark.parametrize("part", ["clip", "prompts", "prefix", "decoder", "products"])
def test_a_part_that_is_kept_on_a_disk_answers_the_same(folder, model, ask, tmp_path, part):
    device_map = {name: "cpu" for name, _ in model.named_children()}
    offloaded = AnoPLeModel.from_pretrained(folder, device_map={**device_map, part: "disk"}, offload_folder=tmp_path)
    assert_close(ask(offloaded), ask(model))


@pytest.mark.parametrize("dtype, atol", [(torch.bfloat16, 0.05), (torch.float16, 0.01)], ids=["bfloat16", "float16"])
def test_half_precision_on_the_cpu(folder, model, ask, photograph, tmp_path, dtype, atol):
    detector = pipeline("image-anomaly-detection", model=str(folder), dtype=dtype)
    assert detector.model.dtype == dtype
    assert_close(ask(detector.model), ask(model), atol)
    detector.enroll("screw", normals_of(photograph, 5, 4))
    answer = detector(photograph(501), class_name="screw")
    assert answer["error"] is None and 0 <= answer["score"] <= 1
    detector.save_pretrained(tmp_path)
    loaded = AnoPLeModel.from_pretrained(tmp_path)
    assert loaded.dtype == dtype
    assert_same(ask(loaded), ask(detector.model))


def test_a_quantization_is_refused_with_what_to_do_instead(folder):
    with pytest.raises(ValueError, match="takes no quantization_config: .* anople export --weights int8"):
        AnoPLeModel.from_pretrained(folder, quantization_config=BitsAndBytesConfig(load_in_8bit=True))


# --- PEFT ---


def lora(peft, model: AnoPLeModel, *, modules: str | list[str], seed: int = 0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = peft.LoraConfig(target_modules=modules, r=2, init_lora_weights=False)
        return peft.get_peft_model(copy.deepcopy(model), config).eval()


@pytest.mark.parametrize("modules", [["q_proj", "v_proj"], ["project"], "all-linear"], ids=str)
def test_what_lora_adds_counts_and_can_be_merged_and_loaded(model, folder, ask, tmp_path, modules):
    peft = pytest.importorskip("peft")
    adapted = lora(peft, model, modules=modules)
    answer = ask(adapted)
    assert not torch.allclose(answer.anomaly_maps, ask(model).anomaly_maps, atol=1e-4)
    adapted.save_pretrained(tmp_path / "adapter")
    assert_same(ask(peft.PeftModel.from_pretrained(AnoPLeModel.from_pretrained(folder), tmp_path / "adapter")), answer)
    adapted.merge_and_unload().save_pretrained(tmp_path / "merged")
    assert_close(ask(AnoPLeModel.from_pretrained(tmp_path / "merged")), answer, atol=1e-5)


def test_lora_learns_by_the_losses(model, make_pixels):
    peft = pytest.importorskip("peft")
    adapted = lora(peft, model, modules=["q_proj", "v_proj"]).train()
    masks = torch.zeros(2, 32, 32)
    masks[0, :16, :16] = 1
    loss = adapted(pixel_values=make_pixels(2), class_ids=torch.tensor([0, 1]), mask_labels=masks).loss
    loss.backward()
    learned = {name: weight for name, weight in adapted.named_parameters() if weight.requires_grad}
    assert learned and all("lora_" in name for name in learned)
    assert any(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in learned.values())

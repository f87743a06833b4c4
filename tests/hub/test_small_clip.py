"""The small random CLIP: an ordinary checkpoint, the same everywhere, that takes names in any script."""

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoTokenizer, CLIPModel

from hub.mini_clip.small_clip import byte_tokenizer, small_clip_config, write_small_clip
from modeling_anople import AnoPLeModel, AnoPLeProcessor


def test_it_is_an_ordinary_checkpoint_without_pickles(tmp_path):
    folder = write_small_clip(tmp_path / "new/clip")
    clip = AutoModel.from_pretrained(folder)
    assert isinstance(clip, CLIPModel) and not list(folder.glob("*.bin"))
    pixels = torch.zeros(2, 3, 160, 160)
    hidden = clip.vision_model(pixels, output_hidden_states=True).hidden_states
    assert len(hidden) == 5 and hidden[-1].shape == (2, 1 + 10 * 10, 96)
    tokens = AutoTokenizer.from_pretrained(folder)(["a bolt", "a damaged nut"], padding=True, return_tensors="pt")
    assert clip(**tokens, pixel_values=pixels).logits_per_image.shape == (2, 2)
    assert sum(path.stat().st_size for path in folder.iterdir()) < 5e6


def test_the_seed_alone_decides_the_weights(tmp_path):
    torch.manual_seed(1)
    state = torch.get_rng_state()
    write_small_clip(tmp_path / "a")
    assert torch.equal(torch.get_rng_state(), state)  # the global generator is left as it was
    torch.manual_seed(2)
    write_small_clip(tmp_path / "b")
    write_small_clip(tmp_path / "c", seed=1)
    a, b, c = (load_file(tmp_path / name / "model.safetensors") for name in "abc")
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not torch.equal(a["visual_projection.weight"], c["visual_projection.weight"])


def test_a_folder_that_holds_one_is_left_alone(tmp_path):
    write_small_clip(tmp_path, seed=3)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert write_small_clip(tmp_path, seed=4) == tmp_path
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_the_vision_tower_can_be_another(tmp_path):
    folder = write_small_clip(tmp_path, image_size=32, patch_size=8, hidden_size=32, num_attention_heads=2)
    model, processor = AnoPLeModel.from_clip(str(folder), ["bolt"]), AnoPLeProcessor.from_clip(str(folder), ["bolt"])
    assert (model.config.image_size, model.config.grid_size, processor.image_size) == (32, 4, 32)
    assert model.config.clip_config.vision_config.hidden_size == 32


@pytest.mark.parametrize(
    "text", ["metal nut", "Schraube M4 (verzinkt)", "日本の部品", "болт", "نص", "🔩x2", "tab\tend"]
)
def test_any_name_becomes_tokens_and_comes_back(text):
    tokenizer = byte_tokenizer()
    ids = tokenizer(text)["input_ids"]
    assert ids[0] == tokenizer.bos_token_id and ids[-1] == tokenizer.eos_token_id
    assert tokenizer.unk_token_id not in ids[1:-1] and max(ids) < len(tokenizer)
    decoded = tokenizer.decode(ids, skip_special_tokens=True)
    assert "".join(decoded.split()) == "".join(text.lower().split())


def test_names_that_differ_have_different_tokens():
    tokenizer = byte_tokenizer()
    names = ["nut", "nuts", "nüt", "Ω", "ω nut", "部", "品"]
    assert len({tuple(tokenizer(name)["input_ids"]) for name in names}) == len(names)


def test_the_text_tower_reads_at_the_end_token():
    """CLIP takes the feature at the end token; a config with other ids would read somewhere else."""
    tokenizer = byte_tokenizer()
    config = small_clip_config(tokenizer).text_config
    assert (config.bos_token_id, config.eos_token_id) == (tokenizer.bos_token_id, tokenizer.eos_token_id)
    with torch.random.fork_rng(devices=[]):
        clip = CLIPModel(small_clip_config(tokenizer)).eval()
    ids = tokenizer("bolt", return_tensors="pt")["input_ids"]
    longer = torch.cat([ids, torch.full((1, 5), tokenizer.eos_token_id)], dim=1)
    with torch.inference_mode():
        short, long = (clip.get_text_features(input_ids=each).pooler_output for each in (ids, longer))
    torch.testing.assert_close(short, long, atol=1e-5, rtol=1e-5)

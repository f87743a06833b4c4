"""transformers' common tests of models and of configurations, on a small detector."""

import unittest

import torch

from hub.mini_clip.small_clip import byte_tokenizer, small_clip_config
from modeling_anople import AnoPLeConfig, AnoPLeModel

from .upstream import load


common = load("test_modeling_common")
SIDE, PATCH = 32, 8


class DetectorTester:
    """What the mixin asks for: a config of two products, each with the memory of one photograph, and photographs."""

    def __init__(self, parent: unittest.TestCase):
        self.parent = parent
        self.batch_size, self.is_training = 3, True
        self.num_hidden_layers, self.num_attention_heads, self.hidden_size = 2, 4, 32
        config = self.get_config()
        # the class token and the prefix, the prompts of both towers, and the patches
        self.seq_length = 2 + 2 * config.prompt_length + config.grid_size**2

    def get_config(self) -> AnoPLeConfig:
        clip = small_clip_config(
            byte_tokenizer(),
            image_size=SIDE,
            patch_size=PATCH,
            hidden_size=self.hidden_size,
            intermediate_size=64,
            num_hidden_layers=self.num_hidden_layers,
            num_attention_heads=self.num_attention_heads,
        )
        products = [{"name": name, "image_vectors": [(SIDE // PATCH) ** 2]} for name in ("bolt", "nut")]
        return AnoPLeConfig(clip_config=clip.to_dict(), products=products)

    def prepare_config_and_inputs_for_common(self) -> tuple[AnoPLeConfig, dict]:
        return self.get_config(), {"pixel_values": common.floats_tensor([self.batch_size, 3, SIDE, SIDE])}


class AnoPLeModelTest(common.ModelTesterMixin, unittest.TestCase):
    all_model_classes = (AnoPLeModel,)
    test_resize_embeddings = False  # the CLIP's own, which is frozen; transformers' test of CLIP says the same
    test_can_init_all_missing_weights_before_2023 = True
    _is_composite = True

    def setUp(self):
        self.model_tester = DetectorTester(self)

    def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
        inputs = super()._prepare_for_class(inputs_dict, model_class, return_labels)
        if return_labels:  # the losses are of masks, and of products that are known
            count, device = len(inputs["pixel_values"]), inputs["pixel_values"].device
            masks = torch.zeros(count, SIDE, SIDE, device=device)
            masks[0, : SIDE // 2, : SIDE // 2] = 1
            inputs |= {"mask_labels": masks, "class_ids": torch.zeros(count, dtype=torch.long, device=device)}
        return inputs


class AnoPLeConfigTest(unittest.TestCase):
    def test_config(self):
        load("test_configuration_common").ConfigTester(
            self, AnoPLeConfig, has_text_modality=False, prompt_length=3, products=[{"name": "bolt"}]
        ).run_common_tests()

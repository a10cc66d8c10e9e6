"""Example inputs fit the models that they are made for, and further ones reach what the first leave out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import (
    BartConfig,
    BartForCausalLM,
    CLIPVisionConfig,
    Dinov2Config,
    Dinov2ForImageClassification,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedModel,
    Wav2Vec2Config,
    Wav2Vec2ForSequenceClassification,
)

from wid_hf.planning.example_inputs import example_inputs, further_example, further_examples
from wid_hf.planning.student_plan import trace_teacher

IMAGE_TOKEN = 3
SMALL = dict(num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)


def llava() -> LlavaForConditionalGeneration:
    text = LlamaConfig(vocab_size=50, hidden_size=24, max_position_embeddings=64, **SMALL)
    vision = CLIPVisionConfig(hidden_size=16, image_size=24, patch_size=8, **SMALL)
    return LlavaForConditionalGeneration(
        LlavaConfig(text_config=text, vision_config=vision, image_token_index=IMAGE_TOKEN)
    )


def dinov2() -> Dinov2ForImageClassification:
    return Dinov2ForImageClassification(Dinov2Config(hidden_size=16, image_size=24, patch_size=8, **SMALL))


def wav2vec2() -> Wav2Vec2ForSequenceClassification:
    convolutions = dict(conv_dim=(8, 8), conv_kernel=(10, 3), conv_stride=(5, 2), num_feat_extract_layers=2)
    position = dict(num_conv_pos_embedding_groups=2, num_conv_pos_embeddings=4)
    return Wav2Vec2ForSequenceClassification(Wav2Vec2Config(hidden_size=16, **SMALL, **convolutions, **position))


def bart() -> BartForCausalLM:
    return BartForCausalLM(
        BartConfig(vocab_size=50, d_model=16, decoder_layers=1, decoder_attention_heads=2, decoder_ffn_dim=32)
    )


@pytest.mark.parametrize(
    ("build", "unreached", "taken"),
    [
        (llava, "multi_modal_projector.linear_1.weight", ("", "pixel_values")),
        (dinov2, "dinov2.embeddings.mask_token", ("dinov2", "bool_masked_pos")),
        (wav2vec2, "wav2vec2.masked_spec_embed", ("wav2vec2", "mask_time_indices")),
        (bart, "decoder.layers.0.encoder_attn.k_proj.weight", ("", "encoder_hidden_states")),
    ],
)
def test_a_further_example_reaches_what_the_first_leaves_out(
    build: Any, unreached: str, taken: tuple[str, str]
) -> None:
    model = build()
    with torch.no_grad():
        for parameter in model.parameters():  # a mask embedding of zeros would not need to be reached
            parameter.add_(0.1 * torch.randn_like(parameter))
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    seen, further = trace_teacher(model)
    assert any(name.endswith(unreached) for name in seen.weights)
    assert further[0] == taken
    assert seen.unreached == []
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())


def test_there_are_as_many_placeholder_tokens_as_features() -> None:
    model = llava()
    inputs = further_example(model, "", "pixel_values").inputs
    patches = (24 // 8) ** 2
    assert (inputs["input_ids"] == IMAGE_TOKEN).sum(1).tolist() == [patches] * 3
    assert inputs["input_ids"].shape == inputs["attention_mask"].shape
    assert torch.isfinite(model(**inputs).logits).all()


class Told(PreTrainedModel):
    """Asks for as many placeholder tokens as it has features and has no method that makes them."""

    config_class = LlamaConfig
    main_input_name = "input_ids"

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__(config)
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, input_ids: torch.Tensor, attention_mask: Any = None, input_features: Any = None) -> Any:
        tokens, features = int((input_ids == 7).sum()), 12
        if input_features is not None and tokens != features:
            raise ValueError(f"Audio features and audio tokens do not match, tokens: {tokens}, features: {features}")
        return input_ids


def test_a_model_that_names_the_number_of_features_gets_it() -> None:
    model = Told(LlamaConfig(vocab_size=50, audio_token_id=7))
    inputs = further_example(model, "", "input_features").inputs
    assert int((inputs["input_ids"] == 7).sum()) == 12
    model(**inputs)


def test_only_parts_that_hold_an_unreached_weight_are_tried() -> None:
    model = llava()
    parts = {part for part, _ in further_examples(model, ["model.vision_tower.post_layernorm.weight"])}
    assert "model.vision_tower" in parts
    assert "model.language_model" not in parts


def test_example_inputs_keep_clear_of_special_tokens_and_fit_the_vocabulary() -> None:
    ids = example_inputs(bart())["input_ids"]
    assert ids.shape == (3, 7)
    assert int(ids.max()) == 49
    assert int(ids.min()) > 3

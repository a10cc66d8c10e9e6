"""The wid model and the student merged from it are one function."""

from __future__ import annotations

import subprocess
import sys
from functools import cache, partial
from math import prod
from pathlib import Path

import pytest
import torch
from architectures import ARCHITECTURES, every_case, planned
from peft import PeftModel, get_peft_model
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from toys import noisy
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertLMHeadModel,
    CLIPVisionConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    MarianConfig,
    MarianMTModel,
    PreTrainedModel,
    Wav2Vec2Config,
    Wav2Vec2ForSequenceClassification,
)
from transformers.modeling_layers import GradientCheckpointingLayer
from wid_models import IDS, logits

from wid_hf import WidConfig, WidError, get_wid_model


@cache
def pair(family: str, strategy: str) -> tuple[PeftModel, PreTrainedModel]:
    """A wid model with random compactors and the student merged from it, made once: tests only read them."""
    row = ARCHITECTURES[family]
    wid = get_wid_model(row.build(), row.config(strategy), example_inputs=row.inputs)
    noisy(wid)
    return wid, wid.merge_and_unload()


def ties(model: nn.Module) -> set[frozenset[str]]:
    """Groups of names in a checkpoint that hold one tensor."""
    groups: dict[int, set[str]] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        groups.setdefault(id(tensor), set()).add(name)
    return {frozenset(group) for group in groups.values() if len(group) > 1}


@every_case
def test_merging_changes_no_output_at_all(family: str, strategy: str) -> None:
    wid, student = pair(family, strategy)
    inputs = ARCHITECTURES[family].inputs
    assert (logits(wid, inputs) - logits(student, inputs)).abs().max() == 0
    assert logits(wid, inputs).std() > 0.01


@every_case
def test_the_student_is_a_stock_model_of_its_teachers_class(family: str, strategy: str) -> None:
    wid, student = pair(family, strategy)
    assert type(student) is type(wid.base_model.teacher)
    assert not any(".parametrizations." in name for name in student.state_dict())
    assert not any("wid_hf" in type(module).__module__ for module in student.modules())
    assert not any(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in student.modules())
    assert ties(student) == ties(wid.base_model.teacher)
    assert all(parameter.is_leaf and parameter.requires_grad for parameter in student.parameters())


@every_case
def test_planned_shapes_are_the_shapes_of_the_merged_student(family: str, strategy: str) -> None:
    plan, (wid, student) = planned(family, strategy), pair(family, strategy)
    shapes = {name: tuple(parameter.shape) for name, parameter in student.named_parameters()}
    assert {name: plan.shape(name) for name in shapes} == shapes
    assert sum(prod(plan.shape(name)) for name in shapes) == sum(p.numel() for p in student.parameters())
    assert student.num_parameters() < wid.base_model.teacher.num_parameters()


@every_case
def test_a_saved_student_loads_as_a_stock_model_with_equal_outputs(family: str, strategy: str, tmp_path: Path) -> None:
    _, student = pair(family, strategy)
    student.save_pretrained(tmp_path)
    loaded = type(student).from_pretrained(tmp_path).eval()
    inputs = ARCHITECTURES[family].inputs
    assert (logits(loaded, inputs) - logits(student, inputs)).abs().max() == 0
    assert loaded.config.hidden_size == 24
    assert ties(loaded) == ties(student)


@every_case
def test_gradients_reach_every_compactor_and_every_teacher_weight(family: str, strategy: str) -> None:
    wid, _ = pair(family, strategy)
    output = wid(**ARCHITECTURES[family].inputs).logits
    (output * torch.randn(output.shape, generator=torch.Generator().manual_seed(1))).sum().backward()
    missing = [
        name
        for name, parameter in wid.named_parameters()
        if parameter.grad is None or not parameter.grad.abs().max() > 0
    ]
    wid.zero_grad()
    # Softmax takes no notice of a shift that is the same for all keys; rounding leaves that gradient near zero.
    assert [name for name in missing if "key.bias" not in name and "k_proj.bias" not in name] == []
    assert sum(name.endswith(".matrix") for name, _ in wid.named_parameters()) >= 8


@every_case
def test_students_of_calibrated_indices_merge_exactly(family: str, strategy: str) -> None:
    row = ARCHITECTURES[family]
    config = row.config(strategy, selection="variance")
    wid = get_wid_model(row.build(), config, calibration_data=[row.inputs], example_inputs=row.inputs)
    noisy(wid)
    assert (logits(wid, row.inputs) - logits(wid.merge_and_unload(), row.inputs)).abs().max() == 0


@pytest.mark.parametrize("family", ["bert", "gpt2", "llama", "t5"])  # transformers has none for ALBERT
def test_gradient_checkpointing_changes_no_gradient(family: str) -> None:
    row = ARCHITECTURES[family]
    wid = get_wid_model(row.build(), row.config("dim"))
    noisy(wid)
    student = wid.base_model.model.train()

    def gradients() -> dict[str, Tensor]:
        wid.zero_grad()
        with torch.random.fork_rng():
            torch.manual_seed(0)  # the same dropout
            wid(**row.inputs).logits.square().mean().backward()
        return {name: p.grad.clone() for name, p in wid.named_parameters() if p.grad is not None}

    layer = [m for m in student.modules() if isinstance(m, GradientCheckpointingLayer)][-1]
    calls: list[int] = []
    handle = next(layer.children()).register_forward_pre_hook(lambda *_: calls.append(1))
    plain, once = gradients(), len(calls)
    enable = getattr(student, "activation_checkpointing_enable", None) or student.gradient_checkpointing_enable
    enable({"use_reentrant": False})
    checkpointed = gradients()
    handle.remove()
    assert len(calls) == 3 * once  # forward, forward again, and its repetition in the backward
    assert plain.keys() == checkpointed.keys()
    for name, gradient in plain.items():  # checkpointed parts fold one by one, which rounds otherwise
        torch.testing.assert_close(
            checkpointed[name], gradient, rtol=1e-4, atol=1e-6 + 1e-5 * float(gradient.abs().max())
        )


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_checkpoint_around_the_second_use_of_a_tied_weight_changes_no_gradient(
    tiny_bert: BertForMaskedLM, reentrant: bool
) -> None:
    wid = get_wid_model(tiny_bert, WidConfig(hidden_size=12, init="identity"))
    noisy(wid)

    def gradients() -> dict[str, Tensor]:
        wid.zero_grad()
        wid(**IDS).logits.square().mean().backward()
        return {name: p.grad.clone() for name, p in wid.named_parameters() if p.grad is not None}

    plain = gradients()
    module = wid.base_model.model.cls
    module.forward = partial(checkpoint, module.forward, use_reentrant=reentrant)
    again = gradients()
    assert plain.keys() == again.keys()
    assert all(torch.allclose(plain[name], again[name], rtol=1e-5, atol=1e-7) for name in plain)


@pytest.fixture
def wid(tiny_bert: BertForMaskedLM) -> PeftModel:
    return get_wid_model(tiny_bert, WidConfig(hidden_size=12, intermediate_size=24, init="identity"))


def test_trainable_parameters_are_printed(wid: PeftModel, capsys: pytest.CaptureFixture[str]) -> None:
    wid.print_trainable_parameters()
    count = sum(parameter.numel() for parameter in wid.parameters())
    assert f"trainable params: {count:,} || all params: {count:,}" in capsys.readouterr().out


def test_unload_gives_the_teacher_back(tiny_bert: BertForMaskedLM) -> None:
    before = logits(tiny_bert, IDS)
    wid = get_wid_model(tiny_bert, WidConfig(hidden_size=12, init="identity"))
    noisy(wid)
    assert wid.unload() is tiny_bert is wid.base_model.teacher
    assert torch.equal(logits(tiny_bert, IDS), before)


def test_a_merge_can_be_repeated_and_leaves_the_wid_model_training(wid: PeftModel) -> None:
    first, second = wid.merge_and_unload(), wid.merge_and_unload()
    assert torch.equal(logits(first, IDS), logits(second, IDS))
    noisy(wid)
    assert not torch.equal(logits(wid, IDS), logits(first, IDS))
    wid(**IDS).logits.sum().backward()
    assert wid.base_model.model.bert.embeddings.word_embeddings.parametrizations.weight.original.grad is not None
    third = wid.merge_and_unload()
    assert torch.equal(logits(third, IDS), logits(wid, IDS))
    with torch.no_grad():
        for parameter in third.parameters():
            parameter.zero_()
    assert logits(wid, IDS).abs().max() > 0
    assert logits(first, IDS).abs().max() > 0


def test_a_merged_student_trains_without_touching_its_teacher(tiny_bert: BertForMaskedLM, wid: PeftModel) -> None:
    before = {name: tensor.clone() for name, tensor in tiny_bert.state_dict().items()}
    student = wid.merge_and_unload()
    optimizer = torch.optim.SGD(student.parameters(), lr=1.0)
    student(**IDS).logits.square().sum().backward()
    optimizer.step()
    assert all(torch.equal(tensor, before[name]) for name, tensor in tiny_bert.state_dict().items())


@pytest.mark.parametrize("training", [True, False])
def test_a_merged_student_is_in_the_mode_of_the_wid_model(wid: PeftModel, training: bool) -> None:
    wid.train(training)
    assert wid.merge_and_unload().training is training


def test_merging_weights_that_are_not_finite_is_refused_on_request(wid: PeftModel) -> None:
    student = wid.base_model.model
    with torch.no_grad():
        student.bert.encoder.layer[0].output.dense.parametrizations.weight[0].maps["1"].matrix[0, 0] = float("nan")
    message = r"not finite: bert\.encoder\.layer\.0\.output\.dense\.weight\. Nothing was merged"
    with pytest.raises(WidError, match=message):
        wid.merge_and_unload(safe_merge=True)
    assert wid.merge_and_unload().config.hidden_size == 12


def test_calibrating_restarts_the_same_compactors_at_other_indices(tiny_bert: BertForMaskedLM) -> None:
    with torch.no_grad():
        tiny_bert.bert.embeddings.word_embeddings.weight[:, 12:] *= 50
        for norm in (m for m in tiny_bert.modules() if isinstance(m, nn.LayerNorm)):
            norm.weight[12:] = 5.0
    wid = get_peft_model(tiny_bert, WidConfig(hidden_size=12, init="identity", selection="variance"))
    ids = {name: id(parameter) for name, parameter in wid.named_parameters()}
    noisy(wid)
    wid.base_model.calibrate([IDS], reset=True)
    assert {name: id(parameter) for name, parameter in wid.named_parameters()} == ids
    words = tiny_bert.bert.embeddings.word_embeddings.weight
    assert torch.equal(wid.base_model.model.bert.embeddings.word_embeddings.weight, words[:, 12:])


def test_training_moves_compactors_and_the_merge_follows(wid: PeftModel) -> None:
    before = logits(wid.merge_and_unload(), IDS)
    optimizer = torch.optim.SGD(wid.parameters(), lr=0.01)
    wid(**IDS, labels=IDS["input_ids"]).loss.backward()
    optimizer.step()
    after = logits(wid.merge_and_unload(), IDS)
    assert torch.equal(after, logits(wid, IDS))
    assert not torch.equal(after, before)


WITHOUT_WID_HF = """
import sys
sys.modules["wid_hf"] = None
import torch
from transformers import AutoModelForMaskedLM
model = AutoModelForMaskedLM.from_pretrained(sys.argv[1]).eval()
with torch.no_grad():
    torch.save(model(input_ids=torch.arange(21).view(3, 7) + 2).logits, sys.argv[1] + "/logits.pt")
"""


def test_a_student_needs_no_wid_hf_to_be_loaded(wid: PeftModel, tmp_path: Path) -> None:
    noisy(wid)
    student = wid.merge_and_unload()
    student.save_pretrained(tmp_path)
    subprocess.run([sys.executable, "-c", WITHOUT_WID_HF, str(tmp_path)], check=True, timeout=120)
    assert torch.allclose(torch.load(tmp_path / "logits.pt"), logits(student, IDS), atol=1e-6)


def test_a_first_use_without_gradients_does_not_cost_the_second_its_own(wid: PeftModel) -> None:
    word = wid.base_model.model.bert.embeddings.word_embeddings
    word.forward = torch.no_grad()(word.forward)
    wid(**IDS).logits.square().sum().backward()
    assert word.parametrizations.weight.original.grad.abs().max() > 0  # through the tied decoder


def marian() -> MarianMTModel:
    config = MarianConfig(
        vocab_size=60,
        d_model=24,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=48,
        decoder_ffn_dim=48,
        max_position_embeddings=32,
        pad_token_id=0,
        decoder_start_token_id=0,
    )
    return MarianMTModel(config).eval()


def test_a_table_that_loading_computes_anew_is_kept_where_its_width_is() -> None:
    teacher = marian()
    halved = WidConfig(overrides={"encoder_ffn_dim": 24, "decoder_ffn_dim": 24}, init="identity")
    student = get_wid_model(teacher, halved).merge_and_unload()
    tables = [model.get_parameter("model.encoder.embed_positions.weight") for model in (teacher, student)]
    assert tables[0].abs().sum() > 0
    assert torch.equal(*tables)


def test_a_narrower_student_computes_its_own_positions_and_keeps_the_indices_nearest_to_them(tmp_path: Path) -> None:
    teacher = marian()
    wid = get_wid_model(teacher, WidConfig(hidden_size=12, init="identity"), verify=True)
    student = wid.merge_and_unload()
    name = "model.encoder.embed_positions.weight"
    own, theirs = student.get_parameter(name), teacher.get_parameter(name)
    assert torch.equal(own, MarianMTModel(student.config).get_parameter(name))
    kept = (student.model.shared.weight[:, :, None] == teacher.model.shared.weight[:, None, :]).all(0).int().argmax(1)
    assert len(set(kept.tolist())) == 12
    # The first index has all teacher's to choose from; sines stay with sines of about the same wave length.
    assert int(kept[0]) == int((own[:, :1] - theirs).square().sum(0).argmin())
    assert (own - theirs[:, kept]).square().mean() < 0.5 * (own - theirs[:, :12]).square().mean()
    student.save_pretrained(tmp_path)
    again = MarianMTModel.from_pretrained(tmp_path)
    assert torch.equal(again.get_parameter(name), own)


def test_a_decoder_with_cross_attention_narrows_the_states_that_it_takes_as_well() -> None:
    config = BertConfig(
        vocab_size=60,
        hidden_size=24,
        num_hidden_layers=1,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=32,
        is_decoder=True,
        add_cross_attention=True,
    )
    teacher = BertLMHeadModel(config).eval()
    wid = get_wid_model(teacher, WidConfig(hidden_size=12, init="identity"), verify=True)
    noisy(wid)
    student = wid.merge_and_unload()
    assert student.bert.encoder.layer[0].crossattention.self.key.weight.shape == (12, 12)
    with_states = {**IDS, "encoder_hidden_states": torch.randn(IDS["input_ids"].shape[0], 4, 12)}
    assert torch.equal(logits(student, with_states), logits(wid, with_states))


def test_a_weight_normed_teacher_trains_and_merges_into_its_own_class(tmp_path: Path) -> None:
    config = Wav2Vec2Config(
        vocab_size=20,
        hidden_size=24,
        num_hidden_layers=1,
        num_attention_heads=4,
        intermediate_size=48,
        conv_dim=(8, 8),
        conv_kernel=(10, 3),
        conv_stride=(5, 2),
        num_feat_extract_layers=2,
        num_conv_pos_embedding_groups=2,
        num_conv_pos_embeddings=4,
        classifier_proj_size=8,
    )
    teacher = Wav2Vec2ForSequenceClassification(config).eval()
    wid = get_wid_model(teacher, WidConfig(hidden_size=12, intermediate_size=24, init="identity"), verify=True)
    sound = {"input_values": torch.randn(2, 400)}
    wid(**sound).logits.square().sum().backward()
    noisy(wid)
    student = wid.merge_and_unload()
    assert torch.equal(logits(student, sound), logits(wid, sound))
    student.save_pretrained(tmp_path)
    again = Wav2Vec2ForSequenceClassification.from_pretrained(tmp_path).eval()
    assert torch.allclose(logits(again, sound), logits(student, sound), atol=1e-6)
    # Evaluation never uses the mask embedding; it lies along the hidden size all the same.
    assert again.wav2vec2.masked_spec_embed.shape == (12,)


def test_head_sizes_follow_the_hidden_size_in_a_part_of_a_composite_model() -> None:
    row = ARCHITECTURES["llama"]
    text = row.build().config.to_dict()
    vision = dict(
        hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=16, patch_size=8
    )
    config = LlavaConfig(text_config=text, vision_config=CLIPVisionConfig(**vision), image_token_index=1)
    teacher = LlavaForConditionalGeneration(config).eval()
    hidden, heads = text["hidden_size"], text["num_attention_heads"]
    sizes = {"text_config": {"hidden_size": hidden // 2}, "vision_config": {"hidden_size": 8}}
    wid = get_wid_model(teacher, WidConfig(overrides=sizes, head_strategy="head", init="identity"), verify=True)
    student = wid.merge_and_unload()
    assert student.config.text_config.num_attention_heads == heads // 2
    assert student.config.vision_config.num_attention_heads == 1
    ids = torch.tensor([[1, 1, 1, 1, 7, 8, 9]])
    batch = {"input_ids": ids, "pixel_values": torch.randn(1, 3, 16, 16)}
    assert torch.equal(logits(student, batch), logits(wid, batch))

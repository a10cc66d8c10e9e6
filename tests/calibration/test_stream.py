"""Which streams may be turned: what is folded and fitted there, and that a random turn proves it."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, LlamaModel, PreTrainedModel
from turning_models import TURNING

from wid_hf import WidConfig, get_wid_model, plan_student
from wid_hf.calibration.stream import Stream
from wid_hf.calibration.stream_proof import random_turn, turnable_streams

SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
NORMS = 5  # before attention and feed-forward blocks of two layers, and the last one


def llama(kind: type[PreTrainedModel] = LlamaForCausalLM, tied: bool = True) -> PreTrainedModel:
    """A teacher whose norms scale every index by another number."""
    config = LlamaConfig(
        vocab_size=60,
        hidden_size=24,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        tie_word_embeddings=tied,
        rms_norm_eps=1e-12,
    )
    teacher = kind(config).eval()
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in teacher.parameters():
            weight.uniform_(0.5, 2.0, generator=g) if weight.ndim == 1 else weight.normal_(std=0.3, generator=g)
    return teacher


def batches(seed: int = 1) -> list[dict[str, Tensor]]:
    g = torch.Generator().manual_seed(seed)
    return [{"input_ids": torch.randint(5, 60, (24, 10), generator=g)} for _ in range(3)]


def found(model: PreTrainedModel, sizes: dict[str, int] = SIZES, outputs_too: bool = True) -> list[Stream]:
    planned = plan_student(model, WidConfig(**sizes))
    return turnable_streams(model, planned.trace, planned.plan, outputs_too)


def streams_of(family: str, outputs_too: bool = True, **more: object) -> list[Stream]:
    row = TURNING[family]
    teacher = row.build()
    planned = plan_student(teacher, row.config(row.strategies[0], **more), inputs=row.inputs)
    return turnable_streams(teacher, planned.trace, planned.plan, outputs_too)


@pytest.mark.parametrize(
    ("family", "centred", "folded", "fitted"),
    [
        ("bert", True, 1, 4),  # the last norm's result goes only into the head
        ("bert-classifier", True, 1, 4),
        ("bert-qa", True, 1, 4),
        ("bert-model", True, 0, 5),
        ("gpt2", True, NORMS, 0),
        ("gpt-neox", True, NORMS, 0),
        ("vit", True, NORMS, 0),
        ("llama", False, NORMS, 0),
        ("gemma2", False, NORMS, 4),  # its blocks' results are normalised before they are added
        ("bart", True, 1, 11),
        ("whisper", True, 7, 0),  # of the decoder
    ],
)
def test_norms_before_matrices_are_folded_and_norms_in_the_stream_are_fitted(
    family: str, centred: bool, folded: int, fitted: int
) -> None:
    (stream,) = streams_of(family)
    assert (stream.leaf.size, stream.centred, len(stream.folded), len(stream.fitted)) == (48, centred, folded, fitted)
    assert not {each.vector for each in stream.folded} & {each.vector for each in stream.fitted}
    vectors = {each.vector for each in (*stream.folded, *stream.fitted)}
    assert not vectors & {name for name, _ in stream.axes}
    assert set(stream.readers.values()) == set(stream.folded) and set(stream.readers) <= stream.axes


@pytest.mark.parametrize("family", ["gpt2", "gemma2", "bart", "whisper"])
def test_a_table_whose_scores_only_a_vector_divides_from_the_stream_is_tied_to_it(family: str) -> None:
    (stream,) = streams_of(family)
    (table,) = stream.tied
    assert table.endswith(("wte.weight", "embed_tokens.weight", "shared.weight")) and not stream.heads
    (reader,) = [scaling for (name, _), scaling in stream.readers.items() if name == table]
    assert reader in stream.folded


@pytest.mark.parametrize("family", ["bert", "albert"])
def test_a_masked_lms_head_is_no_part_of_the_stream_but_uses_its_table(family: str) -> None:
    stream = next(each for each in streams_of(family) if each.heads)
    assert stream.heads == {f"{family}.embeddings.word_embeddings.weight"} and not stream.tied
    inside = {name for name, _ in stream.axes} | {each.vector for each in (*stream.folded, *stream.fitted)}
    assert not any("LayerNorm" in name for name in inside if name.startswith(("cls", "predictions")))


def test_an_embedding_of_another_width_is_a_stream_of_its_own() -> None:
    embedding, stream = streams_of("albert")
    assert (embedding.leaf.size, stream.leaf.size) == (32, 48)
    assert (len(embedding.folded), len(embedding.fitted)) == (1, 0)
    assert {each.vector for each in stream.fitted} == {
        "albert.encoder.albert_layer_groups.0.albert_layers.0.attention.LayerNorm.weight",
        "albert.encoder.albert_layer_groups.0.albert_layers.0.full_layer_layer_norm.weight",
    }


@pytest.mark.parametrize("family", ["bert-model", "bart"])
def test_a_stream_that_callers_see_turns_only_if_they_may_see_it_turned(family: str) -> None:
    (stream,) = streams_of(family)
    assert stream.is_output
    assert streams_of(family, outputs_too=False) == []


def test_a_hidden_stream_turns_whether_outputs_may_or_not() -> None:
    for kind, tied, is_output in ((LlamaForCausalLM, True, False), (LlamaForCausalLM, False, False)):
        for outputs_too in (True, False):
            (stream,) = found(llama(kind, tied), outputs_too=outputs_too)
            assert stream.is_output == is_output
            assert stream.tied == ({"model.embed_tokens.weight"} if tied else set())
    assert found(llama(LlamaModel), outputs_too=False) == []
    assert found(llama(LlamaModel))[0].is_output


def test_whispers_encoder_keeps_indices_because_a_gelu_makes_its_stream() -> None:
    (stream,) = streams_of("whisper")
    assert all(name.startswith("model.decoder") or "encoder_attn" in name for name, _ in stream.axes)


@pytest.mark.parametrize("factor", [1e-3, 1.0, 1e3])
def test_the_proof_sees_what_is_not_linear_whatever_the_size_of_the_weights(factor: float) -> None:
    """Of tiny values a GELU is nearly linear."""
    row = TURNING["whisper"]
    teacher = row.build()
    with torch.no_grad():
        for weight in teacher.parameters():
            weight.mul_(factor if weight.ndim > 1 else 0)  # a bias may make values large
    planned = plan_student(teacher, row.config(row.strategies[0]), inputs=row.inputs)
    (stream,) = turnable_streams(teacher, planned.trace, planned.plan, True)
    assert all(name.startswith("model.decoder") or "encoder_attn" in name for name, _ in stream.axes)


class _Centred(nn.Module):
    """A norm that also subtracts the mean."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.weight, self.eps = norm.weight, norm.variance_epsilon

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.layer_norm(x, (len(self.weight),), self.weight, None, self.eps)


class _Rectified(_Centred):
    """A norm of the negative and positive parts by different factors: not linear up to a common factor."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(nn.functional.leaky_relu(x, 0.5))


def replaced(kind: Callable[[nn.Module], nn.Module]) -> PreTrainedModel:
    teacher = llama()
    for layer in teacher.model.layers:
        layer.input_layernorm = kind(layer.input_layernorm)
    return teacher


def test_one_norm_that_subtracts_the_mean_leaves_only_turns_that_keep_it() -> None:
    """Norms of squares beside it do not mind: turns that keep the vector of ones are orthogonal as well."""
    (stream,) = found(replaced(_Centred))
    assert stream.centred


def test_what_is_not_linear_in_the_stream_fails_the_proof() -> None:
    assert found(replaced(_Rectified)) == []


def test_a_rectifier_in_the_residual_fails_the_proof() -> None:
    teacher = llama()
    teacher.model.layers[0].register_forward_hook(lambda module, args, out: nn.functional.leaky_relu(out, 0.9))
    assert found(teacher) == []


def test_outputs_that_are_not_finite_fail_the_proof() -> None:
    teacher = llama()
    with torch.no_grad():
        teacher.model.layers[0].mlp.down_proj.weight[3] = float("inf")
    assert found(teacher) == []


def test_a_stream_that_does_not_shrink_is_left_alone() -> None:
    assert found(llama(), {"intermediate_size": 16}) == []


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("family", ["bert", "llama"])
def test_the_proof_holds_in_every_precision(family: str, dtype: torch.dtype) -> None:
    row = TURNING[family]
    teacher = row.build().to(dtype)
    planned = plan_student(teacher, row.config("head"), inputs=row.inputs)
    assert len(turnable_streams(teacher, planned.trace, planned.plan, True)) == 1


def test_the_proof_leaves_the_teacher_as_it_was() -> None:
    teacher = llama().train()
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    found(teacher)
    assert all(torch.equal(tensor, before[name]) for name, tensor in teacher.state_dict().items())
    assert teacher.training and not torch.is_inference_mode_enabled()


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("size", [2, 3, 48])
def test_random_turns_are_orthogonal_and_keep_the_vector_of_ones_if_asked(size: int, centred: bool) -> None:
    turn = random_turn(size, centred)
    assert torch.allclose(turn @ turn.T, torch.eye(size), atol=1e-6)
    keeps = torch.allclose(turn @ torch.ones(size), torch.ones(size), atol=1e-5)
    assert keeps or not centred
    assert size < 3 or (turn - torch.eye(size)).abs().max() > 0.1


@torch.no_grad()
@pytest.mark.parametrize("tied", [True, False])
def test_a_turned_stream_loses_nothing_where_the_teachers_lies_in_as_few_directions(tied: bool) -> None:
    teacher = llama(tied=tied)
    g = torch.Generator().manual_seed(0)
    span = torch.linalg.qr(torch.randn(24, 16, generator=g)).Q
    for name, weight in teacher.named_parameters():
        if name.endswith("embed_tokens.weight"):
            weight.copy_(weight @ span @ span.T)
        elif name.endswith(("o_proj.weight", "down_proj.weight")):
            weight.copy_(span @ span.T @ weight)
        elif tied and name == "model.norm.weight":
            weight.fill_(1.5)  # a table that also scores is exact only if nothing but a number stands between
    data = batches()
    wid = get_wid_model(teacher, WidConfig(**SIZES))
    wanted = teacher(**data[0], use_cache=False).logits

    def error() -> float:
        return float((wid(**data[0], use_cache=False).logits - wanted).norm() / wanted.norm())

    wid.base_model.calibrate(data, pca=False)
    selected = error()
    wid.base_model.calibrate(data)
    turned = error()
    assert turned < 2e-3
    assert selected > 20 * turned
    merged = wid.merge_and_unload()
    assert torch.equal(merged(**data[0], use_cache=False).logits, wid(**data[0], use_cache=False).logits)


@torch.no_grad()
@pytest.mark.usefixtures("turned_is_best")
def test_norms_before_matrices_keep_only_the_ratio_of_widths() -> None:
    wid = get_wid_model(llama(), WidConfig(**SIZES))
    wid.base_model.calibrate(batches(), reconstruction=False)
    student = wid.merge_and_unload()
    even = torch.full((16,), (24 / 16) ** 0.5)
    assert torch.allclose(student.model.layers[1].input_layernorm.weight, even, rtol=1e-6)
    # Before the tied table they differ by per cents; that no two are near each other would be chance.
    assert student.model.norm.weight.std() > 0.02


@torch.no_grad()
@pytest.mark.usefixtures("turned_is_best")
def test_the_map_is_the_same_wherever_a_norms_weight_stands_before_its_matrices(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In the norm or in the matrices after it, the model is the same function."""
    for name, value in {"STEPS": 500, "FLAT": 1e-9, "SMALL": 1.0}.items():  # to the best span itself, in float64
        monkeypatch.setattr(import_module("wid_hf.calibration.stream_span"), name, value)

    def projection(teacher: PreTrainedModel) -> Tensor:
        wid = get_wid_model(teacher.double(), WidConfig(**SIZES))
        wid.base_model.calibrate(batches(), reconstruction=False)
        (map_,) = wid.base_model.turned.state_dict().values()
        return map_.double().T @ map_.double()

    inside = llama(tied=False)
    layers = list(inside.model.layers)
    norms = [(layer.input_layernorm, [getattr(layer.self_attn, f"{part}_proj") for part in "qkv"]) for layer in layers]
    norms += [(layer.post_attention_layernorm, [layer.mlp.gate_proj, layer.mlp.up_proj]) for layer in layers]
    for norm, readers in [*norms, (inside.model.norm, [inside.lm_head])]:
        for reader in readers:
            reader.weight.mul_(norm.weight)
        norm.weight.fill_(1)
    assert torch.allclose(projection(llama(tied=False)), projection(inside), atol=1e-5)


@torch.no_grad()
def test_a_norm_weight_that_is_zero_somewhere_gives_finite_weights() -> None:
    teacher = llama()
    teacher.model.layers[0].input_layernorm.weight[3:5] = 0
    wid = get_wid_model(teacher, WidConfig(**SIZES))
    wid.base_model.calibrate(batches())
    assert all(weight.isfinite().all() for weight in wid.merge_and_unload().parameters())

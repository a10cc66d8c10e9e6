"""A stream under RMS norms in an orthogonal basis: found by a proof, and better where it has few directions."""

from __future__ import annotations

import pytest
import torch
from architectures import ARCHITECTURES
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, LlamaModel, PreTrainedModel

from wid_hf import WidConfig, get_wid_model
from wid_hf.calibration.rotation import Stream, rotatable_stream

SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}


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


def found(model: PreTrainedModel, sizes: dict[str, int] = SIZES) -> Stream | None:
    wid = get_wid_model(model, WidConfig(**sizes))
    planned, teacher = wid.base_model.student_plan, wid.base_model.teacher
    return rotatable_stream(teacher, planned.trace, planned.plan)


@pytest.mark.parametrize("tied", [True, False])
def test_the_stream_of_a_model_with_rms_norms_may_be_turned(tied: bool) -> None:
    stream = found(llama(tied=tied))
    assert stream is not None
    assert stream.leaf.size == 24
    assert len(set(stream.norms.values())) == 5  # two in each layer, and the last
    assert stream.unfolded == ("model.norm.weight" if tied else None)


@pytest.mark.parametrize("family", ["bert", "gpt2", "modernbert", "vit"])
def test_a_stream_that_meets_layer_norms_is_not_turned(family: str) -> None:
    row = ARCHITECTURES[family]
    wid = get_wid_model(
        row.build(), WidConfig(**row.halved, head_strategy=row.strategies[0]), example_inputs=row.inputs
    )
    planned, teacher = wid.base_model.student_plan, wid.base_model.teacher
    assert rotatable_stream(teacher, planned.trace, planned.plan) is None


def test_a_norm_that_also_subtracts_the_mean_fails_the_proof() -> None:
    class Centred(nn.Module):
        def __init__(self, norm: nn.Module) -> None:
            super().__init__()
            self.weight, self.eps = norm.weight, norm.variance_epsilon

        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.layer_norm(x, (len(self.weight),), self.weight, None, self.eps)

    teacher = llama()
    for layer in teacher.model.layers:
        layer.input_layernorm = Centred(layer.input_layernorm)
    assert found(teacher) is None


def test_a_stream_that_someone_takes_as_output_is_not_turned() -> None:
    assert found(llama(LlamaModel)) is None


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
def test_the_norms_of_a_turned_student_have_the_weights_that_the_basis_needs() -> None:
    wid = get_wid_model(llama(), WidConfig(**SIZES))
    wid.base_model.calibrate(batches(), reconstruction=False)
    student = wid.merge_and_unload()
    even = torch.full((16,), (24 / 16) ** 0.5)
    assert torch.allclose(student.model.layers[1].input_layernorm.weight, even, rtol=1e-6)
    scale = wid.base_model.teacher.model.norm.weight
    assert student.model.norm.weight.sort().values.diff().min() > 1e-3  # its own diagonal, not all alike
    assert (0.9 * scale.min() < student.model.norm.weight / even).all()
    assert (student.model.norm.weight / even < 1.1 * scale.max()).all()


@torch.no_grad()
def test_a_norm_weight_that_is_zero_somewhere_gives_finite_weights() -> None:
    teacher = llama()
    teacher.model.layers[0].input_layernorm.weight[3:5] = 0
    wid = get_wid_model(teacher, WidConfig(**SIZES))
    wid.base_model.calibrate(batches())
    assert all(weight.isfinite().all() for weight in wid.merge_and_unload().parameters())


def test_calibration_twice_gives_the_same_weights() -> None:
    wid = get_wid_model(llama(), WidConfig(**SIZES))
    students = []
    for _ in range(2):
        wid.base_model.calibrate(batches())
        students.append(wid.merge_and_unload().state_dict())
    assert all(torch.equal(students[0][name], weight) for name, weight in students[1].items())

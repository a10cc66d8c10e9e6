"""The wide phase: statistics over kept indices, and refusals of what cannot end as the narrow model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import BertConfig, BertForMaskedLM, MarianConfig, MarianMTModel

from wid_hf import PlanError, WidConfig, get_wid_model
from wid_hf.progressive.masked_statistics import _around, _MaskedReductions

KEPT = torch.tensor([0, 2, 3, 7, 8])


class HandwrittenRMS(nn.Module):
    """As Llama's."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(size))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


class Centred(nn.Module):
    """By functions of torch, with the variance as some models spell it."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(size))

    def forward(self, x: Tensor) -> Tensor:
        mean = torch.mean(x, dim=-1, keepdim=True)
        return self.weight * (x - mean) / torch.sqrt(x.var(-1, keepdim=True, unbiased=False) + 1e-5)


class UnitLength(nn.Module):
    """Divides by the norm."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(size))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x / torch.linalg.vector_norm(x, dim=-1, keepdim=True)


def made(kind: Any, size: int) -> nn.Module:
    module = kind(size)
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    return module


@pytest.mark.parametrize("kind", [nn.LayerNorm, nn.RMSNorm, HandwrittenRMS, Centred, UnitLength])
def test_a_normalisation_of_kept_indices_is_the_narrow_one(kind: Any) -> None:
    torch.manual_seed(0)
    wide, narrow = made(kind, 12), made(kind, 5)
    for of_wide, of_narrow in zip(wide.parameters(), narrow.parameters(), strict=True):
        of_narrow.data.copy_(of_wide.data[KEPT])
    mode = _MaskedReductions(12)
    _around(wide, [mode])
    x = torch.randn(3, 4, 12)
    whole = wide(x)
    mode.indices = KEPT
    assert torch.allclose(wide(x)[..., KEPT], narrow(x[..., KEPT]), atol=1e-6)
    assert (wide(x) - whole).abs().max() > 0.01


@pytest.mark.parametrize("norm", [lambda x: x.norm(2, -1), lambda x: torch.linalg.vector_norm(x, 2, -1)])
def test_the_order_of_a_norm_is_not_taken_for_a_dimension(norm: Any) -> None:
    class Norm(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return norm(x)

    module, mode, x = Norm(), _MaskedReductions(12), torch.randn(3, 12)
    _around(module, [mode])
    mode.indices = KEPT
    assert torch.allclose(module(x), x[:, KEPT].norm(dim=-1))


def test_dropped_entries_are_normalised_by_the_statistics_of_the_kept() -> None:
    torch.manual_seed(0)
    norm, mode, x = made(nn.LayerNorm, 12), _MaskedReductions(12), torch.randn(3, 12)
    _around(norm, [mode])
    mode.indices = KEPT
    used = x[:, KEPT]
    expected = (x - used.mean(1, True)) / (used.var(1, keepdim=True, unbiased=False) + norm.eps).sqrt()
    assert torch.allclose(norm(x), expected * norm.weight + norm.bias, atol=1e-6)


def test_gradients_flow_through_kept_statistics_alone() -> None:
    norm, mode = made(HandwrittenRMS, 12), _MaskedReductions(12)
    _around(norm, [mode])
    mode.indices = KEPT
    x = torch.randn(3, 12, requires_grad=True)
    norm(x)[:, KEPT].sum().backward()
    dropped = [at for at in range(12) if at not in KEPT.tolist()]
    assert x.grad is not None
    assert (x.grad[:, dropped] == 0).all()
    assert (x.grad[:, KEPT] != 0).all()


def test_other_axes_and_other_sizes_are_left_alone() -> None:
    class Mean(nn.Module):
        def forward(self, x: Tensor, axis: int) -> Tensor:
            return x.mean(axis)

    module, mode = Mean(), _MaskedReductions(12)
    _around(module, [mode])
    mode.indices = KEPT
    over_tokens, narrow = torch.randn(12, 12), torch.randn(3, 6)
    assert torch.equal(module(over_tokens, 0), over_tokens.mean(0))
    assert torch.equal(module(narrow, -1), narrow.mean(-1))
    assert torch.equal(module(over_tokens, -1), over_tokens[:, KEPT].mean(-1))


def test_a_forward_that_raises_leaves_no_mode_behind() -> None:
    norm, mode = made(nn.LayerNorm, 12), _MaskedReductions(12)
    _around(norm, [mode])
    mode.indices = KEPT
    with pytest.raises(RuntimeError):
        norm(torch.randn(3, 11))
    x = torch.randn(3, 12)
    assert torch.equal(functional.layer_norm(x, [12]).mean(-1), functional.layer_norm(x, [12]).mean(-1))
    assert torch.equal(x.mean(-1), torch.stack([row.mean() for row in x]))


def test_half_precision_stays_half_precision(tiny_bert: BertForMaskedLM) -> None:
    norm, mode = made(nn.LayerNorm, 12).bfloat16(), _MaskedReductions(12)
    _around(norm, [mode])
    mode.indices = KEPT
    assert norm(torch.randn(3, 12).bfloat16()).dtype == torch.bfloat16
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert norm.float()(torch.randn(3, 12)).dtype == torch.float32


def test_positions_computed_from_the_config_are_refused_before_any_training() -> None:
    config = MarianConfig(
        vocab_size=60,
        d_model=32,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=4,
        max_position_embeddings=32,
        decoder_attention_heads=4,
        encoder_ffn_dim=48,
        decoder_ffn_dim=48,
        pad_token_id=0,
        eos_token_id=1,
        decoder_start_token_id=0,
        forced_eos_token_id=1,
    )
    with pytest.raises(PlanError, match=r'positions are computed from the config.*schedule="narrow"'):
        get_wid_model(MarianMTModel(config).eval(), WidConfig(hidden_size=24, schedule="progressive"))


def test_a_wide_model_that_would_not_end_as_the_narrow_one_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without kept statistics the proof at the start must fail: it is no formality."""
    monkeypatch.setattr(
        "wid_hf.progressive.masked_statistics._normalised",
        lambda centred, kept, x, *args, **given: functional.layer_norm(x, *args, **given),
    )
    config = BertConfig(vocab_size=60, hidden_size=24, num_hidden_layers=1, num_attention_heads=4, intermediate_size=48)
    with pytest.raises(PlanError, match=r"not supported for BertForMaskedLM: .* outputs differ"):
        get_wid_model(BertForMaskedLM(config).eval(), WidConfig(hidden_size=12, schedule="progressive"))

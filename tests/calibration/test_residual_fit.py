"""Weights before a residual sum: the student's stream comes as near to the turned teacher's as their inputs allow."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor
from turning_models import TURNING, calibrated, data_for

from wid_hf import get_wid_model
from wid_hf.calibration.lockstep import Operands
from wid_hf.calibration.moments import Regression
from wid_hf.calibration.residual_fit import ResidualFit, _ridge_of_few
from wid_hf.coupling.landmark_record import Landmark
from wid_hf.coupling.weight_inputs import WeightInput


@dataclass
class Fit:
    """One call, all rows: the sum before and after it, and what it is made of.

    `weights` are those whose outputs are added, `inputs` the student's inputs of them (of the teacher's width where
    they do not shrink), `residual` the teacher's other part of the sum and the student's.
    """

    weights: list[str]
    wanted: Tensor
    before: Tensor
    after: Tensor
    inputs: list[Tensor]
    residual: tuple[Tensor, Tensor]
    changed: tuple[str, ...]
    map_: Tensor


def rows(operands: Operands) -> Tensor:
    return torch.cat([each.rows for each in operands if each is not None]).clone()


def affine(x: Tensor, given: WeightInput, weights: Mapping[str, Tensor]) -> Tensor:
    """What a weight makes of its input, with the bias that is added to it."""
    matrix = weights[given.weight]
    out = x @ (matrix.T if given.axis == 1 else matrix)
    return out + weights[given.bias] if given.bias is not None else out


def now(fit: ResidualFit) -> dict[str, Tensor]:
    """The student's weights at this moment."""
    return {
        name: fit._folded[name].fold(weight) if name in fit._folded else weight for name, weight in fit._weights.items()
    }


@pytest.fixture
def fits(monkeypatch: pytest.MonkeyPatch, turned_is_best: None) -> list[Fit]:
    """Every fit from now on, hardly drawn to its start, with errors as shares of any length."""
    monkeypatch.setattr(import_module("wid_hf.calibration.reconstruction"), "WRITER_RIDGE", 1e-12)
    monkeypatch.setattr("wid_hf.calibration.residual_fit._ridge_of_few", lambda regression: 0.0)
    monkeypatch.setattr(import_module("wid_hf.calibration.residual_fit"), "SHORTEST", 0.0)
    found: list[Fit] = []
    fit = ResidualFit.fit

    def watched(self: ResidualFit, place: Landmark, teacher: Operands, student: Operands) -> Any:
        sum_ = self._plan.landmarks.sums[place.number]
        _, map_ = self._maps[sum_.space]
        kept = {at: self._kept[at] for at, _ in sum_.terms}
        wanted, before = rows(teacher) @ map_.to(rows(teacher)).T, rows(student)
        residuals, inputs, names = [wanted, before.clone()], [], []
        for at, factor in sum_.terms:
            given = self._plan.weight_inputs[at]
            names.append(given.weight)
            theirs, mine = (rows(each) for each in kept[at])
            inputs.append(mine * factor)
            outputs = factor * affine(theirs, given, self._weights), factor * affine(mine, given, now(self))
            residuals = [residuals[0] - outputs[0] @ map_.to(wanted).T, residuals[1] - outputs[1]]
        changed = fit(self, place, teacher, student)
        found.append(Fit(names, wanted, before, rows(student), inputs, tuple(residuals), changed, map_))
        return changed

    monkeypatch.setattr(ResidualFit, "fit", watched)
    return found


def reached(target: Tensor, inputs: Tensor, with_bias: bool, stream: Tensor) -> Tensor:
    """What a linear map of `inputs` reaches of `target`, by least squares of errors, shares of the stream's length."""
    design = torch.cat([inputs, torch.ones(len(inputs), 1)], 1) if with_bias else inputs
    length = stream.norm(dim=1, keepdim=True)
    return design @ torch.linalg.lstsq(design / length, target / length, driver="gelsd").solution


def centred(x: Tensor) -> Tensor:
    """Less the mean over indices, which the next norm does not see and a centred map does not make."""
    return x - x.mean(1, keepdim=True)


def biased(each: Fit) -> bool:
    return any(name.endswith("bias") for name in each.changed)


@pytest.mark.parametrize(
    ("family", "count", "branches"), [("gpt2", 4, 1), ("llama", 4, 1), ("gpt-neox", 2, 2), ("vit", 4, 1)]
)
def test_before_a_norm_the_stream_is_the_least_squares_fit_of_the_turned_one(
    family: str, count: int, branches: int, fits: list[Fit]
) -> None:
    """Branches that are added in one sum, as of parallel blocks, are fitted together."""
    calibrated(family, torch.float64)
    assert [len(each.weights) for each in fits] == [branches] * count
    for each in fits:
        assert biased(each) == (family != "llama")
        stream = each.wanted if family == "llama" else centred(each.wanted)
        missing = each.wanted - each.residual[1]
        best = each.residual[1] + reached(missing, torch.cat(each.inputs, 1), biased(each), stream)
        after, best = (each.after, best) if family == "llama" else (centred(each.after), centred(best))
        assert torch.allclose(after, best, rtol=0, atol=1e-6 * float(best.abs().max())), each.weights
        shares = [(found - each.wanted) / stream.norm(dim=1, keepdim=True) for found in (each.after, each.before)]
        assert shares[0].norm() < shares[1].norm()


@pytest.mark.parametrize("family", ["bert-model", "bart"])
def test_where_the_norm_comes_after_the_sum_every_position_has_the_students_own_scale(
    family: str, fits: list[Fit]
) -> None:
    calibrated(family, torch.float64)
    assert len(fits) == {"bert-model": 4, "bart": 10}[family]
    for each in fits:
        theirs, mine = map(centred, each.residual)
        scale = (theirs * mine).sum(1, keepdim=True) / theirs.square().sum(1, keepdim=True)
        missing = scale * each.wanted - each.residual[1]
        best = each.residual[1] + reached(missing, torch.cat(each.inputs, 1), True, scale * centred(each.wanted))
        after, best = centred(each.after), centred(best)
        assert torch.allclose(after, best, rtol=0, atol=1e-5 * float(best.abs().max())), each.weights


def test_weights_whose_inputs_keep_their_width_are_fitted_by_their_rows(fits: list[Fit]) -> None:
    row = TURNING["llama"]
    teacher = row.build().double()
    sizes = {"hidden_size": 24, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = row.config("dim", init="calibrated", **sizes, head_dim=12)
    get_wid_model(teacher, config, example_inputs=row.inputs, calibration_data=data_for(row, 4))
    weights = dict(teacher.named_parameters())
    assert len(fits) == 4
    for each in fits:
        (name,), (given,) = each.weights, each.inputs
        assert given.shape[1] == weights[name].shape[1]  # all of it
        missing, outputs = each.wanted - each.residual[1], given @ weights[name].T.detach()
        best = each.residual[1] + reached(missing, outputs, False, each.wanted)
        assert torch.allclose(each.after, best, rtol=0, atol=1e-6 * float(each.wanted.abs().max())), each.weights


def test_a_shared_weight_is_fitted_to_all_its_uses_so_far(fits: list[Fit]) -> None:
    calibrated("albert", torch.float64)
    first, second = ([each for each in fits if part in each.weights[0]] for part in ("attention.dense", "ffn_output"))
    assert len(first) == len(second) == 2
    for uses in (first, second):
        missing, inputs, streams = [], [], []
        for each in uses:
            theirs, mine = map(centred, each.residual)
            scale = (theirs * mine).sum(1, keepdim=True) / theirs.square().sum(1, keepdim=True)
            missing.append(scale * each.wanted - each.residual[1])
            inputs.append(each.inputs[0])
            streams.append(scale * centred(each.wanted))
        best = reached(torch.cat(missing), torch.cat(inputs), True, torch.cat(streams))[-len(inputs[-1]) :]
        made, best = centred(uses[1].after - uses[1].residual[1]), centred(best)
        assert torch.allclose(made, best, rtol=0, atol=1e-6 * float(best.abs().max()))


def test_the_fewer_positions_there_are_the_less_a_weight_leaves_its_start() -> None:
    ridges = []
    for positions in (16, 48, 480):
        regression = Regression(4, 16, torch.device("cpu"))
        g = torch.Generator().manual_seed(0)
        regression.add(torch.randn(positions, 4, generator=g), torch.randn(positions, 16, generator=g))
        ridges.append(_ridge_of_few(regression))
    assert ridges == pytest.approx([1, 1 / 9, 1 / 900])

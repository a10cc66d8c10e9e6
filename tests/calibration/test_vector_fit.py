"""Norms in a turned stream: for each index the least-squares fit of the turned teacher's value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from turning_models import calibrated

from wid_hf.calibration import vector_fit
from wid_hf.calibration.lockstep import Operands
from wid_hf.calibration.vector_fit import VectorFit
from wid_hf.coupling.landmark_record import Scaling


@dataclass
class Fit:
    """One call: what the student had before the vector, what it should have, and what it has."""

    scaling: Scaling
    z: Tensor
    wanted: Tensor
    made: Tensor
    factors: Tensor
    offsets: Tensor


def rows(operands: Operands) -> Tensor:
    return torch.cat([each.rows for each in operands if each is not None]).double()


@pytest.fixture
def fits(monkeypatch: pytest.MonkeyPatch, turned_is_best: None) -> list[Fit]:
    """Every fit from now on, hardly drawn to its start."""
    monkeypatch.setattr(vector_fit, "RIDGE", 1e-12)
    found: list[Fit] = []
    fit = VectorFit.fit

    def vectors(self: VectorFit, scaling: Scaling) -> tuple[Tensor, Tensor]:
        factors, offsets = self._now(scaling, self._folded[scaling.vector])
        return factors.clone(), offsets.clone()

    def watched(self: VectorFit, scaling: Scaling, teacher: Operands, student: Operands) -> Any:
        factors, offsets = vectors(self, scaling)
        z = (rows(student) - offsets) / factors
        wanted = rows(teacher) @ self.maps[scaling].to(rows(teacher)).T
        changed = fit(self, scaling, teacher, student)
        assert changed == tuple(name for name in (scaling.vector, scaling.bias) if name)
        found.append(Fit(scaling, z, wanted, rows(student), *vectors(self, scaling)))
        return changed

    monkeypatch.setattr(VectorFit, "fit", watched)
    return found


def plain(z: Tensor, wanted: Tensor, with_bias: bool) -> tuple[Tensor, Tensor]:
    """Factors and offsets by least squares, one index after the other."""
    pairs = []
    for mine, target in zip(z.T, wanted.T, strict=True):
        design = torch.stack([mine, torch.ones_like(mine)], 1) if with_bias else mine[:, None]
        solution = torch.linalg.lstsq(design, target[:, None]).solution[:, 0]
        pairs.append((solution[0], solution[1] if with_bias else torch.zeros_like(solution[0])))
    factors, offsets = zip(*pairs, strict=True)
    return torch.stack(factors), torch.stack(offsets)


@pytest.mark.parametrize("family", ["bert-model", "gemma2"])
def test_every_index_has_the_least_squares_factor_and_offset(family: str, fits: list[Fit]) -> None:
    calibrated(family, torch.float64)
    assert len(fits) == {"bert-model": 5, "gemma2": 4}[family]
    near = {"rtol": 1e-6, "atol": 1e-8} if family == "bert-model" else {"rtol": 1e-4, "atol": 1e-5}  # float32 norms
    for each in fits:
        assert each.scaling.offset == (1.0 if family == "gemma2" else 0.0)
        assert (each.scaling.bias is not None) == (family == "bert-model")
        factors, offsets = plain(each.z, each.wanted, each.scaling.bias is not None)
        assert torch.allclose(each.factors, factors, **near)
        assert torch.allclose(each.offsets, offsets, **near)
        assert torch.allclose(each.made, each.z * factors + offsets, **near)


def test_a_weight_that_is_added_to_one_becomes_the_factor_less_one(fits: list[Fit]) -> None:
    wid, _ = calibrated("gemma2", torch.float64)
    student = dict(wid.merge_and_unload().named_parameters())
    for each in fits:
        assert torch.allclose(student[each.scaling.vector], each.factors - 1, atol=1e-10)


def test_a_norm_that_layers_share_is_fitted_to_all_its_uses_so_far(fits: list[Fit]) -> None:
    wid, _ = calibrated("albert", torch.float64)
    student = dict(wid.merge_and_unload().named_parameters())
    for name in {each.scaling.vector for each in fits}:
        uses = [each for each in fits if each.scaling.vector == name]
        assert len(uses) == 2
        for count in (1, 2):
            z, wanted = (torch.cat([getattr(each, part) for each in uses[:count]]) for part in ("z", "wanted"))
            factors, offsets = plain(z, wanted, True)
            assert torch.allclose(uses[count - 1].factors, factors, rtol=1e-6, atol=1e-8)
            assert torch.allclose(uses[count - 1].offsets, offsets, rtol=1e-6, atol=1e-8)
        assert torch.allclose(student[name], uses[-1].factors, atol=1e-10)


def test_where_the_data_say_nothing_a_factor_is_the_turned_teachers(
    fits: list[Fit], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a very strong pull it is the diagonal of `T diag(w) T^T` times one number that all indices share."""
    monkeypatch.setattr(vector_fit, "RIDGE", 1e9)
    wid, _ = calibrated("bert-model", torch.float64)
    map_ = dict(wid.base_model.turned.named_buffers()).popitem()[1].double()
    weights = dict(wid.base_model.teacher.named_parameters())
    for each in fits:
        turned = (map_ @ torch.diag(weights[each.scaling.vector]) @ map_.T).diagonal()
        z, wanted = each.z - each.z.mean(0), each.wanted - each.wanted.mean(0)
        common = (z * wanted * turned).sum() / (z * turned).square().sum()
        assert torch.allclose(each.factors, common * turned, rtol=1e-5)

"""The pass that gathers moments: of how many texts, and how many positions it tells of."""

from __future__ import annotations

import pytest
import torch
from architectures import ARCHITECTURES
from torch import Tensor

from wid_hf import plan_student
from wid_hf.calibration import moment_pass
from wid_hf.calibration.moment_pass import InputMoments, gather_moments
from wid_hf.calibration.precision import Precision

PLAIN = Precision.of_caller(torch.device("cpu"))


class Everything:
    """Gathers how many positions the moments of each weight input are of."""

    def __init__(self) -> None:
        self.counts: set[int] = set()

    def needs(self, at: int) -> bool:
        return True

    def add(self, moments: InputMoments) -> None:
        self.counts.add(moments.covariance.count)


def batch(seed: int) -> dict[str, Tensor]:
    ids = torch.randint(5, 60, (8, 10), generator=torch.Generator().manual_seed(seed))
    mask = torch.ones_like(ids)
    mask[:, 8:] = 0
    return {"input_ids": ids, "attention_mask": mask}


@pytest.mark.parametrize(("enough", "seen"), [(100, 64 * 10), (2, 2 * 96)])
def test_of_many_texts_the_first_are_looked_at_and_all_are_counted(
    enough: int, seen: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(moment_pass, "ENOUGH", enough)
    row = ARCHITECTURES["bert"]
    teacher = row.build()  # its widest weight input has 96 indices
    planned = plan_student(teacher, row.config("dim"))
    gathered = Everything()
    data = [batch(seed) for seed in range(10)]
    assert gather_moments(teacher, planned.trace, planned.plan, data, PLAIN, [gathered]) == 640
    assert gathered.counts == {seen}

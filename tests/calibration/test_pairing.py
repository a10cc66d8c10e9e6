"""Joint moments of teacher and student, and how many positions are enough for them."""

from __future__ import annotations

import pytest
import torch

from wid_hf import DataError
from wid_hf.calibration.activations import ActivationPool, Activations
from wid_hf.calibration.forward_thread import Operand
from wid_hf.calibration.padding import Padding
from wid_hf.calibration.pairing import paired_moments
from wid_hf.calibration.slots import SlotFile
from wid_hf.coupling.landmark_record import Landmark


def operands(size: int, texts: int, batches: int = 3) -> list[Operand]:
    g = torch.Generator().manual_seed(size)
    tensors = [torch.randn(texts, 5, size, generator=g) for _ in range(batches)]
    pool = ActivationPool(0, SlotFile())
    return [Operand(Landmark("input", 0, 0), tensor, 2, Padding({}), Activations(pool)) for tensor in tensors]


def test_no_batch_counts_once_there_are_enough_positions() -> None:
    teacher, student = operands(6, texts=4), operands(4, texts=4)  # 20 positions in a batch
    whole, some = (paired_moments(teacher, student, size=4, most=most) for most in (15, 10))
    first_two = paired_moments(teacher[:2], student[:2], size=4)
    assert whole is not None and some is not None and first_two is not None
    assert (whole.regression.count, some.regression.count) == (60, 40)
    assert torch.equal(some.regression.cross, first_two.regression.cross)


def test_positions_that_differ_in_number_cannot_be_paired() -> None:
    assert paired_moments(operands(6, texts=4), operands(4, texts=3), size=4) is None


def test_a_batch_that_does_not_count_is_refused_as_well_if_it_is_not_finite() -> None:
    teacher, student = operands(6, texts=4), operands(4, texts=4)
    student[2].tensor[0, 0, 0] = torch.inf
    with pytest.raises(DataError, match="The student's activations"):
        paired_moments(teacher, student, size=4, most=5)

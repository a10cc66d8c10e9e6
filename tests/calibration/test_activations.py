"""Activations of paused forwards above a limit: they lie in a file, and forwards go on with the same numbers."""

from __future__ import annotations

import pytest
import torch
from architectures import ARCHITECTURES
from torch import Tensor, nn

from wid_hf import plan_student
from wid_hf.calibration.activations import ActivationPool, Activations
from wid_hf.calibration.forward_thread import Operand
from wid_hf.calibration.lockstep import Lockstep, Watched
from wid_hf.calibration.precision import Precision
from wid_hf.calibration.slots import SlotFile
from wid_hf.planning.student_plan import StudentPlan

PLAIN = Precision.of_caller(torch.device("cpu"))


@pytest.fixture(scope="module")
def planned() -> tuple[nn.Module, StudentPlan]:
    row = ARCHITECTURES["bert"]
    teacher = row.build()
    return teacher, plan_student(teacher, row.config("dim"))


def batch(seed: int) -> dict[str, Tensor]:
    ids = torch.randint(5, 60, (4, 6), generator=torch.Generator().manual_seed(seed))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def held(operand: Operand) -> int:
    return operand.held.untyped_storage().nbytes()


@torch.no_grad()
def seen(planned: tuple[nn.Module, StudentPlan], in_memory: int) -> tuple[list[Tensor], int]:
    """What every forward holds at every stop, each changed in place; and the most operands of a stop in memory."""
    teacher, plan = planned
    stops = [*plan.plan.landmarks.of("input"), *plan.plan.landmarks.of("sum"), *plan.plan.landmarks.of("scaled")]
    models = [Watched(teacher, plan.trace.weights)] * 2
    found, most = [], 0
    with Lockstep(models, [batch(seed) for seed in range(4)], plan.plan, stops, PLAIN, in_memory) as steps:
        for _, (first, second) in steps:
            for one, other in zip(first, second, strict=True):
                found += [one.rows.clone(), other.rows.clone()]
                one.tensor.mul_(1.01)
            most = max(most, sum(held(each) > 0 for each in first))
    return found, most


def test_forwards_go_on_with_the_same_numbers_wherever_these_were(planned: tuple[nn.Module, StudentPlan]) -> None:
    (plain, all_of_them), (filed, few) = seen(planned, 1 << 30), seen(planned, 0)
    assert all_of_them == 4
    assert few == 1  # the batch that was looked at last
    assert len(plain) == len(filed) and all(map(torch.equal, plain, filed))


def test_what_was_written_after_it_lay_in_the_file_is_not_lost() -> None:
    with SlotFile() as file:
        pool = ActivationPool(0, file)
        one, other = Activations(pool), Activations(pool)
        tensor = torch.arange(6.0)
        one.after((), {}, tensor)
        view = tensor[2:4]
        one.after((tensor,), {}, view)
        one.use()
        for factor in (2.0, 3.0):
            other.use()
            assert tensor.untyped_storage().nbytes() == 0
            one.use()
            view.mul_(factor)
        other.use()
        one.use()
        assert tensor.tolist() == [0, 1, 12, 18, 4, 5]


def test_weights_and_views_of_them_stay_in_memory() -> None:
    with SlotFile() as file:
        pool = ActivationPool(0, file)
        one, other = Activations(pool), Activations(pool)
        weight, made = torch.ones(2, 3), torch.ones(3)
        one.after((weight,), {}, weight.T)
        one.after((), {}, made)
        one.leave_out(made)
        one.use()
        other.use()
        assert weight.untyped_storage().nbytes() == 24 and made.untyped_storage().nbytes() == 12


def test_what_a_module_keeps_from_another_batch_comes_back_before_it_is_used() -> None:
    with SlotFile() as file:
        pool = ActivationPool(0, file)
        one, other = Activations(pool), Activations(pool)
        kept = torch.arange(3.0)
        one.after((), {}, kept)
        one.use()
        other.use()
        assert kept.untyped_storage().nbytes() == 0
        other.before(torch.ops.aten.add.Tensor, (kept, kept), {})
        assert (kept + kept).tolist() == [0, 2, 4]
        one.use()
        other.use()
        assert kept.tolist() == [0, 1, 2]  # it is left out from now on

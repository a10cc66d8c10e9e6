"""Forwards in lockstep: where they stop, what they hold there, and that all of them end."""

from __future__ import annotations

import threading

import pytest
import torch
from architectures import ARCHITECTURES
from torch import Tensor, nn

from wid_hf import DataError, plan_student
from wid_hf.calibration.lockstep import Lockstep, Watched, are_same
from wid_hf.calibration.precision import Precision
from wid_hf.planning.student_plan import StudentPlan

PLAIN = Precision.of_caller(torch.device("cpu"))


@pytest.fixture(scope="module")
def planned() -> tuple[nn.Module, StudentPlan]:
    row = ARCHITECTURES["bert"]
    teacher = row.build()
    return teacher, plan_student(teacher, row.config("dim"))


def batch(seed: int) -> dict[str, Tensor]:
    ids = torch.randint(5, 60, (4, 6), generator=torch.Generator().manual_seed(seed))
    mask = torch.ones_like(ids)
    mask[0, 4:] = 0
    return {"input_ids": ids, "attention_mask": mask}


def lockstep(planned: tuple[nn.Module, StudentPlan], batches: list[dict[str, Tensor]]) -> Lockstep:
    teacher, plan = planned
    stops = plan.plan.landmarks.of("input")
    return Lockstep([Watched(teacher, plan.trace.weights)] * 2, batches, plan.plan, stops, PLAIN)


def no_forward_is_left() -> bool:
    return not [thread for thread in threading.enumerate() if "wid_hf" in thread.name]


def test_every_forward_stops_at_every_weight_input_in_order(planned: tuple[nn.Module, StudentPlan]) -> None:
    _, plan = planned
    seen = []
    with lockstep(planned, [batch(0), batch(1)]) as steps:
        for at, (first, second) in steps:
            seen.append(at.number)
            for one, other in zip(first, second, strict=True):
                assert torch.equal(one.tensor, other.tensor)  # the same model on the same batch
            assert len(first) == 2 and first[0].rows.shape == (22, one.tensor.shape[one.axis])  # without padding
    names = [each.weight for each in plan.plan.weight_inputs]
    assert seen == list(range(len(names)))
    assert names[0].endswith("query.weight") and names[-1] == "bert.embeddings.word_embeddings.weight"
    assert no_forward_is_left()


@torch.no_grad()
def test_what_is_done_to_an_operand_is_what_the_forward_goes_on_with(planned: tuple[nn.Module, StudentPlan]) -> None:
    with lockstep(planned, [batch(0)]) as steps:
        for at, ((first,), (second,)) in steps:
            if at.number == 0:
                first.scale_(torch.zeros(48))
            elif at.number == 3:  # what attention made of it
                assert not are_same([first], [second])
                assert not torch.equal(first.tensor, second.tensor)
                break
    assert no_forward_is_left()


def test_queries_keys_and_values_have_the_same_input(planned: tuple[nn.Module, StudentPlan]) -> None:
    with lockstep(planned, [batch(0)]) as steps:
        inputs = []
        for _, (first, _) in steps:
            inputs.append(first)
            if len(inputs) == 4:
                break
    assert are_same(inputs[0], inputs[1]) and are_same(inputs[1], inputs[2])
    assert not are_same(inputs[2], inputs[3])


def test_an_error_between_two_steps_ends_every_forward(planned: tuple[nn.Module, StudentPlan]) -> None:
    with pytest.raises(RuntimeError, match="not mine"), lockstep(planned, [batch(0)]) as steps:
        for _ in steps:
            raise RuntimeError("not mine")
    assert no_forward_is_left()


def test_an_error_of_one_forward_ends_every_forward(planned: tuple[nn.Module, StudentPlan]) -> None:
    wrong = {"input_ids": torch.full((2, 5), 1000)}
    with pytest.raises(DataError, match="does not take a batch"), lockstep(planned, [batch(0), wrong]) as steps:
        list(steps)
    assert no_forward_is_left()

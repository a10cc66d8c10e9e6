"""The best of several starts is taken: what each is made from, what it is scored on, and who wins."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn
from turning_models import TURNING, data_for

from wid_hf import get_wid_model
from wid_hf.calibration.batches import Batch
from wid_hf.calibration.candidates import OUTLIERS_KEPT, SELECTED, TURNED, Candidate, choose
from wid_hf.calibration.precision import Precision

PLAIN = Precision.of_caller(torch.device("cpu"))


class Linear(nn.Module):
    """Scores of numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.eye(3))

    def forward(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        return x @ self.weight.T


def candidates(*names: str) -> list[Candidate]:
    return [Candidate(name, {}, {}) for name in names]


def batches(count: int) -> list[Batch]:
    return [{"x": torch.randn(4, 3, generator=torch.Generator().manual_seed(seed))} for seed in range(count)]


def chosen(
    errors: dict[str, float], data: Sequence[Batch], positions: int = 1, widest: int = 1000
) -> tuple[str, dict[str, float], Linear, list[int]]:
    """Choose between starts that are off by `errors`; return the best, scores, the student and texts of trials."""
    student, seen = Linear(), []

    def start(candidate: Candidate, some: Sequence[Batch]) -> None:
        seen.append(sum(len(batch["x"]) for batch in some))
        with torch.no_grad():
            student.weight.copy_(torch.eye(3) + errors[candidate.name] * torch.eye(3).roll(1, 0))

    best, trials = choose(
        candidates(*errors), start, Linear(), student, data, PLAIN, positions=positions, widest=widest
    )
    assert [trial.name for trial in trials if trial.chosen] == [best.name]
    return best.name, {trial.name: trial.divergence for trial in trials}, student, seen


@pytest.mark.parametrize("best", ["a", "b", "c"])
def test_the_start_that_is_nearest_to_the_teacher_is_taken(best: str) -> None:
    errors = {"a": 0.5, "b": 0.4, "c": 0.3} | {best: 0.1}
    name, scores, _, _ = chosen(errors, batches(8))
    assert name == best == min(scores, key=lambda each: scores[each])
    assert sorted(scores, key=lambda each: scores[each]) == sorted(errors, key=lambda each: errors[each])


def test_the_first_of_equal_starts_is_taken() -> None:
    assert chosen({"a": 0.2, "b": 0.2}, batches(4))[0] == "a"


def test_a_start_must_be_clearly_better_than_those_before_it() -> None:
    """Divergences that differ by less than five percent are equal: a trial sees a part of the data."""
    name, scores, _, _ = chosen({"a": 0.202, "b": 0.2}, batches(8))
    assert name == "a" and scores["b"] < scores["a"] < 1.05 * scores["b"]
    name, scores, _, _ = chosen({"a": 0.21, "b": 0.2}, batches(8))
    assert name == "b" and scores["a"] > 1.05 * scores["b"]


def test_a_start_that_gives_nan_loses() -> None:
    name, scores, _, _ = chosen({"a": float("nan"), "b": 3.0}, batches(4))
    assert name == "b" and scores["a"] == float("inf")


@pytest.mark.parametrize(("texts", "trial"), [(1, 1), (2, 1), (3, 2), (8, 6), (32, 24)])
def test_a_trial_takes_up_to_three_quarters_of_the_texts_wherever_batches_end(texts: int, trial: int) -> None:
    whole = torch.randn(texts, 3, generator=torch.Generator().manual_seed(0))
    for size in (1, 5, texts):
        data: list[Batch] = [{"x": part} for part in whole.split(size)]
        assert chosen({"a": 0.1, "b": 0.2}, data)[3] == [trial, trial]


def test_a_trial_takes_no_more_texts_than_it_needs_and_no_fewer_than_it_scores() -> None:
    data = batches(300)  # 1200 texts
    assert chosen({"a": 0.1, "b": 0.2}, data, positions=1200, widest=20)[3] == [50, 50]
    assert chosen({"a": 0.1, "b": 0.2}, data, positions=1200, widest=10)[3] == [32, 32]  # as many as are scored
    wanted = chosen({"a": 0.1, "b": 0.2}, data)[1]
    assert chosen({"a": 0.1, "b": 0.2}, [*batches(1) * 292, *data[292:]])[1] == wanted
    assert chosen({"a": 0.1, "b": 0.2}, [*data[:292], *batches(1) * 8])[1] != wanted


def test_a_batch_that_cannot_be_divided_is_used_whole() -> None:
    def with_scalar(batch: Batch) -> Batch:
        return {**batch, "scale": torch.tensor(1.0)}

    data = [with_scalar(batch) for batch in batches(4)]
    assert chosen({"a": 0.1, "b": 0.2}, data[:1])[3] == [4, 4]
    assert chosen({"a": 0.1, "b": 0.2}, data)[3] == [12, 12]


def test_trials_are_scored_on_the_last_batches() -> None:
    data = batches(8)
    wanted = chosen({"a": 0.1, "b": 0.2}, data)[1]
    assert chosen({"a": 0.1, "b": 0.2}, [*batches(1) * 6, *data[6:]])[1] == wanted
    assert chosen({"a": 0.1, "b": 0.2}, [*data[:6], *batches(1) * 2])[1] != wanted


def test_a_single_start_is_not_tried() -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("tried")

    best, trials = choose(candidates("only"), refuse, Linear(), Linear(), batches(4), PLAIN, positions=1, widest=1)
    assert (best.name, trials) == ("only", ())


@pytest.mark.parametrize(
    ("outlier", "words", "names"),
    [
        (1.0, {}, [TURNED, SELECTED]),
        (4.0, {}, [TURNED, OUTLIERS_KEPT, SELECTED]),
        (4.0, {"pca": False}, []),
    ],
)
def test_candidates_are_the_turned_streams_and_the_selection(
    outlier: float, words: dict[str, bool], names: list[str]
) -> None:
    row = TURNING["bert-classifier"]
    teacher = row.build()
    with torch.no_grad():
        for name, parameter in teacher.named_parameters():
            if name.endswith("LayerNorm.weight"):
                parameter.fill_(1.0)
                parameter[5] = outlier
    wid = get_wid_model(teacher, row.config("dim", init="calibrated"))
    data = data_for(row, 4)
    wid.base_model.calibrate(data, **words)
    report = wid.base_model.calibration
    assert [trial.name for trial in report.trials] == names
    best = [trial for trial in report.trials if trial.chosen]
    assert len(best) == bool(names)
    assert all(best[0].divergence <= trial.divergence for trial in report.trials if best)

"""Which learning rate is reported, with what mean and spread."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from wid_hf.errors import OutputError, TrainingError
from wid_hf.hub.model_size import ModelSize
from wid_hf.tools.evaluation.tasks import TASKS
from wid_hf.tools.reports.eval_report import EvalReport, summarize


def run(rate: float | None, seed: int | None, dev: float | None, test: float = 0.0) -> dict[str, Any]:
    scores = None if dev is None else {"dev": {"f1": dev, "accuracy": 1 - dev}, "test": {"f1": test, "accuracy": test}}
    return {"learning_rate": rate, "seed": seed, "scores": scores, "steps": 3, "seconds": 1.5}


def report(*runs: dict[str, Any]) -> EvalReport:
    made = EvalReport("me/model", "BertModel", "abc", ModelSize(10, 5, 40))
    made.tasks["mrpc"] = summarize(TASKS["mrpc"], runs)
    return made


def test_the_learning_rate_with_the_best_mean_on_dev_is_reported_whatever_test_says() -> None:
    found = summarize(
        TASKS["mrpc"],
        [
            run(1e-5, 0, 0.9, 0.1),
            run(1e-5, 1, 0.5, 0.1),
            run(5e-5, 0, 0.8, 0.2),
            run(5e-5, 1, 0.7, 0.4),
            run(1e-4, 0, 0.1, 0.9),
            run(1e-4, 1, 0.1, 0.9),
        ],
    )
    assert found.best_learning_rate == 5e-5
    assert found.mean["dev"] == {"f1": pytest.approx(0.75), "accuracy": pytest.approx(0.25)}
    assert found.mean["test"]["f1"] == pytest.approx(0.3)
    assert found.spread is not None
    assert found.spread["dev"]["f1"] == pytest.approx(0.05 * 2**0.5)
    assert (found.seeds, len(found.runs)) == (2, 6)


def test_a_learning_rate_that_diverged_with_one_seed_is_not_reported() -> None:
    found = summarize(TASKS["mrpc"], [run(1e-5, 0, 0.4), run(1e-3, 0, 0.9), run(1e-5, 1, 0.4), run(1e-3, 1, None)])
    assert found.best_learning_rate == 1e-5
    with pytest.raises(TrainingError, match=r"MRPC: training diverged at every learning rate \(0.001\)"):
        summarize(TASKS["mrpc"], [run(1e-3, 0, None)])


def test_one_run_has_no_spread() -> None:
    assert summarize(TASKS["mrpc"], [run(1e-5, 0, 0.4)]).spread is None


def test_the_smallest_perplexity_is_the_best() -> None:
    runs = [
        {"learning_rate": rate, "seed": 0, "scores": {"texts": {"perplexity": value, "loss": value}}}
        for rate, value in ((1e-5, 30.0), (1e-4, 20.0))
    ]
    assert summarize(TASKS["perplexity"], runs).best_learning_rate == 1e-4


def test_a_report_is_read_as_it_was_written(tmp_path: Path) -> None:
    written = report(run(1e-5, 0, 0.4), run(1e-5, 1, 0.6))
    written.save(tmp_path)
    assert EvalReport.load(tmp_path) == written


def test_the_table_gives_percentages_with_their_spread() -> None:
    console = Console(width=140, record=True)
    console.print(report(run(1e-5, 0, 0.7), run(1e-5, 1, 0.9)).table())
    row = next(line for line in console.export_text().splitlines() if "MRPC" in line and "dev" in line)
    assert [cell.strip() for cell in row.strip("│").split("│")] == ["MRPC", "dev", "f1", "80.00", "14.14", "2", "1e-05"]


@pytest.mark.parametrize("content", ["", "[]", '{"model": "x"}', '{"tasks": {"mrpc": 1}}'])
def test_a_file_that_is_no_report_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "eval_report.json").write_text(content)
    with pytest.raises(OutputError, match=r"eval_report\.json is not a report of `wid-hf eval`"):
        EvalReport.load(tmp_path)

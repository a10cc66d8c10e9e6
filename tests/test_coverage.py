"""A sample of what `python benchmarks/architectures` runs: the whole path of twelve families."""

from __future__ import annotations

import pytest
from check import Verdict, verdict
from tiny import families

SAMPLE = [
    ("masked LM", "bert"),
    ("masked LM", "deberta-v2"),
    ("masked LM", "modernbert"),
    ("causal LM", "gemma2"),
    ("causal LM", "gpt_neox"),
    ("causal LM", "llama"),
    ("causal LM", "mamba"),
    ("causal LM", "mixtral"),
    ("seq2seq LM", "bart"),
    ("seq2seq LM", "t5"),
    ("image classification", "vit"),
    ("question answering", "roberta"),
]


def found_for(task: str, family: str) -> Verdict:
    return verdict(family, task, families(task)[family])


@pytest.mark.parametrize(("task", "family"), SAMPLE, ids=[f"{task}-{family}" for task, family in SAMPLE])
def test_a_tiny_model_goes_the_whole_way_from_plan_to_reload(task: str, family: str) -> None:
    found = found_for(task, family)
    assert found.status == "works", found
    assert {"hidden_size", "d_model"} & set(found.widths), found


def test_a_family_with_an_operation_that_has_no_rule_is_refused_by_name() -> None:
    found = found_for("masked LM", "fnet")
    assert found.status == "partly"
    assert found.widths == ("intermediate_size",)
    assert "aten._fft" in found.reason
    assert "fnet.encoder.layer.0.fourier.self" in found.reason


def test_a_merge_that_changed_an_output_would_be_called_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("check._equal", lambda *_, **__: False)
    assert found_for("masked LM", "bert").status == "wrong"

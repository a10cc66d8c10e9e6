"""The first of several processes makes the start; the others load it, hear of its errors, and prove that they agree."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from toys import CONFIGS
from transformers import BertConfig, BertForMaskedLM

from wid_hf import WidConfig, get_wid_model
from wid_hf.errors import TrainingError
from wid_hf.training import one_start


@pytest.fixture
def messages(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the first process sends; the second one, which is played in the same process, gets it in order."""
    sent: list[Any] = []
    received = iter(sent)

    def objects(given: list[Any]) -> list[Any]:
        if role["index"]:
            return next(received)
        sent.append(given)
        return given

    def tensors(given: torch.Tensor) -> torch.Tensor:
        if role["index"]:
            return next(received)
        sent.append(given.clone())
        return given

    monkeypatch.setattr(one_start, "broadcast_object_list", objects)
    monkeypatch.setattr(one_start, "broadcast", tensors)
    return sent


role = {"index": 0}


def process(index: int, count: int = 2) -> Any:
    role["index"] = index
    return SimpleNamespace(world_size=count, process_index=index, device=torch.device("cpu"))


def wid_model() -> Any:
    sizes = {"vocab_size": 60, "hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 4}
    torch.manual_seed(0)
    teacher = BertForMaskedLM(BertConfig(**sizes, intermediate_size=48, max_position_embeddings=32))
    return get_wid_model(teacher.eval(), WidConfig(**CONFIGS["calibrated"]))


def batches() -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [{"input_ids": torch.randint(5, 60, (8, 8), generator=generator)} for _ in range(4)]


def never() -> None:
    raise AssertionError("only the first process makes the start")


def test_the_second_process_has_the_start_of_the_first_without_making_one(messages: list[Any]) -> None:
    first, second = wid_model(), wid_model()
    one_start.start_once(first, process(0), lambda: first.base_model.calibrate(batches(), quick=True))
    one_start.start_once(second, process(1), never)
    assert second.base_model.calibrated
    mine, theirs = first.state_dict(), second.state_dict()
    assert mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)
    assert any("turned" in name for name in mine)


def test_an_error_of_the_first_process_is_told_in_all(messages: list[Any]) -> None:
    model = wid_model()
    with pytest.raises(AssertionError, match="only the first"):
        one_start.start_once(model, process(0), never)
    with pytest.raises(TrainingError, match="AssertionError: only the first process"):
        one_start.start_once(model, process(1), never)


def test_models_that_differ_are_refused_with_the_number_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    model = wid_model()
    seen: list[str] = []

    def first(mine: list[str]) -> list[str]:
        seen.extend(mine)
        return [*mine, *mine]

    monkeypatch.setattr(one_start, "gather_object", first)
    one_start.refuse_unequal_starts(model, process(0))
    monkeypatch.setattr(one_start, "gather_object", lambda mine: [*seen, *mine])
    with torch.no_grad():
        next(model.parameters()).add_(1)
    with pytest.raises(TrainingError, match="process 1 has other weights"):
        one_start.refuse_unequal_starts(model, process(1))


def test_one_process_sends_nothing() -> None:
    model, made = wid_model(), []
    one_start.start_once(model, process(0, count=1), lambda: made.append(True))
    one_start.refuse_unequal_starts(model, process(0, count=1))
    assert made

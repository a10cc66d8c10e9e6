"""Kept folds: the same outputs and gradients as folding at each use, one fold, nothing left behind."""

from __future__ import annotations

from collections import Counter
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.utils.checkpoint
from architectures import ARCHITECTURES, every_case
from folded_bert import IDS, encoder, gradients, maps
from torch import Tensor, nn
from training_runs import HALF, arguments, masked_rows
from transformers import BertConfig, BertForMaskedLM

from wid_hf import TrainingError, WidConfig, WidTrainer, get_wid_model
from wid_hf.layers import FoldCache, FoldedWeight, FoldPolicy, folded_weights
from wid_hf.layers.fold_groups import FoldGroup


@pytest.fixture
def folds(monkeypatch: pytest.MonkeyPatch) -> Counter[FoldedWeight]:
    """How often each weight was folded."""
    counts: Counter[FoldedWeight] = Counter()
    original = FoldedWeight.fold

    def counted(self: FoldedWeight, tensor: Tensor) -> Tensor:
        counts[self] += 1
        return original(self, tensor)

    together = FoldGroup.fold

    def counted_together(self: FoldGroup) -> dict[FoldedWeight, Tensor] | None:
        counts.update(self.weights)
        return together(self)

    monkeypatch.setattr(FoldedWeight, "fold", counted)
    monkeypatch.setattr(FoldGroup, "fold", counted_together)
    return counts


@every_case
def test_folds_kept_for_a_step_give_the_gradients_of_folding_each_time(family: str, strategy: str) -> None:
    row = ARCHITECTURES[family]
    config = WidConfig(**row.halved, head_strategy=strategy, init="identity")
    wid = get_wid_model(row.build(), config, example_inputs=row.inputs).eval()

    def micro_batch(shift: float) -> None:
        out = wid(**row.inputs)[0]
        (out * torch.linspace(-1, shift, out.shape[-1])).sum().backward()

    for shift in (1.0, 2.0, 3.0):
        micro_batch(shift)
    wanted = gradients(wid)
    cache = FoldCache(wid.base_model.model)
    cache.keep(FoldPolicy.for_step())
    micro_batch(1.0)
    micro_batch(2.0)
    cache.open()
    micro_batch(3.0)
    cache.release()
    found = gradients(wid)
    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        assert (found[name] - gradient).norm() <= 1e-5 * gradient.norm() + 1e-8, name
    assert all(made.slot is None for made in wid.modules() if isinstance(made, FoldedWeight))


def test_gradients_of_a_weight_that_the_last_micro_batch_does_not_use_are_not_lost() -> None:
    wid = get_wid_model(encoder(), HALF)
    ids = torch.tensor([[7, 3, 1, 7]])

    def first() -> None:
        wid(input_ids=ids).pooler_output.square().sum().backward()

    def last() -> None:
        wid(input_ids=ids).last_hidden_state.square().sum().backward()

    first()
    last()
    wanted = gradients(wid)
    cache = FoldCache(wid.base_model.model)
    cache.keep(FoldPolicy.for_step())
    first()
    cache.open()
    last()
    cache.release()
    found = gradients(wid)
    assert found.keys() == wanted.keys()
    assert any("pooler" in name for name in found)
    for name, gradient in wanted.items():
        assert torch.allclose(found[name], gradient, rtol=1e-4, atol=1e-5 * float(gradient.abs().max())), name


@pytest.mark.parametrize("accumulation", [1, 4])
def test_a_training_step_folds_once_however_it_is_accumulated(
    tiny_bert: BertForMaskedLM, tmp_path: Path, folds: Counter[FoldedWeight], accumulation: int
) -> None:
    args = arguments(
        tmp_path, per_device_train_batch_size=16 // accumulation, gradient_accumulation_steps=accumulation, max_steps=3
    )
    trainer = WidTrainer(model=get_wid_model(tiny_bert, HALF), args=args, train_dataset=masked_rows())
    trainer.train()
    everything = {made for made in trainer.model.modules() if isinstance(made, FoldedWeight)}
    assert folds == Counter(dict.fromkeys(everything, 3))


# What dynamo does itself; and a choice of the backend, none of ours.
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_a_compiled_step_of_several_micro_batches_folds_once_and_is_compiled_for_the_first_and_the_last_alone(
    tmp_path: Path, folds: Counter[FoldedWeight]
) -> None:
    sizes = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 48}
    teacher = BertForMaskedLM(BertConfig(**sizes, vocab_size=600, tie_word_embeddings=False))  # a table to look up
    args = arguments(
        tmp_path,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=4,
        max_steps=3,
        torch_compile=True,
        torch_compile_backend="aot_eager",
    )
    torch._dynamo.reset()
    dynamo = torch._dynamo.utils.counters
    dynamo.clear()
    trainer = WidTrainer(model=get_wid_model(teacher, HALF), args=args, train_dataset=masked_rows())
    trainer.train()
    everything = {made for made in trainer.model.modules() if isinstance(made, FoldedWeight)}
    assert folds == Counter(dict.fromkeys(everything, 3))
    assert dynamo["stats"]["unique_graphs"] <= 2
    assert not dynamo["graph_break"]


def test_an_evaluation_folds_once(tiny_bert: BertForMaskedLM, tmp_path: Path, folds: Counter[FoldedWeight]) -> None:
    args = arguments(tmp_path, per_device_eval_batch_size=4)
    trainer = WidTrainer(model=get_wid_model(tiny_bert, HALF), args=args, eval_dataset=masked_rows())
    loss = trainer.evaluate()["eval_loss"]
    assert set(folds.values()) == {1}
    with torch.no_grad():
        trainer.model.base_model.model.bert.embeddings.word_embeddings.parametrizations.weight[0].maps[
            "1"
        ].matrix.zero_()
    assert trainer.evaluate()["eval_loss"] != loss  # nothing old is remembered


def test_a_step_that_fails_lets_go_of_its_folds(tiny_bert: BertForMaskedLM, tmp_path: Path) -> None:
    class Breaks(WidTrainer):
        def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
            if self.state.global_step == 1:
                raise RuntimeError("no more")
            return super().compute_loss(*args, **kwargs)

    args = arguments(tmp_path, gradient_accumulation_steps=2)
    trainer = Breaks(model=get_wid_model(tiny_bert, HALF), args=args, train_dataset=masked_rows())
    with pytest.raises(RuntimeError, match="no more"):
        trainer.train()
    assert all(made.slot is None for made in trainer.model.modules() if isinstance(made, FoldedWeight))


def test_an_infinite_loss_lets_go_of_the_folds(tiny_bert: BertForMaskedLM, tmp_path: Path) -> None:
    args = arguments(tmp_path, gradient_accumulation_steps=2, learning_rate=1e12)
    trainer = WidTrainer(model=get_wid_model(tiny_bert, HALF), args=args, train_dataset=masked_rows())
    with pytest.raises(TrainingError, match="finite"):
        trainer.train()
    assert all(made.slot is None for made in trainer.model.modules() if isinstance(made, FoldedWeight))


def test_folding_once_for_several_forwards_changes_no_output(tiny_bert: BertForMaskedLM) -> None:
    wid = get_wid_model(tiny_bert, HALF).eval()
    ids = torch.arange(21).view(3, 7) + 5
    with torch.no_grad():
        wanted = wid(input_ids=ids).logits
        with FoldCache(wid.base_model.model).keeping(FoldPolicy.for_evaluation()):
            assert torch.equal(wid(input_ids=ids).logits, wanted)
            assert torch.equal(wid(input_ids=ids).logits, wanted)


def test_tied_weights_stay_one_original_and_fold_once_per_forward(wid: nn.Module, folds: Counter[FoldedWeight]) -> None:
    word, decoder = wid.model.bert.embeddings.word_embeddings, wid.model.cls.predictions.decoder
    assert word.parametrizations.weight.original is decoder.parametrizations.weight.original
    assert word.parametrizations.weight[0] is decoder.parametrizations.weight[0]
    (column,) = maps(wid.model, "bert.embeddings.word_embeddings").values()
    for _ in range(2):
        folds.clear()
        wid.model(input_ids=IDS)
        tables = [count for weight, count in folds.items() if column in weight.maps.values()]
        assert tables == [1, 1, 1]  # each table once, the decoder's use included
    with torch.no_grad():
        column.matrix.zero_()
    assert word.weight.abs().max() == 0  # outside a forward nothing old is remembered


def test_a_forward_that_fails_forgets_its_folds(wid: nn.Module) -> None:
    with pytest.raises(IndexError, match="index out of range"):
        wid.model(input_ids=torch.full((1, 3), 10_000))
    assert all(m.slot is None for m in wid.model.modules() if isinstance(m, FoldedWeight))


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_checkpointed_part_folds_a_shared_weight_for_itself(
    wid: nn.Module, folds: Counter[FoldedWeight], reentrant: bool
) -> None:
    table = wid.model.bert.embeddings.word_embeddings.parametrizations.weight[0]

    def backward(checkpointed: bool) -> tuple[dict[str, Tensor], int]:
        def twice(states: Tensor) -> Tensor:
            return states @ wid.model.cls.predictions.decoder.weight.T

        def patched(states: Tensor) -> Tensor:
            return torch.utils.checkpoint.checkpoint(twice, states, use_reentrant=reentrant)

        wid.model.cls.predictions.decoder.forward = patched if checkpointed else twice
        folds.clear()
        wid.model(input_ids=IDS).logits.square().sum().backward()
        return gradients(wid.model), folds[table]

    (wanted, once), (found, again) = backward(False), backward(True)
    assert once == 1
    # A reentrant checkpoint runs without gradients first, which is a fold of its own; both fold in the backward pass.
    assert again == 3
    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        assert torch.allclose(found[name], gradient, rtol=1e-4, atol=1e-5 * float(gradient.abs().max())), name


def test_a_fold_for_calibration_is_formed_at_its_first_use_and_again_when_it_is_forgotten(
    wid: nn.Module, folds: Counter[FoldedWeight]
) -> None:
    name = "bert.encoder.layer.0.output.dense.weight"
    weight = folded_weights(wid.model)[name]
    with torch.no_grad(), FoldCache(wid.model).keeping(FoldPolicy.for_calibration()) as cache:
        assert not folds
        for _ in range(2):
            wid.model.forward(input_ids=IDS)
        assert set(folds.values()) == {1}
        before = wid.model.get_submodule(name.removesuffix(".weight")).weight
        weight.maps["1"].matrix.mul_(2)
        cache.forget(weight)
        assert torch.allclose(wid.model.get_submodule(name.removesuffix(".weight")).weight, 2 * before)
        wid.model.forward(input_ids=IDS)
    assert {made: count for made, count in folds.items() if count != 1} == {weight: 2}
    assert all(made.slot is None for made in wid.modules() if isinstance(made, FoldedWeight))


def test_folds_for_an_evaluation_have_its_dtype_and_no_gradients(wid: nn.Module) -> None:
    with FoldCache(wid.model).keeping(FoldPolicy.for_evaluation(torch.bfloat16)):
        weights = [weight.slot.of(weight, torch.empty(0)) for weight in folded_weights(wid.model).values()]
        assert {weight.dtype for weight in weights} == {torch.bfloat16}
        sum(weight.float().sum() for weight in weights).backward()
    compactors = [p for name, p in wid.model.named_parameters() if name.endswith(".matrix")]
    assert compactors and all(p.grad is None for p in compactors)


def test_a_copy_of_a_student_keeps_no_fold(wid: nn.Module) -> None:
    cache = FoldCache(wid.model)
    cache.keep(FoldPolicy.for_step())
    cache.open()
    copied = deepcopy(wid.model)
    assert all(weight.slot is not None for weight in folded_weights(wid.model).values())
    assert all(weight.slot is None for weight in folded_weights(copied).values())
    cache.drop()
    with torch.no_grad():
        assert torch.equal(copied(input_ids=IDS).logits, wid.model(input_ids=IDS).logits)
        for matrix in (p for name, p in copied.named_parameters() if name.endswith(".matrix")):
            matrix.zero_()
        assert not torch.equal(copied(input_ids=IDS).logits, wid.model(input_ids=IDS).logits)

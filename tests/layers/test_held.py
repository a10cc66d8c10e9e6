"""Folds held over an optimizer step: the same gradients, one fold, nothing left behind."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import ARCHITECTURES, every_case
from torch import Tensor, nn
from training_runs import HALF, arguments, masked_rows
from transformers import BertConfig, BertForMaskedLM, BertModel

from wid_hf import TrainingError, WidConfig, WidTrainer, get_wid_model
from wid_hf.layers import FoldedWeight
from wid_hf.layers.held import HeldFolds, folded_once
from wid_hf.layers.rows import lookups


@pytest.fixture
def folds(monkeypatch: pytest.MonkeyPatch) -> Counter[FoldedWeight]:
    """How often each weight was folded."""
    counts: Counter[FoldedWeight] = Counter()
    original = FoldedWeight.fold

    def counted(self: FoldedWeight, tensor: Tensor) -> Tensor:
        counts[self] += 1
        return original(self, tensor)

    monkeypatch.setattr(FoldedWeight, "fold", counted)
    return counts


def gradients(model: nn.Module) -> dict[str, Tensor]:
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


@every_case
def test_held_folds_give_the_gradients_of_folding_each_time(family: str, strategy: str) -> None:
    row = ARCHITECTURES[family]
    config = WidConfig(**row.halved, head_strategy=strategy, init="identity")
    wid = get_wid_model(row.build(), config, example_inputs=row.inputs).eval()

    def micro_batch(shift: float) -> None:
        out = wid(**row.inputs)[0]
        (out * torch.linspace(-1, shift, out.shape[-1])).sum().backward()

    for shift in (1.0, 2.0, 3.0):
        micro_batch(shift)
    wanted = gradients(wid)
    held = HeldFolds(wid.base_model.model)
    held.hold()
    micro_batch(1.0)
    micro_batch(2.0)
    held.open()
    micro_batch(3.0)
    held.release()
    found = gradients(wid)
    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        assert (found[name] - gradient).norm() <= 1e-5 * gradient.norm() + 1e-8, name
    assert all(made.held is None for made in wid.modules() if isinstance(made, FoldedWeight))


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
    held = HeldFolds(wid.base_model.model)
    held.hold()
    first()
    held.open()
    last()
    held.release()
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
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_a_compiled_step_of_several_micro_batches_folds_once_and_is_compiled_for_the_first_and_the_last_alone(
    tmp_path: Path, folds: Counter[FoldedWeight]
) -> None:
    sizes = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 48}
    teacher = BertForMaskedLM(BertConfig(**sizes, vocab_size=600, tie_word_embeddings=False))  # a table to look up
    args = arguments(
        tmp_path, per_device_train_batch_size=2, gradient_accumulation_steps=4, max_steps=3, torch_compile=True,
        torch_compile_backend="aot_eager",
    )  # fmt: skip
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
    assert all(made.held is None for made in trainer.model.modules() if isinstance(made, FoldedWeight))


def test_an_infinite_loss_lets_go_of_the_folds(tiny_bert: BertForMaskedLM, tmp_path: Path) -> None:
    args = arguments(tmp_path, gradient_accumulation_steps=2, learning_rate=1e12)
    trainer = WidTrainer(model=get_wid_model(tiny_bert, HALF), args=args, train_dataset=masked_rows())
    with pytest.raises(TrainingError, match="finite"):
        trainer.train()
    assert all(made.held is None for made in trainer.model.modules() if isinstance(made, FoldedWeight))


def test_folding_once_for_several_forwards_changes_no_output(tiny_bert: BertForMaskedLM) -> None:
    wid = get_wid_model(tiny_bert, HALF).eval()
    ids = torch.arange(21).view(3, 7) + 5
    with torch.no_grad():
        wanted = wid(input_ids=ids).logits
        with folded_once(wid.base_model.model):
            assert torch.equal(wid(input_ids=ids).logits, wanted)
            assert torch.equal(wid(input_ids=ids).logits, wanted)


def encoder(padding: int | None = 0) -> BertModel:
    torch.manual_seed(0)
    sizes = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 48}
    return BertModel(BertConfig(**sizes, vocab_size=200, max_position_embeddings=16, pad_token_id=padding)).eval()


@pytest.mark.parametrize("padding", [0, 3, None])
@pytest.mark.parametrize("frozen", [True, False])
def test_folding_only_the_rows_of_a_batch_gives_the_same_gradients(padding: int | None, frozen: bool) -> None:
    wid = get_wid_model(encoder(padding), HALF)
    for name, weight in wid.named_parameters():
        weight.requires_grad_(name.endswith("matrix") or not frozen)
    ids = torch.tensor([[7, 3, 0, 7, 199], [3, 3, 12, 0, 5]])

    def backward() -> dict[str, Tensor]:
        wid(input_ids=ids).last_hidden_state.pow(3).sum().backward()
        return gradients(wid)

    wanted = backward()
    shapes: list[torch.Size] = []
    table = wid.base_model.model.embeddings.word_embeddings.parametrizations.weight[0]
    original = table.fold
    table.fold = lambda tensor: shapes.append(tensor.shape) or original(tensor)
    held = HeldFolds(wid.base_model.model)
    held.hold(tokens=ids.numel())
    held.open()
    wid(input_ids=ids).last_hidden_state.pow(3).sum().backward()
    held.release()
    found = gradients(wid)
    assert [len(shape) for shape in shapes] == [2]
    assert shapes[0][0] == ids.numel() + (0 if padding is None else padding + 1)
    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        assert torch.allclose(found[name], gradient, rtol=1e-4, atol=1e-4 * float(gradient.abs().max())), name


def test_whole_tables_are_folded_for_a_batch_of_more_tokens_than_rows_and_for_outputs() -> None:
    wid = get_wid_model(encoder(), HALF)
    ids = torch.arange(15).view(1, 15).expand(20, 15)
    table = wid.base_model.model.embeddings.word_embeddings.parametrizations.weight[0]
    held = HeldFolds(wid.base_model.model)
    held.hold(tokens=ids.numel())
    assert table.held is not None
    held.drop()
    held.hold(tokens=15)
    with torch.no_grad():
        wanted = wid.merge_and_unload()(input_ids=ids[:1]).last_hidden_state
        assert torch.equal(wid(input_ids=ids[:1]).last_hidden_state, wanted)
    held.drop()


def test_a_table_that_a_decoder_shares_is_folded_as_a_whole(tiny_bert: BertForMaskedLM) -> None:
    wid = get_wid_model(tiny_bert, HALF)
    tables = [module.num_embeddings for module in lookups(wid.base_model.model).values()]
    assert tiny_bert.config.vocab_size not in tables
    assert tiny_bert.config.max_position_embeddings in tables

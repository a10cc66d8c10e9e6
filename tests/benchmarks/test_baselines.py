"""The losses of stock students by calculations of their own, in training, and what is refused."""

from __future__ import annotations

from collections import defaultdict
from math import sqrt
from pathlib import Path
from typing import Any

import pytest
import torch
from distilled_models import mamba2
from distilling_trainer import DistillingTrainer, stock_student
from peft import PeftModel
from teacher_losses import LOSSES, LayersLoss, relation_heads
from torch import Tensor
from toys import labelled_batch, labelled_rows
from training_runs import arguments
from transformers import (
    AlbertConfig,
    AlbertForMaskedLM,
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
    TrainingArguments,
)

from wid_hf import ConfigError, TeacherError, TrainingError, WidConfig, get_wid_model
from wid_hf.training.losses import registry
from wid_hf.training.losses.watching import watch

SIZES: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 32, "init": "identity"}
HALF = WidConfig(**SIZES)
HEADS = WidConfig(**SIZES, head_strategy="head")
STILL = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}


def moved(model: PreTrainedModel, seed: int = 0) -> PreTrainedModel:
    """Weights large enough for outputs to differ from token to token."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def bert() -> BertForMaskedLM:
    return moved(BertForMaskedLM(BertConfig(vocab_size=60, max_position_embeddings=32, **SHAPE, **STILL)))


def albert() -> AlbertForMaskedLM:
    config = AlbertConfig(vocab_size=60, embedding_size=32, max_position_embeddings=32, **SHAPE, **STILL)
    return moved(AlbertForMaskedLM(config))


def gpt2() -> GPT2LMHeadModel:
    config = GPT2Config(
        vocab_size=60,
        n_embd=32,
        n_layer=2,
        n_head=4,
        n_positions=32,
        bos_token_id=None,
        eos_token_id=None,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    )
    return moved(GPT2LMHeadModel(config))


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Classes draw their weights from the global generator."""
    torch.manual_seed(0)


def pair(config: WidConfig, teacher: PreTrainedModel) -> tuple[PeftModel, PreTrainedModel]:
    model = get_wid_model(teacher, config)
    return model, moved(stock_student(model, random=True, seed=0), seed=5)


def loss_of(name: str, model: PeftModel, student: PreTrainedModel, inputs: dict[str, Tensor]) -> tuple[Tensor, Any]:
    teacher, term = model.base_model.teacher, LOSSES[name](model, student)
    shown = []
    for each in (student, teacher):
        with watch(each, [], term.watched) as seen:
            seen.output = each(**inputs, **term.forward_arguments)
        shown.append(seen)
    return term(*shown, inputs).detach(), term


@torch.no_grad()
def projections(model: BertForMaskedLM, inputs: dict[str, Tensor]) -> dict[str, list[Tensor]]:
    """What queries, keys and values of every layer return, by the names that they have in a BERT."""
    found: dict[str, list[Tensor]] = defaultdict(list)
    states = model(**inputs, output_hidden_states=True).hidden_states
    for layer, state in zip(model.bert.encoder.layer, states[:-1], strict=True):
        for name in ("query", "key", "value"):
            found[name].append(getattr(layer.attention.self, name)(state))
    return {**found, "states": list(states)}


def by_rows(losses: list[Tensor], inputs: dict[str, Tensor]) -> float:
    """The mean of rows, each of which counts as often as it has labels."""
    labels = (inputs["labels"] != -100).sum(1)
    return float((torch.stack(losses) * labels).sum() / labels.sum())


@pytest.mark.parametrize("config", [HALF, HEADS], ids=["dim", "head"])
def test_relations_are_those_of_queries_keys_and_values_of_the_last_layer(config: WidConfig) -> None:
    model, student = pair(config, bert())
    inputs = labelled_batch()
    mine, theirs = (projections(each, inputs) for each in (student, model.base_model.teacher))
    rows = []
    for row, length in enumerate(inputs["attention_mask"].sum(1).tolist()):
        total = []
        for name in ("query", "key", "value"):
            s, t = (found[name][-1][row, :length] for found in (mine, theirs))
            for at in range(2):  # two relation heads: 8 of 16 numbers, 16 of 32
                a, b = s[:, 8 * at : 8 * at + 8], t[:, 16 * at : 16 * at + 16]
                p, q = torch.softmax(b @ b.T / sqrt(16), -1), torch.softmax(a @ a.T / sqrt(8), -1)
                total.append((p * (p / q).log()).sum(-1).mean())
        rows.append(torch.stack(total).mean())
    loss, _ = loss_of("relations", model, student, inputs)
    assert loss.item() == pytest.approx(by_rows(rows, inputs), rel=1e-4)


@pytest.mark.parametrize(("config", "heads"), [(HALF, 4), (HEADS, 2)], ids=["dim", "head"])
def test_layers_are_hidden_states_through_maps_and_attention_scores(config: WidConfig, heads: int) -> None:
    model, student = pair(config, bert())
    inputs = labelled_batch()
    loss, term = loss_of("layers", model, student, inputs)
    assert isinstance(term, LayersLoss)
    mine, theirs = (projections(each, inputs) for each in (student, model.base_model.teacher))

    def scores(found: dict[str, list[Tensor]], layer: int, row: int, length: int, count: int) -> Tensor:
        q, k = (found[name][layer][row, :length].view(length, count, -1).transpose(0, 1) for name in ("query", "key"))
        return q @ k.transpose(1, 2) / sqrt(q.shape[-1])

    rows = []
    for row, length in enumerate(inputs["attention_mask"].sum(1).tolist()):
        states = []
        for at, (s, t) in enumerate(zip(mine["states"], theirs["states"], strict=True)):
            matrix = (term.layers if at else term.embeddings).weight
            states.append((s[row, :length] @ matrix.T - t[row, :length]).square().mean())
        attention = []
        for layer in range(2):
            s, t = (scores(found, layer, row, length, n) for found, n in ((mine, heads), (theirs, 4)))
            t = torch.stack([t[at * 4 // heads : (at + 1) * 4 // heads].mean(0) for at in range(heads)])
            attention.append((s - t).square().mean())
        rows.append((torch.stack(states).mean() + torch.stack(attention).mean()).detach())
    assert loss.item() == pytest.approx(by_rows(rows, inputs), rel=1e-4)


def test_logits_are_compared_where_there_are_labels() -> None:
    model, student = pair(HALF, bert())
    inputs = labelled_batch()
    with torch.no_grad():
        wanted, got = (m(**inputs).logits for m in (model.base_model.teacher, student))
    losses = []
    for row, position in (inputs["labels"] != -100).nonzero().tolist():
        p, q = (torch.softmax(logits[row, position].double() / 2, -1) for logits in (wanted, got))
        losses.append(float(4 * (p * (p / q).log()).sum()))
    loss, _ = loss_of("logits", model, student, inputs)
    assert loss.item() == pytest.approx(sum(losses) / len(losses), rel=1e-4)


@pytest.mark.parametrize("name", ["logits", "relations", "layers"])
def test_padding_does_not_count(name: str) -> None:
    model, student = pair(HALF, bert())
    inputs = labelled_batch()
    torch.manual_seed(0)  # of the maps
    before, _ = loss_of(name, model, student, inputs)
    inputs["input_ids"] = torch.where(inputs["attention_mask"].bool(), inputs["input_ids"], 7)
    torch.manual_seed(0)
    assert loss_of(name, model, student, inputs)[0].item() == pytest.approx(before.item(), rel=1e-5)


@pytest.mark.parametrize(("student", "teacher", "heads"), [(128, 256, 16), (96, 384, 12), (16, 32, 2), (12, 24, 1)])
def test_relation_heads_divide_both_widths_and_stay_wide(student: int, teacher: int, heads: int) -> None:
    assert relation_heads(student, teacher) == heads


@pytest.mark.parametrize("name", ["relations", "layers"])
@pytest.mark.parametrize(
    ("make", "config"), [(albert, HALF), (gpt2, WidConfig(hidden_size=16, init="identity"))], ids=["albert", "gpt2"]
)
def test_shared_layers_and_fused_projections_are_found(make: Any, config: WidConfig, name: str) -> None:
    model, student = pair(config, make())
    assert loss_of(name, model, student, labelled_batch())[0] > 0


def trainer_of(folder: Path, loss: str, *, double: bool = False, **given: Any) -> DistillingTrainer:
    torch.manual_seed(0)
    teacher = bert()
    model = get_wid_model(teacher.double() if double else teacher, HALF)
    given = {"max_steps": 2, "per_device_train_batch_size": 16, **given}
    return DistillingTrainer(
        model=stock_student(model, random=True, seed=0),
        args=arguments(folder, TrainingArguments, **given),
        train_dataset=labelled_rows(),
        wid_model=model,
        loss=loss,
    )


def test_an_unknown_loss_is_refused_with_all_that_are_legal(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r'loss=\[.hidden.\] is unknown.*"logits".*"relations".*"layers".*"states"'):
        trainer_of(tmp_path, "hidden")
    assert LOSSES.keys() <= registry.LOSSES.keys()


def test_arguments_go_by_position_as_in_trainer(tmp_path: Path) -> None:
    model, rows = get_wid_model(bert(), HALF), labelled_rows()
    args = TrainingArguments(str(tmp_path), use_cpu=True, report_to="none")

    def collate(batch: list[Any]) -> dict[str, Tensor]:
        return {name: torch.tensor([row[name] for row in batch]) for name in ("input_ids", "labels")}

    student = stock_student(model, random=True, seed=0)
    trainer = DistillingTrainer(student, args, collate, rows, wid_model=model, loss="logits")
    assert trainer.train_dataset is rows and trainer.data_collator is collate


@pytest.mark.slow
def test_every_training_starts_from_a_new_model_and_new_maps(tmp_path: Path) -> None:
    def student() -> PreTrainedModel:
        return stock_student(get_wid_model(bert(), HALF), random=True, seed=0)

    args = arguments(tmp_path, TrainingArguments, max_steps=3)
    wid_model = get_wid_model(bert(), HALF)
    trainer = DistillingTrainer(
        args=args, train_dataset=labelled_rows(), model_init=student, wid_model=wid_model, loss="layers"
    )
    found = []
    for _ in range(2):
        trainer.train()
        found.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
    assert found[0] == found[1] and len(set(found[0])) == 3


@pytest.mark.parametrize("loss", ["logits", "relations", "layers"])
def test_accumulated_micro_batches_have_the_gradients_of_one_batch(loss: str, tmp_path: Path) -> None:
    ended = []
    for accumulation in (1, 4, 8):
        trainer = trainer_of(
            tmp_path,
            loss,
            double=True,
            per_device_train_batch_size=16 // accumulation,
            gradient_accumulation_steps=accumulation,
            optim="sgd",
            max_grad_norm=0.0,
            learning_rate=0.1,
        )
        before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
        trainer.train()
        maps = {f"loss.{name}": p for name, p in trainer.teacher_loss.named_parameters()}
        after = dict(trainer.model.named_parameters()) | maps
        ended.append((after, [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]))
    assert max(float((after[name] - before[name]).detach().abs().max()) for name in before) > 1e-3
    (whole, losses), *others = ended
    for parts, others_losses in others:
        assert others_losses == pytest.approx(losses, rel=1e-5)
        for name, parameter in whole.items():
            assert torch.allclose(parameter, parts[name], atol=1e-6, rtol=0), name


@pytest.mark.parametrize("loss", ["logits", "relations", "layers"])
def test_the_loss_is_the_models_own_and_the_teachers(loss: str, tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, loss)
    inputs = labelled_batch()
    trainer.model.train()
    both = trainer.compute_loss(trainer.model, inputs).item()
    own = trainer.model(**inputs).loss.item()
    shown = []
    for each in (trainer.model, trainer.teacher):
        with watch(each, [], trainer.teacher_loss.watched) as seen:
            seen.output = each(**inputs, **trainer.teacher_loss.forward_arguments)
        shown.append(seen)
    term = trainer.teacher_loss(*shown, inputs).item()
    assert term > 0 and both == pytest.approx(own + term, rel=1e-5)
    trainer.model.eval()
    assert trainer.compute_loss(trainer.model, inputs).item() == pytest.approx(own, rel=1e-5)


def test_maps_learn_with_the_student_and_start_each_step_without_gradients(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, "layers", max_steps=5)
    before = [p.detach().clone() for p in trainer.teacher_loss.parameters()]
    trainer.train()
    assert len(before) == 2
    for old, new in zip(before, trainer.teacher_loss.parameters(), strict=True):
        assert (old - new).abs().max() > 1e-3
        assert new.grad is None
    assert not any("maps" in name or "teacher" in name for name in trainer.model.state_dict())


def test_the_teacher_is_frozen_and_runs_without_dropout(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, "layers")
    before = {name: tensor.clone() for name, tensor in trainer.teacher.state_dict().items()}
    trainer.train()
    assert not trainer.teacher.training
    assert all(not p.requires_grad and p.grad is None for p in trainer.teacher.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in trainer.teacher.state_dict().items())


def test_a_run_whose_loss_learns_is_not_resumed(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="in no checkpoint"):
        trainer_of(tmp_path, "layers").train(resume_from_checkpoint=True)


def test_a_teacher_without_attention_is_refused() -> None:
    model = get_wid_model(mamba2(), WidConfig(hidden_size=12, init="identity"))
    for name in ("relations", "layers"):
        with pytest.raises(TeacherError, match="has no attention whose queries, keys and values"):
            LOSSES[name](model, stock_student(model, random=True, seed=0))

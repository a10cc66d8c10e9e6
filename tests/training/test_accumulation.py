"""A step has the loss and the gradients of one large batch, however it is split and whatever a class reduces."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from toys import noisy, wav2vec2_config
from training_runs import QUIET
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    GPT2Config,
    GPT2LMHeadModel,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
    TrainerCallback,
    Wav2Vec2ForCTC,
)

from wid_hf import WidConfig, WidTrainer, WidTrainingArguments, get_wid_model
from wid_hf.training.accumulation import StepSize, find_reduction

ROWS = 16
SMALL = {"vocab_size": 60, "num_hidden_layers": 1, "num_attention_heads": 4, "hidden_size": 24, "intermediate_size": 48}
STILL = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def bert(model_class: type[PreTrainedModel], **given: Any) -> PreTrainedModel:
    return model_class(BertConfig(max_position_embeddings=32, **SMALL, **STILL, **given))


def gpt2() -> PreTrainedModel:
    none = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "bos_token_id": None, "eos_token_id": None}
    return GPT2LMHeadModel(GPT2Config(vocab_size=60, n_embd=24, n_layer=1, n_head=4, n_positions=32, **none))


def t5() -> PreTrainedModel:
    sizes = {"d_model": 24, "d_kv": 6, "d_ff": 48, "num_layers": 1, "num_heads": 4, "dropout_rate": 0.0}
    return T5ForConditionalGeneration(T5Config(vocab_size=60, decoder_start_token_id=0, **sizes))


def mixtral(coefficient: float) -> PreTrainedModel:
    experts = {"num_local_experts": 4, "num_experts_per_tok": 4, "num_key_value_heads": 2, "head_dim": 6}
    config = MixtralConfig(**SMALL, **experts, max_position_embeddings=32, router_aux_loss_coef=coefficient)
    return MixtralForCausalLM(config)


def ctc(reduction: str) -> PreTrainedModel:
    return Wav2Vec2ForCTC(wav2vec2_config(ctc_loss_reduction=reduction))


def tokens() -> dict[str, Any]:
    """Rows of unequal numbers of labels."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(5, 60, (ROWS, 8), generator=generator)
    labels = torch.where(torch.rand(ROWS, 8, generator=generator) < 0.4, ids, -100)
    labels[:, 1] = ids[:, 1]
    assert len(set((labels != -100).sum(1).tolist())) > 2
    return {"input_ids": ids.tolist(), "labels": labels.tolist()}


def classes() -> dict[str, Any]:
    return {"input_ids": tokens()["input_ids"], "labels": [at % 3 for at in range(ROWS)]}


def many_labels() -> dict[str, Any]:
    return {
        "input_ids": tokens()["input_ids"],
        "labels": [[float(at % k == 0) for k in (2, 3, 5)] for at in range(ROWS)],
    }


def numbers() -> dict[str, Any]:
    return {"input_ids": tokens()["input_ids"], "labels": [-100.0 if at == 3 else 0.1 * at for at in range(ROWS)]}


def spans() -> dict[str, Any]:
    starts = [at % 5 for at in range(ROWS)]
    return {"input_ids": tokens()["input_ids"], "start_positions": starts, "end_positions": [at + 2 for at in starts]}


def sounds() -> dict[str, Any]:
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(1, 20, (ROWS, 6), generator=generator)
    lengths = torch.randint(2, 7, (ROWS, 1), generator=generator)
    labels = torch.where(torch.arange(6) < lengths, labels, -100)
    return {"input_values": torch.randn(ROWS, 800, generator=generator).tolist(), "labels": labels.tolist()}


CASES: dict[str, tuple[Callable[[], PreTrainedModel], Callable[[], dict[str, Any]], dict[str, Any]]] = {
    "masked language model": (lambda: bert(BertForMaskedLM), tokens, {}),
    "label smoothing": (lambda: bert(BertForMaskedLM), tokens, {"label_smoothing_factor": 0.1}),
    "classes": (lambda: bert(BertForSequenceClassification, num_labels=3), classes, {}),
    "many labels": (lambda: bert(BertForSequenceClassification, num_labels=3), many_labels, {}),
    "regression": (lambda: bert(BertForSequenceClassification, num_labels=1), numbers, {}),
    "question answering": (lambda: bert(BertForQuestionAnswering), spans, {}),
    "decoder": (gpt2, tokens, {}),
    "decoder, label smoothing": (gpt2, tokens, {"label_smoothing_factor": 0.1}),
    "sequence to sequence": (t5, tokens, {}),
    "experts": (lambda: mixtral(0.0), tokens, {}),
    "ctc, sum": (lambda: ctc("sum"), sounds, {}),
    "ctc, mean": (lambda: ctc("mean"), sounds, {}),
}


def stepped(make: Callable[[], PreTrainedModel], data: dict[str, Any], folder: Path, pieces: int, **given: Any) -> Any:
    """The loss that was logged and the gradients of one step over all rows."""
    torch.manual_seed(0)
    teacher = make()
    exact = teacher if isinstance(teacher, MixtralForCausalLM) else teacher.double()  # its kernel knows no float64
    model = get_wid_model(exact, WidConfig(hidden_size=12, head_strategy="dim", init="identity"))
    noisy(model)
    model.base_model.model.config.output_router_logits = True  # of a student with experts
    gradients: dict[str, torch.Tensor] = {}

    class Keep(TrainerCallback):
        def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
            gradients.update({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})

    args = WidTrainingArguments(
        str(folder),
        max_steps=1,
        per_device_train_batch_size=ROWS // pieces,
        gradient_accumulation_steps=pieces,
        logging_steps=1,
        max_grad_norm=0.0,
        optim="sgd",
        **QUIET,
        remove_unused_columns=False,
        **given,
    )
    trainer = WidTrainer(model, args, collated, Dataset.from_dict(data), callbacks=[Keep()])
    trainer.train()
    return trainer.state.log_history[0]["loss"], gradients


def collated(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    batch = {name: torch.tensor([row[name] for row in rows]) for name in rows[0]}
    return {name: tensor.double() if tensor.is_floating_point() else tensor for name, tensor in batch.items()}


# Each reduces its loss in another way: over labels, shifted labels, rows, and by a sum.
QUICK = {"masked language model", "decoder", "classes", "ctc, sum"}


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(name, id=name.replace(" ", "-").replace(",", ""), marks=() if name in QUICK else pytest.mark.slow)
        for name in CASES
    ],
)
def test_loss_and_gradients_are_those_of_one_batch(case: str, tmp_path: Path) -> None:
    make, data, given = CASES[case]
    (loss, whole), *others = (stepped(make, data(), tmp_path, pieces, **given) for pieces in (1, 4, 8))
    assert max(float(gradient.abs().max()) for gradient in whole.values()) > 1e-4
    for found, parts in others:
        assert found == pytest.approx(loss, rel=1e-5)
        assert parts.keys() == whole.keys()
        for name, gradient in whole.items():
            assert torch.allclose(gradient, parts[name], rtol=1e-5, atol=1e-6), name


@pytest.mark.slow
def test_a_loss_of_routers_is_weighted_as_the_rows_are(tmp_path: Path) -> None:
    """It compares tokens with each other, so parts do not add up to the whole, but they no longer count n times."""
    (without, _), (loss, _), (parts, _) = (
        stepped(partial(mixtral, c), tokens(), tmp_path, pieces) for c, pieces in ((0.0, 1), (1.0, 1), (1.0, 8))
    )
    assert loss - without > 0.5
    assert parts - without == pytest.approx(loss - without, rel=0.2)


@pytest.mark.parametrize(
    ("case", "reduction"),
    [
        ("masked language model", "labels"),
        ("classes", "labels"),
        ("many labels", "rows"),
        ("regression", "rows"),
        ("question answering", "rows"),
        ("decoder", "items"),
        ("sequence to sequence", "labels"),
        ("experts", "items"),
        ("ctc, sum", "sum"),
        ("ctc, mean", "rows"),
    ],
)
def test_how_a_class_reduces_its_loss_is_found_by_trying(case: str, reduction: str) -> None:
    make, data, _ = CASES[case]
    torch.manual_seed(0)
    model, batch = make(), collated([dict(row) for row in Dataset.from_dict(data())])
    batch = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in batch.items()}
    state = torch.get_rng_state()
    assert find_reduction(model.train(), model, batch, takes_items=True) == reduction
    assert torch.equal(torch.get_rng_state(), state) and model.training
    one = {name: tensor[:1] for name, tensor in batch.items()}
    assert find_reduction(model, model, one, takes_items=True) == reduction


def test_a_loss_that_cannot_be_tried_is_taken_for_a_mean(caplog: pytest.LogCaptureFixture) -> None:
    model = bert(BertForMaskedLM)
    batch = collated([{"input_ids": [5, 99], "labels": [5, 6]}])
    assert find_reduction(model, model, batch, takes_items=True) == "labels"
    assert "a mean over labels" in caplog.text


def test_parts_of_a_step_add_up() -> None:
    model = bert(BertForMaskedLM)
    batches = [{"input_ids": torch.ones(2, 3).long(), "labels": torch.tensor(each)} for each in LABELS]
    sizes = [StepSize.of(model, batch) for batch in batches]
    step = sizes[0] + sizes[1]
    assert [float(size.share(step)) for size in sizes] == [0.75, 0.25]
    assert [float(size.share(step, "rows")) for size in sizes] == [0.5, 0.5]
    assert [float(size.share(step, "sum")) for size in sizes] == [1, 1]


LABELS = [[[5, 6, -100], [7, -100, -100]], [[-100, -100, -100], [-100, -100, 8]]]


@pytest.mark.parametrize("accumulation", [1, 4])
def test_a_part_without_any_label_counts_nothing(tmp_path: Path, accumulation: int) -> None:
    """The mean over no label is NaN; such a part trains nothing, and the others train as if it were not there."""
    sizes = {"vocab_size": 60, "hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 4}
    dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        teacher = BertForTokenClassification(BertConfig(**sizes, **dropout, intermediate_size=48))
    ids = torch.randint(5, 60, (4, 6), generator=torch.Generator().manual_seed(1))
    labels = ids % 2
    labels[1] = -100
    rows = Dataset.from_dict({"input_ids": ids.tolist(), "labels": labels.tolist()})
    model = get_wid_model(teacher, WidConfig(hidden_size=12, init="identity"))
    args = WidTrainingArguments(
        str(tmp_path),
        max_steps=4 // accumulation,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=accumulation,
        optim="sgd",
        learning_rate=0.1,
        max_grad_norm=0.0,
        **QUIET,
    )
    WidTrainer(model=model, args=args, train_dataset=rows).train()
    assert all(bool(parameter.isfinite().all()) for parameter in model.parameters())
    assert not torch.equal(model.base_model.model.classifier.bias, torch.zeros(2))

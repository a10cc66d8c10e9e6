"""A trainer with a task: collator, loss and figures of the objective, in a loop of one's own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from datasets import Dataset
from toys import save_teacher, texts, word_tokenizer
from training_runs import HALF, arguments
from transformers import BertForMaskedLM, BertForSequenceClassification, DataCollatorWithPadding, PreTrainedModel

from wid_hf import ConfigError, ImitatingTrainer, WidTrainer, find_task, get_wid_model


@pytest.fixture
def classifier(tmp_path: Path) -> PreTrainedModel:
    saved = save_teacher(tmp_path / "classifier", BertForSequenceClassification)
    return BertForSequenceClassification.from_pretrained(saved).eval()


def rows() -> Dataset:
    return Dataset.from_dict({"text": texts(16)})


def test_a_classifier_is_trained_and_scored_as_its_objective_says(tmp_path: Path, classifier: PreTrainedModel) -> None:
    task = find_task(classifier, word_tokenizer())
    features = task.features(rows(), 12)
    args = arguments(tmp_path / "out", compactor_learning_rate=1e-2, teacher_learning_rate=0.0)
    model = get_wid_model(classifier, HALF)
    trainer = WidTrainer(model=model, args=args, task=task, train_dataset=features, eval_dataset=features)
    trainer.train()
    metrics = trainer.evaluate()
    batches = task.scored(features, args.per_device_eval_batch_size, args.seed)
    figures = task.score(model, batches, task.wanted(batches))
    assert {name: metrics[f"eval_{name}"] for name in figures} == figures and "agreement" in figures
    named = {
        "imitation": task.loss,
        "reduction": task.reduction,
        "data_collator": DataCollatorWithPadding(word_tokenizer()),
    }
    model = get_wid_model(classifier, HALF)
    by_hand = ImitatingTrainer(model=model, args=args, train_dataset=features, eval_dataset=features, **named)
    by_hand.train()
    losses = [[entry["loss"] for entry in each.state.log_history if "loss" in entry] for each in (trainer, by_hand)]
    assert losses[0] == losses[1] and len(losses[0]) == 4
    assert "eval_agreement" not in by_hand.evaluate()


def test_figures_compare_with_the_teacher_before_it_was_trained(tmp_path: Path) -> None:
    saved = save_teacher(tmp_path / "teacher", BertForMaskedLM)
    teacher = BertForMaskedLM.from_pretrained(saved).eval()
    task = find_task(teacher, word_tokenizer(), "masked-lm")
    asked = []
    task.wanted = lambda batches: asked.append(teacher.cls.predictions.bias.clone())  # type: ignore[method-assign]
    features = task.features(rows(), 12)
    model = get_wid_model(teacher, HALF)
    args = arguments(tmp_path / "out", eval_strategy="steps", eval_steps=2)
    trainer = WidTrainer(model=model, args=args, task=task, train_dataset=features, eval_dataset=features)
    before = teacher.cls.predictions.bias.clone()
    trainer.train()
    trainer.evaluate()
    assert len(asked) == 1 and torch.equal(asked[0], before)
    assert not torch.equal(teacher.cls.predictions.bias, before)
    told = [entry for entry in trainer.state.log_history if "eval_masked_lm_loss" in entry]
    assert [entry["step"] for entry in told] == [2, 4, 4]
    assert "eval_masked_lm_accuracy" in trainer.evaluate(features, metric_key_prefix="eval")
    assert "test_masked_lm_loss" in trainer.evaluate(features, metric_key_prefix="test")


def test_a_teacher_that_would_change_is_refused_where_it_is_compared_with(
    tmp_path: Path, classifier: PreTrainedModel
) -> None:
    task = find_task(classifier, word_tokenizer())
    model = get_wid_model(classifier, HALF)
    with pytest.raises(ConfigError, match="whose weights must not change"):
        WidTrainer(model=model, args=arguments(tmp_path / "out"), task=task)


def test_a_collator_that_is_given_is_used(tmp_path: Path, classifier: PreTrainedModel) -> None:
    task = find_task(classifier, word_tokenizer())
    mine = DataCollatorWithPadding(word_tokenizer(), pad_to_multiple_of=8)
    args = arguments(tmp_path / "out", teacher_learning_rate=0.0)
    model = get_wid_model(classifier, HALF)
    assert WidTrainer(model, args, mine, task=task).data_collator is mine
    assert WidTrainer(model=model, args=args, data_collator=mine, task=task).data_collator is mine

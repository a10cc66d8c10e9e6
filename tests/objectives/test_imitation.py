"""What objectives compare: losses from the teacher, and figures of students that are like it or not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import Dataset
from imitations import imitating_trainer, made_strong, teacher_of
from torch import Tensor
from toys import texts, word_tokenizer
from training_runs import HALF, arguments
from transformers import (
    BertForMaskedLM,
    BertForSequenceClassification,
    BertForTokenClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
    PreTrainedModel,
)

from wid_hf import ConfigError, WidConfig, get_wid_model
from wid_hf.errors import WidWarning
from wid_hf.inputs import TextInputs
from wid_hf.objectives import Objective, find_objective
from wid_hf.objectives.divergences import sigmoid_divergence, softmax_divergence, squared_error
from wid_hf.training.imitating_trainer import ImitatingTrainer


def objective_of(teacher: PreTrainedModel) -> Objective:
    return find_objective(teacher)(teacher, TextInputs(word_tokenizer()))


def rows(objective: Objective, count: int = 32) -> Dataset:
    made = objective.features(Dataset.from_dict({"text": texts(count)}), 12)
    return made.select_columns(["input_ids", "attention_mask"])


CLASSIFIERS: dict[str, tuple[type[PreTrainedModel], dict[str, Any], dict[str, float]]] = {
    "classes": (BertForSequenceClassification, {"num_labels": 4}, {"agreement": 1, "divergence": 0}),
    "labels": (
        BertForSequenceClassification,
        {"num_labels": 4, "problem_type": "multi_label_classification"},
        {"agreement": 1, "divergence": 0},
    ),
    "number": (
        BertForSequenceClassification,
        {"num_labels": 1},
        {"correlation_with_teacher": 1, "squared_error_share": 0},
    ),
    "numbers": (
        BertForSequenceClassification,
        {"num_labels": 3, "problem_type": "regression"},
        {"correlation_with_teacher": 1, "squared_error_share": 0},
    ),
    "tags": (
        BertForTokenClassification,
        {"num_labels": 5},
        {"agreement": 1, "agreement_on_rarer_classes": 1, "divergence": 0},
    ),
}


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_a_teacher_agrees_with_itself_and_another_model_does_not(name: str) -> None:
    kind, config, best = CLASSIFIERS[name]
    teacher, other = (teacher_of(kind, seed, **config) for seed in (0, 4))
    objective = objective_of(teacher)
    batches = objective.scored(rows(objective), 8, 0)
    wanted = objective.wanted(batches)
    assert objective.score(teacher, batches, wanted) == pytest.approx(best, abs=1e-5)
    found = objective.score(other, batches, wanted)
    assert found.keys() == best.keys()
    worse = {figure: found[figure] - value if value == 0 else value - found[figure] for figure, value in best.items()}
    assert min(worse.values()) > 0.02, found


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_the_loss_is_zero_for_equal_outputs_and_the_same_for_rows_with_more_padding(name: str) -> None:
    kind, config, _ = CLASSIFIERS[name]
    teacher, other = (teacher_of(kind, seed, **config) for seed in range(2))
    objective = objective_of(teacher)
    (batch,) = objective.scored(rows(objective, 8), 8, 0)
    longer = {key: torch.nn.functional.pad(tensor, (0, 3)) for key, tensor in batch.items()}
    losses = []
    for given in (batch, longer):
        with torch.no_grad():
            mine, theirs = (model(**given) for model in (other, teacher))
        assert objective.loss(None, theirs, theirs, given).item() == pytest.approx(0, abs=1e-5)  # type: ignore[arg-type]
        losses.append(objective.loss(None, mine, theirs, given).item())  # type: ignore[arg-type]
    assert losses[0] > 0.01
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


@pytest.mark.parametrize(
    ("name", "wanted"), [("classes", softmax_divergence), ("labels", sigmoid_divergence), ("numbers", squared_error)]
)
def test_what_scores_mean_decides_how_they_are_compared(name: str, wanted: Callable[[Tensor, Tensor], Tensor]) -> None:
    kind, config, _ = CLASSIFIERS[name]
    objective = objective_of(teacher_of(kind, **config))
    g = torch.Generator().manual_seed(0)
    mine, theirs = (SimpleNamespace(logits=2 * torch.randn(6, 4, generator=g)) for _ in range(2))
    found = objective.loss(None, mine, theirs, {})  # type: ignore[arg-type]
    torch.testing.assert_close(found, wanted(mine.logits, theirs.logits).mean())


def test_labels_agree_one_by_one_and_classes_by_the_largest() -> None:
    for name in ("labels", "classes"):
        kind, config, _ = CLASSIFIERS[name]
        teacher, other = (teacher_of(kind, seed, **config) for seed in (0, 4))
        objective = objective_of(teacher)
        batches = objective.scored(rows(objective), 8, 0)
        with torch.no_grad():
            a, b = (torch.cat([model(**batch).logits for batch in batches]) for model in (teacher, other))
        same = (a.sigmoid() > 0.5) == (b.sigmoid() > 0.5) if name == "labels" else a.argmax(-1) == b.argmax(-1)
        found = objective.score(other, batches, objective.wanted(batches))
        assert found["agreement"] == pytest.approx(float(same.float().mean()))


def test_rarer_classes_are_all_but_the_teachers_most_frequent_one() -> None:
    kind, config, _ = CLASSIFIERS["tags"]
    teacher, other = (teacher_of(kind, **config) for _ in range(2))
    weight = other.classifier.weight
    with torch.no_grad():
        weight.add_(0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)))
    objective = objective_of(teacher)
    batches = objective.scored(rows(objective), 8, 0)
    pairs = []
    with torch.no_grad():
        for batch in batches:
            tags = [model(**batch).logits.argmax(-1)[batch["attention_mask"].bool()] for model in (teacher, other)]
            pairs += zip(*(each.tolist() for each in tags), strict=True)
    (usual, _), *_ = Counter(theirs for theirs, _ in pairs).most_common()
    rarer = [mine == theirs for theirs, mine in pairs if theirs != usual]
    found = objective.score(other, batches, objective.wanted(batches))
    assert found["agreement_on_rarer_classes"] == pytest.approx(sum(rarer) / len(rarer))
    assert found["agreement_on_rarer_classes"] != pytest.approx(found["agreement"])


def test_a_masked_language_model_agrees_with_its_teacher_where_both_predict_the_same_token() -> None:
    teacher, other = (teacher_of(BertForMaskedLM, seed) for seed in (0, 4))
    objective = objective_of(teacher)
    batches = objective.scored(rows(objective), 8, 0)
    wanted = objective.wanted(batches)
    found = objective.score(other, batches, wanted)
    with torch.no_grad():
        mine, theirs = (
            torch.cat([model(**batch).logits.argmax(-1)[batch["labels"] != -100] for batch in batches])
            for model in (other, teacher)
        )
    assert found["agreement"] == pytest.approx(float((mine == theirs).float().mean()))
    assert objective.score(teacher, batches, wanted)["agreement"] == 1 > found["agreement"]
    alone = objective.score(other, batches, None)
    assert alone == {name: found[name] for name in ("masked_lm_loss", "masked_lm_accuracy")}


def test_a_decoder_is_scored_by_its_perplexity_and_its_teachers_predictions() -> None:
    config = GPT2Config(vocab_size=15, n_positions=16, n_embd=16, n_layer=1, n_head=2, bos_token_id=3, eos_token_id=3)
    teacher = made_strong(GPT2LMHeadModel(config).eval())
    objective = objective_of(teacher)
    batches = objective.scored(rows(objective), 8, 0)
    wanted = objective.wanted(batches)
    assert len(wanted) == sum(int(batch["attention_mask"].sum()) for batch in batches)
    found = objective.score(teacher, batches, wanted)
    assert found["agreement"] == 1
    assert found["perplexity"] == pytest.approx(torch.tensor(found["loss"]).exp().item(), rel=1e-4)
    made = objective.collator([dict(row) for row in rows(objective, 4)])
    assert torch.equal(made["labels"] == -100, made["attention_mask"] == 0)


@pytest.mark.parametrize("name", ["classes", "labels", "tags"])
def test_the_loss_of_a_step_does_not_depend_on_how_it_is_split(name: str, tmp_path: Path) -> None:
    kind, config, _ = CLASSIFIERS[name]
    first = []
    for accumulation in (1, 4):
        objective = objective_of(teacher_of(kind, **config))
        trainer = imitating_trainer(objective, tmp_path, rows(objective), accumulation=accumulation)
        trainer.train()
        first.append(trainer.state.log_history[0]["loss"])
    assert first[1] == pytest.approx(first[0], rel=1e-4)


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_training_brings_a_student_nearer_and_leaves_the_teacher_alone(name: str, tmp_path: Path) -> None:
    kind, config, _ = CLASSIFIERS[name]
    teacher = teacher_of(kind, **config)
    before = {key: tensor.clone() for key, tensor in teacher.state_dict().items()}
    objective = objective_of(teacher)
    trainer = imitating_trainer(objective, tmp_path, rows(objective), steps=40)
    (batch,) = objective.scored(rows(objective), 32, 0)

    def loss() -> float:
        trainer.model.eval()
        with torch.no_grad():
            return trainer.compute_loss(trainer.model, batch).item()

    start = loss()
    trainer.train()
    assert loss() < 0.7 * start
    assert all(torch.equal(before[key], tensor) for key, tensor in teacher.state_dict().items())


def test_a_teacher_that_would_train_and_other_losses_are_refused(tmp_path: Path) -> None:
    objective = objective_of(teacher_of(BertForSequenceClassification))
    model = get_wid_model(objective.teacher, HALF)
    with pytest.raises(ConfigError, match=r"ImitatingTrainer compares .*teacher_learning_rate=0"):
        ImitatingTrainer(model, arguments(tmp_path), imitation=objective.loss)
    args = arguments(tmp_path, teacher_learning_rate=0, distillation=["logits"])
    with pytest.raises(ConfigError, match=r'Leave "logits" out'):
        ImitatingTrainer(model, args, imitation=objective.loss)


LABELS: dict[str, Any] = {
    "classes": [0, 3, 1, 2],
    "labels": [[0, 3], [], [1], [0, 1, 2, 3]],
    "number": [0.5, -1.0, 2.0, 0.0],
}


def labelled(objective: Objective, name: str) -> Dataset:
    made = Dataset.from_dict({"text": texts(8), "label": LABELS[name] * 2})
    return objective.features(made, 12).remove_columns("special_tokens_mask")


@pytest.mark.parametrize("name", LABELS)
def test_the_loss_is_the_weighted_mean_of_that_from_the_teacher_and_that_on_labels(name: str, tmp_path: Path) -> None:
    kind, config, _ = CLASSIFIERS[name]
    objective = objective_of(teacher_of(kind, **config))
    data = labelled(objective, name)
    losses = {}
    for weight in (0.0, 0.25):
        trainer = imitating_trainer(objective, tmp_path, rows(objective), label_weight=weight)
        batch = dict(objective.collator([dict(row) for row in data]))
        losses[weight] = trainer.compute_loss(trainer.model.train(), batch).item()
    own = trainer.model(**batch).loss.item()
    assert own > 0.01
    assert losses[0.25] == pytest.approx(0.75 * losses[0.0] + 0.25 * own, rel=1e-4)


@pytest.mark.parametrize("name", ["classes", "number"])
def test_with_labels_too_the_loss_of_a_step_does_not_depend_on_how_it_is_split(name: str, tmp_path: Path) -> None:
    kind, config, _ = CLASSIFIERS[name]
    first = []
    for accumulation in (1, 4):
        objective = objective_of(teacher_of(kind, **config))
        trainer = imitating_trainer(
            objective, tmp_path, labelled(objective, name), accumulation=accumulation, label_weight=0.5
        )
        trainer.train()
        first.append(trainer.state.log_history[0]["loss"])
    assert first[1] == pytest.approx(first[0], rel=1e-4)


def test_tags_stand_on_the_first_token_of_each_word_and_padding_has_none(tmp_path: Path) -> None:
    kind, config, _ = CLASSIFIERS["tags"]
    objective = objective_of(teacher_of(kind, **config))
    data = Dataset.from_dict({"text": [["one", "two three"], ["four"]], "tags": [[4, 1], [2]]})
    made = objective.features(data, 12)
    assert made["labels"][:] == [[-100, 4, 1, -100, -100], [-100, 2, -100]]
    (batch,) = objective.scored(made, 2, 0)
    assert batch["labels"][1].tolist() == [-100, 2, -100, -100, -100]
    found = objective.score(objective.teacher, [batch], objective.wanted([batch]))
    tags = objective.teacher(**batch).logits.argmax(-1)
    assert found["accuracy"] == pytest.approx(sum([tags[0, 1] == 4, tags[0, 2] == 1, tags[1, 1] == 2]) / 3)
    row = {"text": ["one", "two"], "tags": [1]}
    assert objective.why_unusable(row) == "there is not one tag for each word"
    assert objective.why_unusable({**row, "tags": [1, 1]}) is None
    assert objective.why_unusable({"text": "one two", "tags": [1, 1]}) == "there is not one tag for each word"


def test_with_labels_the_models_own_figures_are_given_too() -> None:
    for name, figures in (("classes", {"accuracy", "macro_f1"}), ("labels", {"f1"}), ("number", {"spearman"})):
        kind, config, _ = CLASSIFIERS[name]
        objective = objective_of(teacher_of(kind, **config))
        batches = objective.scored(labelled(objective, name), 4, 0)
        found = objective.score(objective.teacher, batches, objective.wanted(batches))
        assert figures <= found.keys()
        if name == "classes":
            right = torch.cat([batch["labels"] for batch in batches])
            with torch.no_grad():
                mine = torch.cat([objective.teacher(**batch).logits.argmax(-1) for batch in batches])
            assert found["accuracy"] == pytest.approx(float((mine == right).float().mean()))


def test_distillation_of_hidden_states_is_added(tmp_path: Path) -> None:
    kind, config, _ = CLASSIFIERS["classes"]
    objective = objective_of(teacher_of(kind, **config))
    (batch,) = objective.scored(rows(objective, 8), 8, 0)
    losses = []
    for names in ([], ["hidden", "relations"]):
        trainer = imitating_trainer(objective, tmp_path, rows(objective), distillation=names)
        losses.append(trainer.compute_loss(trainer.model.train(), batch).item())
    assert losses[1] > 1.05 * losses[0]


def test_a_decoder_that_classifies_gets_the_padding_token_that_it_needs() -> None:
    config = GPT2Config(vocab_size=15, n_positions=16, n_embd=16, n_layer=1, n_head=2, bos_token_id=3, eos_token_id=3)
    teacher = made_strong(GPT2ForSequenceClassification(config).eval())
    with pytest.warns(WidWarning, match=r"names no padding token.* pad_token_id=0 \(\[PAD\]\)"):
        objective = objective_of(teacher)
    batches = objective.scored(rows(objective), 8, 0)
    assert objective.score(teacher, batches, objective.wanted(batches))["agreement"] == 1
    assert get_wid_model(teacher, WidConfig(hidden_size=8, init="identity")).base_model.model.config.pad_token_id == 0

"""Distillation of logits: where they are compared, the formula, and labels that do not go with them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from distilled_models import bert, distilled, gpt2, moved
from torch import Tensor
from torch.nn import functional
from toys import labelled_batch
from training_runs import HALF
from transformers import BertForQuestionAnswering, BertModel

from wid_hf import DataError, TeacherError, WidConfig, get_wid_model
from wid_hf.training.losses.distillation import Distillation
from wid_hf.training.losses.logits import logits_loss


def test_logits_are_compared_where_there_are_labels() -> None:
    model, inputs = moved(get_wid_model(bert(), HALF)), labelled_batch()
    wanted = model.base_model.teacher(**inputs).logits
    got = model(**inputs).logits
    total, count = 0.0, 0
    wanted, got = wanted.detach(), got.detach()
    for row, position in (inputs["labels"] != -100).nonzero().tolist():
        p, q = (torch.softmax(logits[row, position].double() / 2, -1) for logits in (wanted, got))
        total, count = total + 4 * float((p * (p / q).log()).sum()), count + 1
    assert distilled(model, ["logits"], inputs).item() == pytest.approx(total / count, rel=1e-5)


def test_logits_are_compared_at_attended_positions_where_nothing_has_labels() -> None:
    model, inputs = moved(get_wid_model(bert(), HALF)), labelled_batch()
    del inputs["labels"]
    attended = inputs["attention_mask"].bool()
    wanted, got = model.base_model.teacher(**inputs).logits[attended], model(**inputs).logits[attended]
    assert distilled(model, ["logits"], inputs).item() == pytest.approx(
        logits_loss(got, wanted, 2.0).mean().item(), rel=1e-5
    )


def test_a_causal_model_is_compared_at_the_positions_that_predict_a_label() -> None:
    model, inputs = moved(get_wid_model(gpt2(), WidConfig(hidden_size=12, init="identity"))), labelled_batch()
    predicting = inputs["labels"][:, 1:] != -100
    wanted, got = (m(**inputs).logits[:, :-1][predicting] for m in (model.base_model.teacher, model))
    assert distilled(model, ["logits"], inputs).item() == pytest.approx(
        logits_loss(got, wanted, 2.0).mean().item(), rel=1e-5
    )


def test_a_classifier_is_compared_row_by_row() -> None:
    from transformers import BertForSequenceClassification

    model = moved(get_wid_model(bert(BertForSequenceClassification, num_labels=3), HALF))
    inputs = {**labelled_batch(), "labels": torch.tensor([0, 2, 1, 1])}
    wanted, got = model.base_model.teacher(**inputs).logits, model(**inputs).logits
    assert distilled(model, ["logits"], inputs).item() == pytest.approx(
        logits_loss(got, wanted, 2.0).mean().item(), rel=1e-5
    )
    assert distilled(model, ["hidden", "relations"], inputs).item() > 0.01


@pytest.mark.parametrize(("classes", "labels"), [(3, torch.tensor([[0.0, 1, 1]] * 4)), (2, torch.rand(4, 2))])
def test_labels_for_each_class_have_no_logits_to_compare_but_states(classes: int, labels: Tensor) -> None:
    from transformers import BertForSequenceClassification

    model = moved(get_wid_model(bert(BertForSequenceClassification, num_labels=classes), HALF))
    inputs = {**labelled_batch(), "labels": labels}
    with pytest.raises(DataError, match=rf"each of {classes} outputs.*Remove \"logits\""):
        distilled(model, ["logits"], inputs)
    by_row = distilled(model, ["hidden", "relations"], inputs).item()
    inputs["labels"] = torch.zeros_like(labels)  # every row counts the same, whatever its labels are
    assert by_row == pytest.approx(distilled(model, ["hidden", "relations"], inputs).item(), rel=1e-6) and by_row > 0


@pytest.mark.parametrize(
    ("model_class", "loss", "words"),
    [
        (BertModel, "logits", r'BertModel returns no logits.*cannot compare "logits".*also takes "hidden"'),
        (BertForQuestionAnswering, "logits", "BertForQuestionAnswering returns no logits"),
    ],
)
def test_a_teacher_without_logits_is_refused(model_class: Any, loss: str, words: str) -> None:
    with pytest.raises(TeacherError, match=words):
        Distillation(get_wid_model(bert(model_class), HALF), [loss])


def test_a_regression_has_nothing_to_compare() -> None:
    from transformers import BertForSequenceClassification

    with pytest.raises(TeacherError, match="no logits of two or more classes"):
        Distillation(get_wid_model(bert(BertForSequenceClassification, num_labels=1), HALF), ["logits"])


def test_labels_that_do_not_go_with_logits_are_refused() -> None:
    inputs = labelled_batch()
    model = get_wid_model(bert(), HALF)
    distillation = Distillation(model, ["logits"])
    with distillation.watching() as student:
        student.output = model(**inputs)
    inputs["labels"] = inputs["labels"][:, :3]
    with pytest.raises(DataError, match=r"logits \(4, 9, 60\) take labels \(4, 9\), but labels or mask are \(4, 3\)"):
        distillation.loss(student, distillation.target({**inputs, "labels": None}), inputs)


def test_kl_of_logits_is_torchs() -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(6, 5, generator=generator), torch.randn(6, 5, generator=generator)
    expected = 9 * functional.kl_div((student / 3).log_softmax(-1), (teacher / 3).softmax(-1), reduction="batchmean")
    assert logits_loss(student, teacher, 3.0).mean().item() == pytest.approx(expected.item(), rel=1e-5)

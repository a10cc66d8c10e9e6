"""Distillation of hidden states: lifted by the compactors that read them, the formula, and teachers without any."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from distilled_models import bert, distilled, moved, seeded
from torch import Tensor
from toys import labelled_batch
from training_runs import HALF
from transformers import ConvBertConfig, ConvBertForSequenceClassification, DebertaV2Config, DebertaV2ForMaskedLM
from wid_models import random_turn, turned

from wid_hf import TeacherError, WidConfig, get_wid_model
from wid_hf.training.losses.distillation import Distillation
from wid_hf.training.losses.hidden import reconstruction_error
from wid_hf.training.losses.registry import DISTILLED


def test_hidden_states_are_lifted_by_the_columns_of_the_weight_that_reads_them() -> None:
    model, inputs = moved(get_wid_model(bert(), HALF)), labelled_batch()
    teacher, student = model.base_model.teacher, model.base_model.model
    states: dict[str, list[Tensor]] = {"teacher": [], "student": []}
    hooks = [
        module.register_forward_pre_hook(lambda _, args, who=who: states[who].append(args[0]))
        for who, whole in (("teacher", teacher), ("student", student))
        for layer in whole.bert.encoder.layer
        for module in (layer.attention.self.query, layer.intermediate.dense)
    ]
    hooks += [
        module.register_forward_pre_hook(lambda _, args, who=who: states[who].append(args[0]))
        for who, whole in (("teacher", teacher), ("student", student))
        for module in (whole.cls.predictions.transform.dense, whole.cls.predictions.decoder)
    ]
    wanted, got = teacher(**inputs, output_hidden_states=True), model(**inputs, output_hidden_states=True)
    for hook in hooks:
        hook.remove()
    assert torch.equal(states["teacher"][0], wanted.hidden_states[0])  # what is read are the hidden states
    assert torch.equal(states["student"][4], got.hidden_states[2])
    readers = [
        *(
            module
            for layer in student.bert.encoder.layer
            for module in (layer.attention.self.query, layer.intermediate.dense)
        ),
        student.cls.predictions.transform.dense,
    ]
    lifts = [module.parametrizations.weight[0].maps["1"].matrix for module in readers]  # (k, n)
    labels = (inputs["labels"] != -100).sum(1)
    kept = student.bert.embeddings.LayerNorm.parametrizations.weight[0].maps["0"].indices
    total = torch.zeros(len(labels))
    for at, (mine, theirs) in enumerate(zip(states["student"], states["teacher"], strict=True)):
        # The decoder is tied: its columns are the embedding's, so its state is compared at the kept indices.
        lifted, target = (mine @ lifts[at], theirs) if at < len(lifts) else (mine, theirs[..., kept])
        for row, length in enumerate(inputs["attention_mask"].sum(1)):
            error = (lifted - target)[row, :length].square().sum() / target[row, :length].square().sum()
            total[row] += error / 6
    expected = (total * labels).sum() / labels.sum()
    assert distilled(model, ["hidden"], inputs).item() == pytest.approx(expected.item(), rel=1e-5)


def test_the_input_of_a_tied_decoder_is_compared_through_the_map_of_a_turned_stream() -> None:
    model, inputs = turned(moved(get_wid_model(bert(), HALF))), labelled_batch()
    seen = {}
    for who in ("teacher", "model"):
        decoder = getattr(model.base_model, who).cls.predictions.decoder
        decoder.register_forward_pre_hook(lambda _, args, who=who: seen.__setitem__(who, args[0]))
    distillation = Distillation(model, ["hidden"])
    (term,) = distillation.terms
    term.places = {call: place for call, place in term.places.items() if call[0] == "cls.predictions.decoder"}
    with distillation.watching() as student:
        student.output = model(**inputs)
    found = distillation.loss(student, distillation.target(inputs), inputs)
    target = seen["teacher"] @ random_turn(24, 12).T.float()
    labels = (inputs["labels"] != -100).sum(1)
    errors = reconstruction_error(seen["model"], target, inputs["attention_mask"].bool())
    assert found.item() == pytest.approx(((errors * labels).sum() / labels.sum()).item(), rel=1e-5)


def test_hidden_states_that_do_not_shrink_are_compared_as_they_are() -> None:
    model, inputs = get_wid_model(bert(), WidConfig(intermediate_size=24, init="identity")), labelled_batch()
    assert distilled(model, ["hidden"], inputs).item() > 1e-3  # the feed-forward blocks are narrower
    with torch.no_grad():  # then nothing tells the models apart
        for layer in model.base_model.teacher.bert.encoder.layer:
            layer.output.dense.weight.zero_()
    assert distilled(model, list(DISTILLED), inputs).item() == pytest.approx(0, abs=1e-6)


def deberta(**given: Any) -> DebertaV2ForMaskedLM:
    config = DebertaV2Config(
        vocab_size=60,
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=32,
        relative_attention=True,
        position_buckets=4,
        share_att_key=True,
        pos_att_type=["p2c", "c2p"],
        norm_rel_ebd="layer_norm",
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        **given,
    )
    return seeded(DebertaV2ForMaskedLM, config)


@pytest.mark.parametrize("rows", [1, 4])
def test_shared_keys_are_compared_where_they_read_hidden_states(rows: int) -> None:
    """They also read the table of relative positions, which has no rows."""
    model = moved(get_wid_model(deberta(), HALF))
    inputs = {name: tensor[:rows] for name, tensor in labelled_batch().items()}
    teacher, student = model.base_model.teacher, model.base_model.model
    wanted, got = (each(**inputs, output_hidden_states=True).hidden_states for each in (teacher, student))
    counted = inputs["attention_mask"].bool()[..., None]
    losses = []
    for at, layer in enumerate(student.deberta.encoder.layer):
        lift = layer.attention.self.query_proj.parametrizations.weight[0].maps["1"].matrix
        error = ((got[at] @ lift - wanted[at]).square() * counted).sum((1, 2))
        losses.append(error / (wanted[at].square() * counted).sum((1, 2)))
    labels = (inputs["labels"] != -100).sum(1)
    expected = [(loss * labels / labels.sum()).sum().item() for loss in losses]
    distillation = Distillation(model, ["hidden"])
    (term,) = distillation.terms
    of_queries = {call: place for call, place in term.places.items() if call[0].endswith("self.query_proj")}
    assert sorted(of_queries) == [(f"deberta.encoder.layer.{at}.attention.self.query_proj", 0) for at in (0, 1)]
    term.places = of_queries
    with distillation.watching() as seen:
        seen.output = model(**inputs)
    found = distillation.loss(seen, distillation.target(inputs), inputs)
    assert found.item() == pytest.approx(sum(expected) / 2, rel=1e-4)
    assert torch.isfinite(distilled(model, ["logits", "hidden", "relations"], inputs))


def test_a_regression_distils_states() -> None:
    from transformers import BertForSequenceClassification

    model = moved(get_wid_model(bert(BertForSequenceClassification, num_labels=1), HALF))
    inputs = {**labelled_batch(), "labels": torch.tensor([0.5, -100.0, 2.0, 1.0])}  # -100 is a number like others
    found = distilled(model, ["hidden"], inputs).item()
    assert found == pytest.approx(distilled(model, ["hidden"], {**inputs, "labels": torch.zeros(4)}).item(), rel=1e-6)


class Inspector(torch.nn.Linear):
    """Is called where no gradients are recorded, as the indexers of some attentions are."""

    def __call__(self, states: Tensor) -> Tensor:
        with torch.no_grad():
            return super().__call__(states)


def test_a_module_that_always_runs_without_gradients_is_not_compared() -> None:
    teacher = bert()
    for layer in teacher.bert.encoder.layer:
        layer.attention.self.query.__class__ = Inspector
    model, inputs = moved(get_wid_model(teacher, HALF)), labelled_batch()
    (term,) = Distillation(model, ["hidden"]).terms
    assert not any(call[0].endswith("query") for call in term.places)
    assert any(call[0].endswith("key") for call in term.places)
    assert distilled(model, ["hidden"], inputs).item() > 1e-3


def test_inputs_whose_width_is_not_their_last_axis_are_not_compared() -> None:
    config = ConvBertConfig(
        vocab_size=60, hidden_size=24, num_hidden_layers=1, num_attention_heads=4, intermediate_size=48, head_ratio=2
    )
    model = get_wid_model(seeded(ConvBertForSequenceClassification, config), HALF)
    (term,) = Distillation(model, ["hidden"]).terms
    teacher = model.base_model.teacher
    assert term.places
    assert all(isinstance(teacher.get_submodule(name), torch.nn.Linear) for name in term.input_modules)


def test_a_teacher_without_hidden_states_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = bert()
    model = get_wid_model(teacher, HALF)
    forward = teacher.forward
    monkeypatch.setattr(teacher, "forward", lambda output_hidden_states, **given: forward(**given))
    with pytest.raises(TeacherError, match=r'returns no hidden states.*Remove "hidden".*"logits" and "relations"'):
        Distillation(model, ["hidden"])


def test_the_reconstruction_error_of_zeros_is_all_of_the_teachers() -> None:
    states, attended = torch.randn(2, 5, 8), torch.ones(2, 5, dtype=torch.bool)
    assert reconstruction_error(states, states, attended).tolist() == [0, 0]
    assert reconstruction_error(torch.zeros_like(states), states, attended).tolist() == pytest.approx([1, 1])

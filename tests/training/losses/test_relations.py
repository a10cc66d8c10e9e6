"""Distillation of relations: the values that are compared, in which heads, the formula, and teachers without any."""

from __future__ import annotations

from math import sqrt

import pytest
import torch
from distilled_models import HEADS, bert, distilled, gpt2, llama, mamba2, moved, opt
from torch import Tensor
from toys import labelled_batch
from training_runs import HALF

from wid_hf import TeacherError, WidConfig, get_wid_model
from wid_hf.training.losses.distillation import Distillation
from wid_hf.training.losses.relations import relation_loss


@pytest.mark.parametrize(("config", "heads"), [(HALF, 4), (HEADS, 2)])
def test_value_relations_of_the_last_layer_are_compared_in_common_heads(config: WidConfig, heads: int) -> None:
    model, inputs = moved(get_wid_model(bert(), config)), labelled_batch()
    values: list[Tensor] = []
    for whole in (model.base_model.teacher, model.base_model.model):
        module = whole.bert.encoder.layer[-1].attention.self.value
        hook = module.register_forward_hook(lambda *seen: values.append(seen[2].detach().double()))
        whole(**inputs)
        hook.remove()
    labels = (inputs["labels"] != -100).sum(1)
    total = 0.0
    for row, length in enumerate(inputs["attention_mask"].sum(1).tolist()):
        losses = []
        for head in range(heads):
            relations = []
            for tensor in values:
                width = tensor.shape[-1] // heads
                v = tensor[row, :length, head * width : (head + 1) * width]
                relations.append(torch.softmax(v @ v.T / sqrt(width), -1))
            losses.append((relations[0] * (relations[0] / relations[1]).log()).sum(-1).mean())
        total += float(torch.stack(losses).mean()) * int(labels[row])
    assert distilled(model, ["relations"], inputs).item() == pytest.approx(total / int(labels.sum()), rel=1e-4)


def test_fused_values_are_found_in_both_models() -> None:
    model, inputs = moved(get_wid_model(gpt2(), WidConfig(hidden_size=12, init="identity"))), labelled_batch()
    values: list[Tensor] = []
    for whole in (model.base_model.teacher, model.base_model.model):
        module = whole.transformer.h[-1].attn.c_attn
        hook = module.register_forward_hook(lambda *seen: values.append(seen[2].chunk(3, -1)[2]))
        whole(**inputs)
        hook.remove()
    rows = relation_loss(values[1], values[0], inputs["attention_mask"].bool(), 4)
    labels = (inputs["labels"][:, 1:] != -100).sum(1)
    expected = (rows * labels).sum() / labels.sum()
    assert distilled(model, ["relations"], inputs).item() == pytest.approx(expected.item(), rel=1e-5)


def test_grouped_values_have_a_head_for_every_key() -> None:
    teacher = llama()
    config = WidConfig(hidden_size=12, head_dim=6, num_attention_heads=2, num_key_value_heads=1, init="identity")
    distillation = Distillation(get_wid_model(teacher, config), ["relations"])
    name, of_teacher, of_student = distillation.terms[0].values[-1]
    assert name == "model.layers.1.self_attn.v_proj"
    assert (of_teacher.heads, of_teacher.stop) == (2, 12)
    assert (of_student.heads, of_student.stop) == (1, 6)


def test_relations_are_those_of_the_last_layer_that_ran() -> None:
    model, inputs = moved(get_wid_model(opt(0.0), WidConfig(hidden_size=12, init="identity"))), labelled_batch()
    distillation = Distillation(model, ["relations"])
    target = distillation.target(inputs)
    found = []
    for layers in (3, 2, 1):
        with distillation.watching() as student:
            student.output = model(**inputs)
        for at in range(layers, 3):
            del student.returned[f"model.decoder.layers.{at}.self_attn.v_proj", 0]
        found.append(distillation.loss(student, target, inputs).item())
    assert len(set(found)) == 3 and all(loss > 0 for loss in found)


def test_a_teacher_without_attention_has_no_relations() -> None:
    model = get_wid_model(mamba2(), WidConfig(hidden_size=12, init="identity"))
    with pytest.raises(TeacherError, match="has no attention whose values"):
        Distillation(model, ["relations"])


def test_relations_stay_when_values_turn_inside_a_head() -> None:
    generator = torch.Generator().manual_seed(0)
    states, attended = torch.randn(2, 5, 8, generator=generator), torch.ones(2, 5, dtype=torch.bool)
    assert relation_loss(states, states, attended, 2).tolist() == pytest.approx([0, 0], abs=1e-6)
    turn = torch.linalg.qr(torch.randn(4, 4, generator=generator)).Q
    turned = (states.view(2, 5, 2, 4) @ turn).flatten(2)
    assert relation_loss(turned, states, attended, 2).tolist() == pytest.approx([0, 0], abs=1e-6)
    assert relation_loss(turned, states, attended, 4).max() > 1e-3

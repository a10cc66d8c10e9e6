"""What a user set on the modules of a teacher is set on those of its student."""

from __future__ import annotations

import warnings
from copy import deepcopy
from types import MethodType

import pytest
import torch
from torch import Tensor, nn
from transformers import BertForMaskedLM
from wid_models import IDS, identity, logits, progressive, trained

from wid_hf import TeacherError


def rates(model: nn.Module) -> list[float]:
    return [module.p for module in model.modules() if isinstance(module, nn.Dropout)]


def checkpoints(model: nn.Module) -> bool:
    return any(getattr(module, "gradient_checkpointing", False) for module in model.modules())


def test_dropout_and_checkpointing_of_the_teacher_are_those_of_the_student(tiny_bert: BertForMaskedLM) -> None:
    for at, module in enumerate(m for m in tiny_bert.modules() if isinstance(m, nn.Dropout)):
        module.p = 0.01 * at
    enable = getattr(tiny_bert, "activation_checkpointing_enable", None) or tiny_bert.gradient_checkpointing_enable
    enable({"use_reentrant": False})
    wanted = rates(tiny_bert)
    for model in (identity(tiny_bert), progressive(tiny_bert)):
        student = model.base_model.model
        assert rates(student) == wanted and checkpoints(student)
    trained(model)
    assert rates(student) == wanted and checkpoints(student)
    merged = model.merge_and_unload()
    assert rates(merged) == wanted and checkpoints(merged)
    merged.train()(**IDS).logits.sum().backward()  # the checkpointing function came along


def test_a_method_replaced_on_one_module_of_the_teacher_runs_in_the_student(tiny_bert: BertForMaskedLM) -> None:
    def doubled(self: nn.Module, states: Tensor) -> Tensor:
        seen.append(self)
        return 2 * type(self).forward(self, states)

    seen: list[nn.Module] = []
    head = tiny_bert.cls
    head.forward = MethodType(doubled, head)
    model = identity(tiny_bert)
    seen.clear()
    patched = logits(model)
    assert seen == [model.base_model.model.cls]
    del head.forward, model.base_model.model.cls.forward
    assert torch.equal(patched, 2 * logits(model))


def test_a_forward_that_would_run_the_teachers_module_is_refused(tiny_bert: BertForMaskedLM) -> None:
    own = tiny_bert.cls.forward
    tiny_bert.cls.forward = lambda states: own(2 * states)
    with pytest.raises(TeacherError, match=r"forward of `cls` was replaced by a function.*types\.MethodType"):
        identity(tiny_bert)


def test_hooks_that_stay_on_the_teacher_are_told_of(tiny_bert: BertForMaskedLM) -> None:
    tiny_bert.bert.embeddings.register_forward_hook(lambda *_: None)
    with pytest.warns(UserWarning, match=r"Hooks on 1 modules.*`bert\.embeddings`.*base_model\.model"):
        identity(tiny_bert)
    plain = deepcopy(tiny_bert)
    plain.bert.embeddings._forward_hooks.clear()
    plain(**IDS, output_hidden_states=True)  # transformers leaves hooks of its own behind
    with warnings.catch_warnings(record=True) as told:
        identity(plain)
    assert not [each for each in told if "Hooks" in str(each.message)]


@pytest.mark.parametrize("how", ["int", "identity", "config"])
def test_dropout_is_off_however_it_was_switched_off(tiny_bert: BertForMaskedLM, how: str) -> None:
    for module in [m for m in tiny_bert.modules() if isinstance(m, nn.Dropout)] if how == "int" else []:
        module.p = 0
    if how == "identity":
        tiny_bert.bert.embeddings.dropout = nn.Identity()
    if how == "config":
        tiny_bert.config.hidden_dropout_prob = 0.0
    assert identity(tiny_bert).base_model.model.bert.embeddings.dropout.p == 0

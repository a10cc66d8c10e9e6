"""The teacher's frozen matrices in half precision: what is cast, what the student computes, and what is refused."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import nn
from training_runs import HALF, arguments, logits, masked_rows
from transformers import BertForMaskedLM

from wid_hf import ConfigError, TrainingError, WidConfig, WidTrainer, get_wid_model
from wid_hf.layers.folded_weight import places

NARROW = WidConfig(hidden_size=12, intermediate_size=24, selection="first")


def trained(teacher: BertForMaskedLM, folder: Path, steps: int = 3, **given: Any) -> PeftModel:
    model = get_wid_model(teacher, HALF)
    args = arguments(folder, max_steps=steps, teacher_learning_rate=0, **given)
    WidTrainer(model=model, args=args, train_dataset=masked_rows()).train()
    return model


def rounded(teacher: BertForMaskedLM, dtype: torch.dtype) -> BertForMaskedLM:
    """A float32 teacher with the values of another dtype in the matrices that a student is folded from."""
    copy = deepcopy(teacher)
    folded = {id(place.original) for place in places(get_wid_model(copy, HALF).base_model.model)}
    with torch.no_grad():
        for weight in copy.parameters():
            if weight.ndim > 1 and id(weight) in folded:
                weight.copy_(weight.to(dtype))
    return copy


def held(model: nn.Module) -> int:
    """Bytes of all parameters, each once."""
    return sum(parameter.nbytes for parameter in {id(p): p for p in model.parameters()}.values())


@pytest.mark.parametrize("name", ["bfloat16", "float16"])
def test_a_student_trains_as_from_a_teacher_of_rounded_matrices(
    tiny_bert: BertForMaskedLM, tmp_path: Path, name: str
) -> None:
    dtype = getattr(torch, name)
    plain, teacher = rounded(tiny_bert, dtype), deepcopy(tiny_bert)
    before = held(teacher)
    expected = trained(plain, tmp_path)
    model = trained(teacher, tmp_path, teacher_dtype=name)
    assert logits(model).dtype == torch.float32
    assert torch.equal(logits(model), logits(expected))
    matrices = [place.original for place in places(model.base_model.model) if place.original.ndim > 1]
    assert {each.dtype for each in matrices} == {dtype}
    # No copy of the matrices in full precision is left anywhere: they are the given teacher's own.
    saved = sum(each.nbytes for each in {id(each): each for each in matrices}.values())
    assert held(teacher) == before - saved
    student = model.merge_and_unload()
    assert {parameter.dtype for parameter in student.parameters()} == {torch.float32}
    assert torch.equal(logits(student), logits(model))


def test_the_start_is_made_before_the_teacher_is_cast(tiny_bert: BertForMaskedLM, tmp_path: Path) -> None:
    starts = []
    for given in ({}, {"teacher_dtype": "bfloat16"}):
        model = get_wid_model(deepcopy(tiny_bert), NARROW)
        args = arguments(tmp_path, max_steps=1, learning_rate=0.0, teacher_learning_rate=0, **given)
        args.compactor_learning_rate = 1e-30  # its weights stay
        WidTrainer(model=model, args=args, train_dataset=masked_rows()).train()
        starts.append({n: p for n, p in model.named_parameters() if p.requires_grad})
    assert starts[0].keys() == starts[1].keys()
    for name, weight in starts[0].items():
        torch.testing.assert_close(weight, starts[1][name], atol=1e-12, rtol=1e-5)


def test_a_saved_adapter_gives_the_same_student_on_the_teacher_in_full_precision(
    tiny_bert: BertForMaskedLM, tmp_path: Path
) -> None:
    model = trained(deepcopy(tiny_bert), tmp_path, teacher_dtype="bfloat16")
    model.save_pretrained(tmp_path / "adapter")
    loaded = PeftModel.from_pretrained(deepcopy(tiny_bert), str(tmp_path / "adapter"))
    torch.testing.assert_close(logits(loaded), logits(model), atol=1e-6, rtol=1e-5)


def test_distillation_runs_the_teacher_in_the_dtype_of_autocast(tiny_bert: BertForMaskedLM, tmp_path: Path) -> None:
    given = {"distillation": ["logits", "hidden"], "bf16": True}
    expected = trained(rounded(tiny_bert, torch.bfloat16), tmp_path, **given)
    model = trained(deepcopy(tiny_bert), tmp_path, teacher_dtype="bfloat16", **given)
    torch.testing.assert_close(logits(model), logits(expected), atol=2e-2, rtol=2e-2)


def test_what_cannot_be_is_refused_by_the_arguments(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"teacher_dtype='int4' is unknown\. Legal: 'auto', 'bfloat16', 'float16'"):
        arguments(tmp_path, teacher_dtype="int4", teacher_learning_rate=0)
    with pytest.raises(ConfigError, match=r"set teacher_learning_rate=0 \(it is None\)"):
        arguments(tmp_path, teacher_dtype="bfloat16")
    with pytest.raises(ConfigError, match="needs bf16=True"):
        arguments(tmp_path, teacher_dtype="bfloat16", teacher_learning_rate=0, distillation=["logits"])


def test_matrices_that_train_are_refused_before_the_first_step(tiny_bert: BertForMaskedLM, tmp_path: Path) -> None:
    args = arguments(tmp_path, teacher_dtype="bfloat16", teacher_learning_rate=0)
    args.teacher_learning_rate = 1e-3
    trainer = WidTrainer(model=get_wid_model(tiny_bert, HALF), args=args, train_dataset=masked_rows())
    with pytest.raises(TrainingError, match=r"is for weights of the teacher that are frozen, and \d+ train"):
        trainer.train()
    assert {parameter.dtype for parameter in tiny_bert.parameters()} == {torch.float32}


def test_a_progressive_schedule_is_refused(tiny_bert: BertForMaskedLM, tmp_path: Path) -> None:
    model = get_wid_model(tiny_bert, WidConfig(hidden_size=12, intermediate_size=24, schedule="progressive"))
    args = arguments(tmp_path, teacher_dtype="bfloat16", teacher_learning_rate=0)
    with pytest.raises(TrainingError, match="does not work with a progressive schedule"):
        WidTrainer(model=model, args=args, train_dataset=masked_rows()).train()

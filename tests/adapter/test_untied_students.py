"""Students with a head of their own, of tied teachers: trained, merged, saved and loaded."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from toys import noisy
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    BertForMaskedLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)
from wid_models import BATCHES, identity, logits, loop, progressive, tiny_gpt2, trained

from wid_hf import TeacherError, WidConfig, get_wid_model


def tiny_llama() -> LlamaForCausalLM:
    sizes = {"vocab_size": 60, "hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 1}
    return LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=4, tie_word_embeddings=True)).eval()


def is_tied(model: PreTrainedModel) -> bool:
    return model.get_output_embeddings().weight is model.get_input_embeddings().weight


@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2])
def test_student_and_adapter_are_the_same_function_when_loaded(make: Any, tmp_path: Path) -> None:
    check_loaded(make(), AutoModelForCausalLM, tmp_path)


def test_student_and_adapter_of_a_masked_language_model_are_the_same_function_when_loaded(
    tiny_bert: BertForMaskedLM, tmp_path: Path
) -> None:
    check_loaded(tiny_bert, AutoModelForMaskedLM, tmp_path)


def check_loaded(teacher: PreTrainedModel, auto: Any, folder: Path) -> None:
    """Train table and head apart; compare the live, the merged and the loaded student, and the loaded adapter."""
    stock = deepcopy(teacher)
    model = identity(teacher, tie_word_embeddings=False)
    noisy(model)
    loop(model.train(), steps=2)
    student = model.eval().merge_and_unload()
    table, head = student.get_input_embeddings().weight, student.get_output_embeddings().weight
    assert not student.config.tie_word_embeddings and not torch.equal(table, head)
    assert torch.equal(logits(student), logits(model))
    student.save_pretrained(folder / "student")
    loaded = auto.from_pretrained(folder / "student").eval()
    assert not is_tied(loaded) and torch.equal(logits(loaded), logits(student))
    assert is_tied(teacher) and teacher.config.tie_word_embeddings
    model.save_pretrained(folder / "adapter")
    again = PeftModel.from_pretrained(stock, folder / "adapter").eval()
    assert is_tied(stock) and torch.equal(logits(again), logits(model))
    assert torch.equal(logits(again.merge_and_unload()), logits(student))


def test_table_and_head_are_fitted_apart() -> None:
    torch.manual_seed(0)
    teacher = tiny_llama()
    model = get_wid_model(teacher, WidConfig(hidden_size=12, tie_word_embeddings=False), calibration_data=BATCHES * 4)
    student = model.merge_and_unload()
    assert torch.equal(logits(student), logits(model.eval()))
    assert not torch.equal(student.model.embed_tokens.weight, student.lm_head.weight)


def test_a_progressive_training_ends_with_a_head_of_its_own() -> None:
    model = progressive(tiny_gpt2(), tie_word_embeddings=False)
    trained(model)
    student = model.merge_and_unload()
    assert not is_tied(student) and student.lm_head.weight.shape == (60, 12)
    assert torch.equal(logits(student), logits(model))


def test_couplings_are_proved_with_a_head_of_its_own() -> None:
    teacher = tiny_gpt2()
    config = WidConfig(hidden_size=12, init="identity", tie_word_embeddings=False)
    assert not is_tied(get_wid_model(teacher, config, verify=True).base_model.teacher)
    assert is_tied(teacher)


def test_an_adapter_with_a_head_of_its_own_is_refused_for_another_tied_teacher(tmp_path: Path) -> None:
    model = identity(tiny_gpt2(), tie_word_embeddings=False)
    model.save_pretrained(tmp_path)
    with pytest.raises(TeacherError, match="made from another teacher"):
        PeftModel.from_pretrained(tiny_gpt2(), tmp_path)

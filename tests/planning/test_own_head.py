"""A head of its own for the student of a tied teacher: its price, what is refused, and that the teacher stays tied."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertForMaskedLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
)
from wid_models import IDS, logits, tiny_encoder, tiny_gpt2

from wid_hf import ConfigError, WidConfig, plan_student
from wid_hf.planning.empty_student import empty_student
from wid_hf.planning.student_plan import planned_teacher

T5 = {"d_model": 24, "d_kv": 6, "d_ff": 48, "num_layers": 1, "num_heads": 4, "decoder_start_token_id": 0}
BART = {
    "d_model": 24,
    **{f"{part}_{what}": n for part in ("encoder", "decoder") for what, n in (("layers", 1), ("attention_heads", 4))},
}


def tiny_llama(model_class: type[LlamaForCausalLM] = LlamaForCausalLM, tie: bool = True) -> LlamaForCausalLM:
    sizes = {"vocab_size": 60, "hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 1}
    return model_class(LlamaConfig(**sizes, num_attention_heads=4, tie_word_embeddings=tie)).eval()


def own_head(**sizes: Any) -> WidConfig:
    return WidConfig(**sizes or {"hidden_size": 12}, tie_word_embeddings=False)


def is_tied(model: PreTrainedModel) -> bool:
    return model.get_output_embeddings().weight is model.get_input_embeddings().weight


def told(teacher: PreTrainedModel, **sizes: Any) -> int | None:
    text = str(plan_student(teacher, WidConfig(**sizes)).plan)
    found = re.search(r"shares the table of 60 tokens.* would add ([\d,]+) parameters", text)
    return int(found[1].replace(",", "")) if found else None


@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2])
def test_the_price_told_is_what_a_head_of_its_own_adds(make: Any) -> None:
    assert added(make()) == told(make(), hidden_size=12) == 60 * 12


def test_the_price_has_the_biases_that_are_parted_with_the_head(tiny_bert: BertForMaskedLM) -> None:
    assert added(tiny_bert) == told(tiny_bert, hidden_size=12) == 60 * 12 + 60


def added(teacher: PreTrainedModel) -> int:
    """The parameters that a head of its own adds to a student."""
    plans = [plan_student(teacher, config) for config in (WidConfig(hidden_size=12), own_head())]
    tied, untied = (empty_student(teacher, planned.config).num_parameters() for planned in plans)
    return untied - tied


def test_nothing_is_offered_where_the_head_is_apart_or_stays_as_wide() -> None:
    assert told(tiny_llama(tie=False), hidden_size=12) is None
    assert told(tiny_gpt2(), overrides={"n_inner": 48}) is None
    assert "tie_word_embeddings" not in str(plan_student(tiny_gpt2(), own_head()).plan)


def test_planning_leaves_the_teacher_tied_and_copies_no_tensor_but_the_head() -> None:
    teacher = tiny_gpt2()
    planned = planned_teacher(teacher, own_head())
    assert is_tied(teacher) and teacher.config.tie_word_embeddings
    assert not is_tied(planned) and not planned.config.tie_word_embeddings
    table = teacher.transformer.wte.weight
    assert planned.transformer.wte.weight is table
    assert planned.lm_head.weight.data_ptr() != table.data_ptr() and torch.equal(planned.lm_head.weight, table)
    ours = dict(teacher.named_parameters())
    assert all(weight is ours[name] for name, weight in planned.named_parameters() if name != "lm_head.weight")
    assert torch.equal(logits(planned), logits(teacher))


def test_without_a_word_on_it_or_where_it_is_so_already_the_teacher_is_planned_itself() -> None:
    tied, untied = tiny_llama(), tiny_llama(tie=False)
    assert planned_teacher(tied, WidConfig(hidden_size=12)) is tied
    assert planned_teacher(tied, WidConfig(hidden_size=12, tie_word_embeddings=True)) is tied
    assert planned_teacher(untied, own_head()) is untied


@pytest.mark.parametrize("tie", [True, False])
def test_a_teacher_without_output_embedding_is_refused(tie: bool) -> None:
    with pytest.raises(ConfigError, match=rf"tie_word_embeddings={tie}: BertModel has no output embedding.*Leave"):
        plan_student(tiny_encoder(), WidConfig(hidden_size=12, tie_word_embeddings=tie))
    assert told(tiny_encoder(), hidden_size=12) is None


def test_a_tie_that_the_teacher_does_not_have_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"has weights of its own.*Leave tie_word_embeddings out"):
        plan_student(tiny_llama(tie=False), WidConfig(hidden_size=12, tie_word_embeddings=True))


@pytest.mark.parametrize(
    "teacher",
    [
        T5ForConditionalGeneration(T5Config(vocab_size=60, **T5)),  # loads tied, whatever its config says
        BartForConditionalGeneration(BartConfig(vocab_size=60, max_position_embeddings=32, **BART)),  # parts three
    ],
    ids=["T5", "BART"],
)
def test_a_class_that_cannot_part_the_head_alone_is_refused_by_name_and_offers_nothing(
    teacher: PreTrainedModel,
) -> None:
    with pytest.raises(ConfigError, match=f"a {type(teacher).__name__} loaded with this config"):
        plan_student(teacher, own_head(overrides={"d_model": 12}))
    assert told(teacher, overrides={"d_model": 12}) is None


class Scaled(LlamaForCausalLM):
    """Multiplies its scores if the head is tied."""

    def forward(self, input_ids: Tensor, **more: Any) -> Any:
        output = super().forward(input_ids, **more)
        output.logits = output.logits * (0.5 if self.config.tie_word_embeddings else 1.0)
        return output


def test_a_class_that_computes_something_else_without_the_tie_is_refused_by_name_and_offers_nothing() -> None:
    teacher = tiny_llama(Scaled)
    before = teacher(IDS["input_ids"]).logits
    with pytest.raises(ConfigError, match="Scaled computes something else without the tie"):
        plan_student(teacher, own_head())
    assert told(teacher, hidden_size=12) is None
    assert torch.equal(teacher(IDS["input_ids"]).logits, before)

"""What cannot be trained in several processes is refused by name, before anything is divided among them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from toys import CONFIGS
from transformers import BertConfig, BertForMaskedLM

from wid_hf import WidConfig, get_wid_model
from wid_hf.errors import TrainingError
from wid_hf.training.sharing import Originals, Units, refuse_sharing


def wid_model(config: str = "identity") -> Any:
    sizes = {"vocab_size": 60, "hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 4}
    teacher = BertForMaskedLM(BertConfig(**sizes, intermediate_size=48, max_position_embeddings=32))
    return get_wid_model(teacher, WidConfig(**CONFIGS[config]))


def accelerator(**state: Any) -> Any:
    return SimpleNamespace(state=SimpleNamespace(**state))


def fsdp(version: int = 2, **options: Any) -> Any:
    return accelerator(fsdp_plugin=SimpleNamespace(fsdp_version=version, **options))


def zero(stage: int) -> Any:
    return accelerator(deepspeed_plugin=SimpleNamespace(zero_stage=stage))


def test_narrow_students_may_be_divided_in_every_known_way() -> None:
    model = wid_model()
    for way in (accelerator(), fsdp(), zero(1), zero(2), zero(3)):
        refuse_sharing(way, model, compares=False)


@pytest.mark.parametrize(
    ("way", "config", "compares", "message"),
    [
        (fsdp(1), "identity", False, "FSDP1 does not work"),
        (fsdp(), "progressive", False, "FSDP2 divides"),
        (zero(1), "progressive", False, "ZeRO-1 divides"),
        (zero(3), "identity", True, "A loss that runs the teacher"),
        (fsdp(cpu_ram_efficient_loading=True), "identity", False, "Set it to False"),
        (fsdp(activation_checkpointing=True), "identity", False, "gradient_checkpointing"),
    ],
)
def test_other_ways_are_refused_by_name(way: Any, config: str, compares: bool, message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        refuse_sharing(way, wid_model(config), compares=compares)


def test_tensor_parallel_layers_are_refused_by_name() -> None:
    way = SimpleNamespace(state=SimpleNamespace(), parallelism_config=SimpleNamespace(tp_enabled=True))
    with pytest.raises(TrainingError, match="tp_size"):
        refuse_sharing(way, wid_model(), compares=False)


def test_a_wide_model_may_train_where_nothing_is_divided() -> None:
    refuse_sharing(accelerator(), wid_model("progressive"), compares=True)


def test_tables_have_no_name_only_while_the_model_is_divided() -> None:
    model = wid_model()
    units = Units(model)
    units.open()
    assert model.get_input_embeddings() is None and model.get_output_embeddings() is None
    assert model._no_split_modules == ["BertLayer"]  # BertEmbeddings has the table of the head
    units.close()
    assert model.get_input_embeddings() is model.base_model.model.bert.embeddings.word_embeddings


def test_a_unit_that_shares_a_table_is_refused_by_name() -> None:
    with pytest.raises(TrainingError, match=r"BertEmbeddings, which shares.*Legal here: BertLayer"):
        Units(wid_model(), ["BertLayer", "BertEmbeddings"])


def test_teachers_and_traces_hold_what_the_student_holds_now() -> None:
    model = wid_model()
    tuner = model.base_model
    before = Originals(model)
    weight = tuner.model.bert.encoder.layer[0].output.dense.parametrizations.weight
    weight.original = type(weight.original)(weight.original.detach().clone())
    before.follow(tuner.teachers, tuner.student_plan.trace.weights)
    assert tuner.teacher.bert.encoder.layer[0].output.dense.weight is weight.original
    assert tuner.student_plan.trace.weights["bert.encoder.layer.0.output.dense.weight"] is weight.original

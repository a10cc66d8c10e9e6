"""Which config entries count layers, found by skeletons."""

from __future__ import annotations

from typing import Any

import pytest
from layered_models import MAKERS, bert, gemma3, teacher_of
from transformers import Gemma3ForCausalLM, Gemma3TextConfig

from wid_hf import ConfigError, WidConfig
from wid_hf.planning.depth import requested_stacks

FOUND = {
    "bert": [("num_hidden_layers", ("bert.encoder.layer",), 4, 2)],
    "albert": [("num_hidden_layers", (), 4, 2)],
    "distilbert": [("n_layers", ("transformer.layer",), 4, 3)],
    "squeezebert": [("num_hidden_layers", ("encoder.layers",), 4, 3)],
    "longformer": [("num_hidden_layers", ("encoder.layer",), 4, 2)],
    "gpt2": [("n_layer", ("transformer.h",), 4, 3)],
    "gpt_neox_japanese": [("num_hidden_layers", ("layers",), 4, 3)],
    "gemma3": [("num_hidden_layers", ("model.layers",), 6, 4)],
    "t5": [("num_layers", ("encoder.block",), 4, 2), ("num_decoder_layers", ("decoder.block",), 3, 2)],
    "bart": [("decoder_layers", ("model.decoder.layers",), 4, 2)],
    "resnet": [("depths.0", ("encoder.stages.0.layers",), 2, 1)],
    "dinov2": [("num_hidden_layers", ("encoder.layer",), 4, 3)],
    "swin": [("depths.0", ("encoder.layers.0.blocks",), 2, 1)],
}


@pytest.mark.parametrize("family", FOUND)
def test_the_layers_that_an_entry_counts_are_found_in_the_model(family: str) -> None:
    stacks = requested_stacks(teacher_of(family), WidConfig(**MAKERS[family][1]))

    assert [(each.title, each.lists, each.old, each.new) for each in stacks] == FOUND[family]


class EndsWithFullAttention(Gemma3ForCausalLM):
    """A class that checks its config, as some do."""

    def __init__(self, config: Gemma3TextConfig) -> None:
        super().__init__(config)
        if config.layer_types[-1] != "full_attention":
            raise ValueError("the last layer must attend to everything")


def test_layers_are_found_where_the_class_refuses_to_do_without_the_last_one() -> None:
    teacher = EndsWithFullAttention(gemma3().config)

    (stack,) = requested_stacks(teacher, WidConfig(num_hidden_layers=5))

    assert (stack.lists, stack.old, stack.new) == (("model.layers",), 6, 5)


def test_sizes_in_overrides_are_not_taken_for_counts_of_layers() -> None:
    sizes = {"num_attention_heads": 2, "intermediate_size": 12, "max_position_embeddings": 8, "type_vocab_size": 1}

    assert requested_stacks(bert(), WidConfig(overrides=sizes)) == ()


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"num_hidden_layers": 5}, "num_hidden_layers=5 is more than the teacher's 4 layers"),
        ({"layers": [1, 4]}, "numbers from 0 to 3, each once and in ascending order"),
        ({"layers": {"decoder_layers": [0]}}, "BertConfig counts no layers as decoder_layers"),
        ({"layers": {"hidden_size": [0, 1]}}, "does not simply have fewer layers"),
        ({"num_hidden_layers": 3, "overrides": {"num_hidden_layers": 2}}, "is 3 and, in overrides, 2; give it once"),
        ({"layers": [1], "overrides": {"num_hidden_layers": 2}}, "is 1 and, in overrides, 2; give it once"),
    ],
)
def test_layers_that_the_teacher_does_not_have_are_refused(asked: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        requested_stacks(bert(), WidConfig(**asked))


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"num_hidden_layers": 0}, "num_hidden_layers=0 is not a positive integer"),
        ({"layers": []}, "is not a list of layers' numbers"),
        ({"layers": [2, 1]}, "each number once, in ascending order"),
        ({"layers": [1, 1]}, "each number once, in ascending order"),
        ({"layers": [-1, 1]}, "is not a list of layers' numbers"),
        ({"layers": {0: [1]}}, "by the name of the entry that counts them"),
        ({"layers": [0, 1], "num_hidden_layers": 3}, "names 2 layers, and num_hidden_layers is 3"),
    ],
)
def test_layers_that_make_no_sense_are_refused_without_a_model(asked: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        WidConfig(**asked)


@pytest.mark.parametrize("asked", [[0, 2], {"num_hidden_layers": [0, 2]}])
def test_layers_of_a_teacher_that_runs_one_layer_several_times_are_a_number(asked: Any) -> None:
    teacher = teacher_of("albert")

    with pytest.raises(ConfigError, match=r"one layer, which runs 4 times.* in place of layers: num_hidden_layers=2"):
        requested_stacks(teacher, WidConfig(layers=asked))
    (stack,) = requested_stacks(teacher, WidConfig(num_hidden_layers=2))
    assert (stack.old, stack.new) == (4, 2)


def test_layers_may_be_a_tuple() -> None:
    assert [stack.kept for stack in requested_stacks(bert(), WidConfig(layers=(0, 2)))] == [(0, 2)]


def test_counts_in_a_list_are_named_by_their_place() -> None:
    with pytest.raises(ConfigError, match=r"counts no layers as depths; its parts are depths\.0 to depths\.1"):
        requested_stacks(teacher_of("swin"), WidConfig(layers={"depths": [0]}))

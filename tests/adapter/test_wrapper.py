"""What a user assigns to the `PeftModel` is seen, however that was made."""

from __future__ import annotations

from copy import deepcopy

import pytest
from peft import get_peft_model
from torch import nn
from transformers import BertForMaskedLM, GenerationConfig
from wid_models import identity, progressive, tiny_gpt2, trained

from wid_hf import (
    WidConfig,
    WidError,
)


def test_what_is_assigned_to_copies_and_through_pefts_own_door_is_seen() -> None:
    door = get_peft_model(tiny_gpt2(), WidConfig(hidden_size=12, init="identity"))
    for model in (door, deepcopy(door), deepcopy(identity(tiny_gpt2()))):
        model.generation_config = GenerationConfig(max_new_tokens=11)
        assert model.merge_and_unload().generation_config.max_new_tokens == 11
    door.lm_head = nn.Linear(12, 60)
    with pytest.raises(WidError, match=r"`lm_head` was set on the wid model"):
        door.merge_and_unload()


def test_a_config_assigned_to_the_model_shrinks_with_it(tiny_bert: BertForMaskedLM) -> None:
    model = progressive(tiny_bert)
    model.config = deepcopy(model.config)
    model.config.mine = 5
    trained(model)
    assert (model.merge_and_unload().config.hidden_size, model.merge_and_unload().config.mine) == (12, 5)

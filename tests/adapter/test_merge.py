"""A merged student has what was set on the live model, and may be saved beside an adapter."""

from __future__ import annotations

import subprocess
import sys
import warnings
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from toys import noisy
from transformers import BertForMaskedLM, GenerationConfig
from wid_models import identity, logits, progressive, tiny_classifier, tiny_gpt2, trained

from wid_hf import (
    OutputError,
    WidError,
)


@pytest.mark.parametrize("make", [identity, progressive])
def test_live_configs_reach_the_student(make: Any) -> None:
    model = make(tiny_gpt2())
    model.config.n_inner_note = "kept"
    model.generation_config.max_new_tokens = 77
    if make is progressive:
        trained(model)
    student = model.merge_and_unload()
    assert student.generation_config.max_new_tokens == 77 and student.config.n_inner_note == "kept"
    student.generation_config.max_new_tokens = 5
    assert model.generation_config.max_new_tokens == 77
    model.generation_config = GenerationConfig(max_new_tokens=11)  # as Seq2SeqTrainer does
    assert model.merge_and_unload().generation_config.max_new_tokens == 11


def test_end_tokens_set_by_hand_are_kept_beside_each_other() -> None:
    model = identity(tiny_gpt2())
    model.generation_config.eos_token_id = [5, 2]
    assert model.merge_and_unload().generation_config.eos_token_id == [5, 2]


@pytest.mark.parametrize(
    ("entry", "value", "says"),
    [
        ("num_hidden_layers", 2, "does not have the weights"),
        ("num_hidden_layers", 0, "does not have the weights"),
        ("tie_word_embeddings", False, "tie_word_embeddings is False now"),
    ],
)
def test_a_config_that_makes_other_layers_or_ties_is_refused(entry: str, value: Any, says: str) -> None:
    model = identity(tiny_classifier())
    setattr(model.config, entry, value)
    with pytest.raises(WidError, match=says):
        model.merge_and_unload()


def test_a_config_that_would_not_load_with_the_weights_is_refused() -> None:
    model = identity(tiny_classifier())
    model.config.num_labels = 7
    with pytest.raises(
        WidError, match=r"2 weights do not fit model\.config as it is now: classifier\.weight is \(2, 12\)"
    ):
        model.merge_and_unload()
    model.config.num_labels, model.config.hidden_size = 2, 13
    with pytest.raises(WidError, match=r"cannot be made from model\.config as it is now"):
        model.merge_and_unload()
    model.config.hidden_size = 12
    assert model.merge_and_unload().classifier.weight.shape == (2, 12)


LOADED_BY_OTHERS = """
import sys, torch
sys.modules["wid_hf"] = None
from transformers import AutoModelForMaskedLM
print(AutoModelForMaskedLM.from_pretrained(sys.argv[1]).config.hidden_size)
"""


@pytest.mark.slow
def test_a_student_saved_beside_its_adapter_loads_and_the_adapter_is_kept(
    tiny_bert: BertForMaskedLM, tmp_path: Path
) -> None:
    model = identity(tiny_bert)
    noisy(model)
    student = model.merge_and_unload()
    for at in ("wid_adapter", "wid_adapter-2"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model.save_pretrained(tmp_path)
        with pytest.warns(UserWarning, match=f"adapter is in .*{at} now"):
            deepcopy(student).save_pretrained(tmp_path)
        assert sorted(path.name for path in (tmp_path / at).iterdir()) == [
            "adapter_config.json",
            "adapter_model.safetensors",
        ]
    done = subprocess.run(
        [sys.executable, "-c", LOADED_BY_OTHERS, tmp_path], check=False, capture_output=True, text=True
    )
    assert done.stdout.strip() == "12", done.stderr[-500:]
    again = PeftModel.from_pretrained(deepcopy(tiny_bert), tmp_path / "wid_adapter")
    assert torch.equal(logits(again), logits(model))


def test_an_adapter_saved_beside_a_student_is_told_of(tiny_bert: BertForMaskedLM, tmp_path: Path) -> None:
    model = identity(tiny_bert)
    model.merge_and_unload().save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match=r"holds a model \(config\.json\) and this adapter"):
        model.save_pretrained(tmp_path)


def test_a_student_is_not_saved_over_an_adapter_of_another_method(tiny_bert: BertForMaskedLM, tmp_path: Path) -> None:
    student = identity(tiny_bert).merge_and_unload()
    get_peft_model(deepcopy(tiny_bert), LoraConfig(target_modules=["query"])).save_pretrained(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(OutputError, match=r"holds an adapter.*'LORA'.*another folder"):
        student.save_pretrained(tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before

"""Reports of settings that a tool changed behind its user's back: tokenizers, special tokens, frozen layers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from case import case
from peft import PeftModel
from small import arguments, batches, bert, compressed, gpt2, half_bert, llama, rows, same_outputs, save_teacher
from small import tokenizer as words
from transformers import AutoModelForCausalLM, AutoTokenizer, BertModel, GPT2LMHeadModel

from wid_hf import WidConfig, WidTrainer, get_wid_model

KIND = "What the user set"


@case(KIND, "llm-compressor#2917, llm-compressor#1418", "`tokenizer.json` of the student: no truncation of ours in it")
def tokenizer_stays(folder: Path) -> None:
    teacher = save_teacher(folder / "teacher")
    compressed(teacher, folder / "out")
    before, after = (json.loads((place / "tokenizer.json").read_text()) for place in (teacher, folder / "out"))
    assert before["truncation"] is None
    assert before == after, {key: (before[key], after[key]) for key in before if before[key] != after[key]}


@case(KIND, "transformers#24441", "Added tokens and the chat template are those of the teacher's tokenizer")
def added_tokens_stay(folder: Path) -> None:
    speaking = words()
    speaking.add_tokens(["<call>"])
    speaking.chat_template = "{% for message in messages %}{{ message['content'] }} <call>{% endfor %}"
    teacher = save_teacher(folder / "teacher", bert(vocab_size=len(speaking)), speaking)
    compressed(teacher, folder / "out", steps=0)
    before, after = (AutoTokenizer.from_pretrained(place) for place in (teacher, folder / "out"))
    assert before.get_added_vocab() == after.get_added_vocab()
    assert after.get_added_vocab()["<call>"] == 60
    assert before.chat_template == after.chat_template
    assert before("w7 <call> w9 unheard").input_ids == after("w7 <call> w9 unheard").input_ids


def _after_training(folder: Path, schedule: str) -> GPT2LMHeadModel:
    model = get_wid_model(gpt2(), WidConfig(hidden_size=12, schedule=schedule))  # type: ignore[arg-type]
    processing = words(eos_token="w8", pad_token="w9")
    WidTrainer(
        model=model, args=arguments(folder, max_steps=60), train_dataset=rows(), processing_class=processing
    ).train()
    student = model.merge_and_unload()
    student.save_pretrained(folder / "student")
    return AutoModelForCausalLM.from_pretrained(folder / "student")


def _check_special(student: GPT2LMHeadModel) -> None:
    seen = [
        getattr(config, f"{name}_token_id")
        for config in (student.config, student.generation_config)
        for name in ("eos", "pad")
    ]
    assert seen == [8, 9, 8, 9], seen


@case(
    KIND,
    "transformers#48592, open-r1#663, trl#7097",
    "End and padding tokens of the tokenizer that `Trainer` was given are in the student's configs",
)
def special_tokens_reach_the_student(folder: Path) -> None:
    _check_special(_after_training(folder, "narrow"))


@case(KIND, "open-r1#663, trl#7097", "The same after a progressive training, which rebuilds the model on its way")
def special_tokens_survive_the_shrink(folder: Path) -> None:
    _check_special(_after_training(folder, "progressive"))


@case(KIND, "open-r1#663", "A generation setting changed on the wid model by hand")
def generation_settings_by_hand(folder: Path) -> None:
    model = get_wid_model(gpt2(), WidConfig(hidden_size=12), calibration_data=batches())
    model.generation_config.max_new_tokens = 7
    student = model.merge_and_unload()
    assert student.generation_config.max_new_tokens == 7
    student.save_pretrained(folder / "student")
    assert AutoModelForCausalLM.from_pretrained(folder / "student").generation_config.max_new_tokens == 7


@case(KIND, "yolov5#1213, fairseq#4702", "Layers frozen by `requires_grad_(False)` before training are not trained")
def frozen_layers_stay(folder: Path) -> None:
    teacher = bert()
    teacher.bert.embeddings.requires_grad_(False)
    frozen = {name: weight.clone() for name, weight in teacher.bert.embeddings.state_dict().items()}
    other = teacher.bert.encoder.layer[0].output.dense.weight.clone()
    model = half_bert(teacher)
    WidTrainer(model=model, args=arguments(folder, learning_rate=1e-2), train_dataset=rows()).train()
    for name, weight in teacher.bert.embeddings.state_dict().items():
        assert torch.equal(weight, frozen[name]), f"{name} was trained"
    assert not torch.equal(teacher.bert.encoder.layer[0].output.dense.weight, other), "nothing was trained"


@case(
    KIND,
    "peft#1173, peft#1457",
    "Tokens added to a wid model, whose layers are computed from its teacher's",
    refused=("vocabulary cannot become 70", r"before get_wid_model"),
)
def vocabulary_resized_after(folder: Path) -> None:
    model = get_wid_model(llama(), WidConfig(hidden_size=16, head_strategy="head"), calibration_data=batches())
    model.resize_token_embeddings(70)


@case(KIND, "peft#1396, peft#1457", "Tokens added to the teacher before: adapter and student load with 70 tokens")
def vocabulary_resized_before(folder: Path) -> None:
    def teacher() -> Any:
        made = llama()
        with torch.random.fork_rng():
            torch.manual_seed(5)
            made.resize_token_embeddings(70, mean_resizing=False)
        return made

    model = get_wid_model(teacher(), WidConfig(hidden_size=16, head_strategy="head"), calibration_data=batches())
    model.save_pretrained(folder / "adapter")
    again = PeftModel.from_pretrained(teacher(), folder / "adapter")
    student = model.merge_and_unload()
    student.save_pretrained(folder / "student")
    loaded = AutoModelForCausalLM.from_pretrained(folder / "student")
    assert loaded.config.vocab_size == loaded.get_input_embeddings().num_embeddings == 70
    assert loaded.lm_head.weight.shape == (70, 16)
    same_outputs(student, loaded)
    same_outputs(student, again.merge_and_unload())


@case(
    KIND, "mlx-embeddings#63, sentence-transformers#1790", "Pooling of a sentence-transformers folder is carried over"
)
def pooling_stays(folder: Path) -> None:
    teacher = save_teacher(folder / "teacher", bert("BertModel"))
    (teacher / "1_Pooling").mkdir()
    pooling = {"word_embedding_dimension": 24, "pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
    (teacher / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    ]
    (teacher / "modules.json").write_text(json.dumps(modules))
    compressed(teacher, folder / "out", steps=0)
    assert BertModel.from_pretrained(folder / "out").config.hidden_size == 12
    assert json.loads((folder / "out" / "modules.json").read_text()) == modules
    after = json.loads((folder / "out" / "1_Pooling" / "config.json").read_text())
    assert after == pooling | {"word_embedding_dimension": 12}, after

"""Vectors here and in the real library are the same, for teachers and for students; skipped where it is missing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from sentence_folders import WIDTH, save_sentence_teacher
from toys import save_teacher, texts, word_tokenizer
from transformers import AutoModel, BertForSequenceClassification

from wid_hf import WidConfig, get_wid_model
from wid_hf.inputs import batches
from wid_hf.sentence_models import read_pipeline, save_sentence_modules
from wid_hf.sentence_models.pooling import POOLINGS

library = pytest.importorskip("sentence_transformers")


def vectors_here(folder: Path, sentences: list[str]) -> torch.Tensor:
    pipeline = read_pipeline(str(folder))
    assert pipeline is not None
    tokenizer, settings = word_tokenizer(), pipeline.settings
    read = [settings.as_read(sentence) for sentence in sentences]
    inputs = tokenizer(read, padding=True, truncation=True, max_length=settings.max_length, return_tensors="pt")
    mask = inputs["attention_mask"]
    with torch.no_grad():
        states = AutoModel.from_pretrained(folder)(input_ids=inputs["input_ids"], attention_mask=mask).last_hidden_state
    return pipeline.vectors(states, mask, settings.prompt_length(tokenizer))


def vectors_there(folder: Path, sentences: list[str]) -> torch.Tensor:
    model = library.SentenceTransformer(str(folder), device="cpu")
    found: torch.Tensor = model.encode(sentences, convert_to_tensor=True, show_progress_bar=False)
    return found


CASES: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    **{mode: ((), {"modes": (mode,)}) for mode in POOLINGS},
    "all modes": (("Normalize",), {"modes": tuple(POOLINGS)}),
    "normalised": (("Normalize",), {}),
    "dense": (("Dense", "Normalize"), {"modes": ("cls", "mean")}),
    "two dense": (("Dense", "Dense"), {"activation": "torch.nn.modules.linear.Identity", "bias": False}),
    "prompt": (
        (),
        {
            "settings": {"prompts": {"query": "one two "}, "default_prompt_name": "query"},
            "pooling": {"include_prompt": False},
        },
    ),
    "length and case": ((), {"transformer": {"do_lower_case": True, "max_seq_length": 6}}),
}


@pytest.mark.parametrize("new", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_vectors_are_those_of_the_library(tmp_path: Path, case: str, new: bool) -> None:
    behind, given = CASES[case]
    if new and case == "length and case":
        pytest.skip("these settings are in the tokenizer's file now")
    folder = save_sentence_teacher(tmp_path / "teacher", *behind, new=new, **given)
    sentences = [*texts(5), "ONE Two"]
    torch.testing.assert_close(vectors_here(folder, sentences), vectors_there(folder, sentences))


@pytest.mark.parametrize("new", [False, True])
@pytest.mark.parametrize("case", ["normalised", "dense", "two dense", "prompt", "cls"])
def test_a_student_is_loaded_with_the_same_modules(tmp_path: Path, case: str, new: bool) -> None:
    behind, given = CASES[case]
    teacher, student = tmp_path / "teacher", tmp_path / "student"
    save_sentence_teacher(teacher, *behind, new=new, **given)
    tokenizer = word_tokenizer()
    model = get_wid_model(AutoModel.from_pretrained(teacher), WidConfig(hidden_size=20))
    model.base_model.calibrate(
        batches([dict(tokenizer(text)) for text in texts(64)], lambda rows: tokenizer.pad(rows, return_tensors="pt"), 8)
    )
    merged = model.merge_and_unload()
    merged.save_pretrained(student)
    tokenizer.save_pretrained(student)
    save_sentence_modules(str(teacher), merged, student)
    found, wanted = (vectors_there(folder, texts(5)) for folder in (student, teacher))
    torch.testing.assert_close(found, vectors_here(student, texts(5)))
    modules = [[type(module) for module in library.SentenceTransformer(str(folder))] for folder in (teacher, student)]
    assert modules[0] == modules[1]
    if "Dense" in behind:
        assert torch.cosine_similarity(found, wanted).mean() > 0.5
    if "Normalize" in behind:
        torch.testing.assert_close(found.norm(dim=1), torch.ones(5))


def narrow(model: BertForSequenceClassification, teacher: Path, student: Path) -> None:
    merged = get_wid_model(model, WidConfig(hidden_size=12, init="identity")).merge_and_unload()
    merged.save_pretrained(student)
    word_tokenizer().save_pretrained(student)
    save_sentence_modules(str(teacher), merged, student)


def test_a_cross_encoder_gives_scores_through_its_activation(tmp_path: Path) -> None:
    teacher, student = save_teacher(tmp_path / "teacher", BertForSequenceClassification), tmp_path / "student"
    config = json.loads((teacher / "config.json").read_text())
    activation = "torch.nn.modules.activation.Tanh"
    config |= {"sentence_transformers": {"activation_fn": activation, "version": "4.0.0"}}
    (teacher / "config.json").write_text(json.dumps(config))
    model = BertForSequenceClassification.from_pretrained(teacher)
    narrow(model, teacher, student)
    pairs = list(zip(texts(4), texts(4, 1), strict=True))
    for folder in (teacher, student):
        loaded = library.CrossEncoder(str(folder), device="cpu")
        assert isinstance(loaded.activation_fn, torch.nn.Tanh)
        inputs = word_tokenizer()([list(pair) for pair in pairs], padding=True, return_tensors="pt")
        logits = BertForSequenceClassification.from_pretrained(folder)(**inputs).logits
        torch.testing.assert_close(loaded.predict(pairs, convert_to_tensor=True), torch.tanh(logits))


def test_a_cross_encoder_that_the_library_saved_is_one_again(tmp_path: Path) -> None:
    plain = save_teacher(tmp_path / "plain", BertForSequenceClassification)
    teacher, student = tmp_path / "teacher", tmp_path / "student"
    library.CrossEncoder(str(plain), device="cpu", activation_fn=torch.nn.Tanh()).save(str(teacher))
    model = BertForSequenceClassification.from_pretrained(teacher)
    narrow(model, teacher, student)
    assert isinstance(library.CrossEncoder(str(student), device="cpu").activation_fn, torch.nn.Tanh)


def test_a_folder_that_the_library_saved_is_read(tmp_path: Path) -> None:
    folder = save_sentence_teacher(tmp_path / "teacher", "Dense", "Normalize", modes=("cls", "mean"))
    library.SentenceTransformer(str(folder), device="cpu").save(str(tmp_path / "saved"))
    saved = read_pipeline(str(tmp_path / "saved"))
    assert saved is not None
    assert saved.modules[0].config["embedding_dimension"] == WIDTH
    torch.testing.assert_close(vectors_here(tmp_path / "saved", texts(5)), vectors_there(folder, texts(5)))

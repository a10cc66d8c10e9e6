"""Models of sentence-transformers through `compress`: what is in the student's folder, and what is told and refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from sentence_folders import SPACE, read_json, save_sentence_teacher, write_json, write_modules
from toys import save_teacher, texts, word_tokenizer, write_texts
from transformers import AutoModel, BertForMaskedLM, BertForSequenceClassification, BertModel

from wid_hf import TeacherError, WidConfig
from wid_hf.errors import WidWarning
from wid_hf.hub.own_files import why_not_ours
from wid_hf.sentence_models import read_pipeline
from wid_hf.tools.compress import CompressSettings, compress
from wid_hf.tools.teachers import load_teacher

HALF = WidConfig(hidden_size=12, intermediate_size=24, init="identity")
QUICK = CompressSettings(steps=2, batch_size=8, max_length=12, validation_texts=16)
UNTRAINED = replace(QUICK, steps=0)


@pytest.fixture
def train_file(tmp_path: Path) -> Path:
    return write_texts(tmp_path / "train.txt")


@pytest.mark.parametrize("weights", ["compactors", "merged"])
def test_the_students_folder_gives_vectors_like_its_teachers(tmp_path: Path, train_file: Path, weights: str) -> None:
    prompt = {"prompts": {"query": "one two "}, "default_prompt_name": "query"}
    teacher = save_sentence_teacher(tmp_path / "teacher", "Dense", "Normalize", modes=("cls", "mean"), settings=prompt)
    settings = replace(QUICK, train_weights=weights)
    report = compress(str(teacher), str(train_file), tmp_path / "student", HALF, settings)
    assert report.objective == "sentence-vectors"
    assert report.scores["teacher"] == pytest.approx(
        {"vector_cosine": 1, "cosine_correlation": 1, "top1_agreement": 1}, abs=1e-5
    )
    assert report.scores["student"].keys() == report.scores["teacher"].keys()
    pipeline = read_pipeline(str(tmp_path / "student"))
    assert pipeline is not None
    assert pipeline.settings.prompt == "one two "
    inputs = word_tokenizer()(["one two " + text for text in texts(4)], padding=True, return_tensors="pt")
    student = AutoModel.from_pretrained(tmp_path / "student")
    with torch.no_grad():
        vectors = pipeline.vectors(student(**inputs).last_hidden_state, inputs["attention_mask"])
    assert vectors.shape == (4, SPACE)
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(4))
    card = ModelCard.load(tmp_path / "student" / "README.md")
    assert (card.data.library_name, card.data.pipeline_tag) == ("sentence-transformers", "sentence-similarity")
    assert 'model = SentenceTransformer("student")' in card.text
    assert why_not_ours(tmp_path / "student") is None


def test_a_head_that_is_not_in_the_checkpoint_is_not_missed(tmp_path: Path, train_file: Path) -> None:
    teacher = save_sentence_teacher(tmp_path / "teacher")
    config = read_json(teacher / "config.json")
    write_json(teacher / "config.json", config | {"architectures": ["BertForMaskedLM"]})
    report = compress(str(teacher), str(train_file), tmp_path / "student", HALF, UNTRAINED)
    assert report.objective == "sentence-vectors"
    assert type(AutoModel.from_pretrained(tmp_path / "student")) is BertModel
    with pytest.raises(TeacherError, match="lacks"):
        compress(str(teacher), str(train_file), tmp_path / "other", HALF, replace(UNTRAINED, task="masked-lm"))


def test_a_language_model_without_its_head_is_asked_for(tmp_path: Path) -> None:
    folder = str(save_teacher(tmp_path / "masked", BertForMaskedLM))
    assert type(load_teacher(folder)) is BertForMaskedLM
    with pytest.raises(TeacherError, match="pooler"):  # a masked language model has none
        load_teacher(folder, headless=True)
    classifier = str(save_teacher(tmp_path / "classifier", BertForSequenceClassification))
    assert type(load_teacher(classifier, headless=True)) is BertForSequenceClassification


def test_unknown_modules_are_refused_before_work_and_a_user_can_leave_them_out(
    tmp_path: Path, train_file: Path
) -> None:
    teacher = save_sentence_teacher(tmp_path / "teacher", "their.code.Attention")
    with pytest.raises(TeacherError, match=r"Pooling, their\.code\.Attention.*task=features"):
        compress(str(teacher), str(train_file), tmp_path / "student", HALF, UNTRAINED)
    with pytest.warns(WidWarning, match="saved as the transformer alone"):
        compress(str(teacher), str(train_file), tmp_path / "student", HALF, replace(UNTRAINED, task="features"))
    assert not (tmp_path / "student" / "modules.json").exists()


def test_a_classifier_beside_a_pooling_stays_a_classifier(tmp_path: Path, train_file: Path) -> None:
    teacher = write_modules(save_teacher(tmp_path / "teacher", BertForSequenceClassification))
    report = compress(str(teacher), str(train_file), tmp_path / "student", HALF, UNTRAINED)
    assert report.objective == "sequence-classification"

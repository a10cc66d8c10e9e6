"""A student of a sentence-transformers folder is one as well, with its own width."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from wid_hf.errors import WidWarning
from wid_hf.hub.sentence_transformers import save_sentence_modules

MODULES = [
    {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
    {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    {"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"},
]
POOLING = {"word_embedding_dimension": 24, "pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}


@pytest.fixture
def teacher(tmp_path: Path) -> Path:
    folder = tmp_path / "teacher"
    (folder / "1_Pooling").mkdir(parents=True)
    (folder / "modules.json").write_text(json.dumps(MODULES))
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(POOLING))
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 16}')
    (tmp_path / "student").mkdir()
    return folder


def read(path: Path) -> object:
    return json.loads(path.read_text())


def test_pooling_stays_and_has_the_students_width(teacher: Path, tmp_path: Path) -> None:
    student = tmp_path / "student"
    save_sentence_modules(str(teacher), student, 12)
    assert read(student / "modules.json") == MODULES
    assert read(student / "1_Pooling" / "config.json") == POOLING | {"word_embedding_dimension": 12}
    assert read(student / "sentence_bert_config.json") == {"max_seq_length": 16}
    assert (student / "2_Normalize").is_dir()


def test_a_module_with_weights_is_told_of_and_no_module_is_listed(teacher: Path, tmp_path: Path) -> None:
    dense = {"idx": 3, "name": "3", "path": "3_Dense", "type": "sentence_transformers.models.Dense"}
    (teacher / "modules.json").write_text(json.dumps([*MODULES, dense]))
    with pytest.warns(WidWarning, match="with Dense, whose weights fit the teacher's width only"):
        save_sentence_modules(str(teacher), tmp_path / "student", 12)
    assert not list((tmp_path / "student").iterdir())


def test_a_plain_encoder_gets_no_files(tmp_path: Path) -> None:
    for name in ("teacher", "student"):
        (tmp_path / name).mkdir()
    save_sentence_modules(str(tmp_path / "teacher"), tmp_path / "student", 12)
    assert not list((tmp_path / "student").iterdir())

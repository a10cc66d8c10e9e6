"""A student of a sentence-transformers folder is one as well, with its own widths."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from sentence_folders import SPACE, WIDTH, bert_of, read_json, write_json, write_modules

from wid_hf.errors import WidWarning
from wid_hf.sentence_models import read_pipeline, save_sentence_modules

MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])


@pytest.fixture
def teacher(tmp_path: Path) -> Path:
    return tmp_path / "teacher"


@pytest.fixture
def student(tmp_path: Path) -> Path:
    folder = tmp_path / "student"
    folder.mkdir()
    return folder


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


@pytest.mark.parametrize("new", [False, True])
def test_files_are_the_teachers_with_the_students_width(teacher: Path, student: Path, new: bool) -> None:
    settings = {"prompts": {"query": "é: "}, "default_prompt_name": "query", "similarity_fn_name": "dot", "mine": 1}
    write_modules(teacher, "Normalize", modes=("cls",), new=new, settings=settings, pooling={"include_prompt": False})
    save_sentence_modules(str(teacher), bert_of(12), student)
    changed = Path("1_Pooling/config.json")
    width = "embedding_dimension" if new else "word_embedding_dimension"
    assert files(student) == [name for name in files(teacher) if name != "2_Normalize" or new]
    for path in teacher.rglob("*.json"):
        name = path.relative_to(teacher)
        assert read_json(student / name) == read_json(path) | {width: 12} if name == changed else read_json(path)


def test_a_dense_layer_is_folded_and_its_file_is_read_again(teacher: Path, student: Path) -> None:
    write_modules(teacher, "Dense", "Dense", "Normalize", modes=("mean", "cls"))
    output_map = torch.linalg.qr(torch.randn(WIDTH, 8)).Q
    save_sentence_modules(str(teacher), bert_of(8, output_map), student)
    saved, given = read_pipeline(str(student)), read_pipeline(str(teacher))
    assert saved is not None
    assert given is not None
    states = torch.randn(2, 4, 8)
    torch.testing.assert_close(saved.vectors(states, MASK), given.vectors(states @ output_map.T, MASK))
    assert read_json(student / "2_Dense" / "config.json") == read_json(teacher / "2_Dense" / "config.json") | {
        "in_features": 16
    }
    assert load_file(student / "2_Dense" / "model.safetensors")["linear.weight"].shape == (SPACE, 16)
    assert (student / "3_Dense" / "config.json").read_text() == json.dumps(
        read_json(teacher / "3_Dense" / "config.json"), indent=2
    )


def test_weights_keep_their_precision(teacher: Path, student: Path) -> None:
    write_modules(teacher, "Dense")
    weights = {name: tensor.bfloat16() for name, tensor in load_file(teacher / "2_Dense" / "model.safetensors").items()}
    save_file(weights, teacher / "2_Dense" / "model.safetensors")
    save_sentence_modules(str(teacher), bert_of(8, torch.linalg.qr(torch.randn(WIDTH, 8)).Q), student)
    saved = load_file(student / "2_Dense" / "model.safetensors")
    assert {tensor.dtype for tensor in saved.values()} == {torch.bfloat16}


def test_a_transformer_in_a_folder_of_its_own_is_in_the_students(teacher: Path, student: Path) -> None:
    write_modules(teacher)
    entries = read_json(teacher / "modules.json")
    write_json(teacher / "modules.json", [entries[0] | {"path": "0_Transformer"}, entries[1]])
    save_sentence_modules(str(teacher), bert_of(12), student)
    assert read_json(student / "modules.json") == entries


def test_a_cross_encoder_of_version_5_keeps_its_files(teacher: Path, student: Path) -> None:
    kind = "sentence_transformers.base.modules.transformer.Transformer"
    settings = {"model_type": "CrossEncoder", "activation_fn": "torch.nn.modules.activation.Sigmoid"}
    transformer = {"transformer_task": "sequence-classification", "module_output_name": "scores"}
    write_json(teacher / "modules.json", [{"idx": 0, "name": "0", "path": "", "type": kind}])
    write_json(teacher / "config_sentence_transformers.json", settings)
    write_json(teacher / "sentence_bert_config.json", transformer)
    save_sentence_modules(str(teacher), bert_of(12), student)
    assert {name: read_json(student / name) for name in files(student)} == {
        name: read_json(teacher / name) for name in files(teacher)
    }


def test_modules_that_are_not_known_are_told_of_and_none_is_listed(teacher: Path, student: Path) -> None:
    write_modules(teacher, "sentence_transformers.models.LSTM")
    with pytest.warns(WidWarning, match=r"of Transformer, Pooling, LSTM.*saved as the transformer alone"):
        save_sentence_modules(str(teacher), bert_of(12), student)
    assert not files(student)


def test_a_dense_layer_without_a_map_is_told_of_and_no_module_is_listed(teacher: Path, student: Path) -> None:
    write_modules(teacher, "Dense")
    with pytest.warns(WidWarning, match=r"takes vectors of 24 numbers.*saved as the transformer alone"):
        save_sentence_modules(str(teacher), bert_of(12), student)
    assert not files(student)


def test_a_plain_encoder_gets_no_files(teacher: Path, student: Path) -> None:
    teacher.mkdir()
    save_sentence_modules(str(teacher), bert_of(12), student)
    assert not files(student)


def pooling_type(folder: Path) -> Any:
    """What `conversion/base.py` of llama.cpp finds: the module whose type ends with Pooling, then its true mode."""
    place = next(entry["path"] for entry in read_json(folder / "modules.json") if entry["type"].endswith("Pooling"))
    config = read_json(folder / place / "config.json")
    keys = {"mean": "pooling_mode_mean_tokens", "cls": "pooling_mode_cls_token", "lasttoken": "pooling_mode_lasttoken"}
    return next((mode for mode, key in keys.items() if config.get(key)), config.get("pooling_mode"))


@pytest.mark.parametrize("new", [False, True])
@pytest.mark.parametrize("mode", ["mean", "cls", "lasttoken"])
def test_converters_of_llama_cpp_find_the_pooling(teacher: Path, student: Path, mode: str, new: bool) -> None:
    save_sentence_modules(str(write_modules(teacher, modes=(mode,), new=new)), bert_of(12), student)
    assert pooling_type(student) == mode

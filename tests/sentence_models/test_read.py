"""Which models are sentence-transformers models, and which of these are understood."""

from __future__ import annotations

from pathlib import Path

import pytest
from sentence_folders import read_json, save_sentence_teacher, write_json, write_modules
from transformers import AutoModel, BertConfig, BertModel

from wid_hf.errors import TeacherError
from wid_hf.sentence_models import has_pooling, pipeline_of, read_pipeline


def test_a_plain_folder_has_no_pipeline(tmp_path: Path) -> None:
    assert read_pipeline(str(tmp_path)) is None
    assert not has_pooling(str(tmp_path))


@pytest.mark.parametrize("new", [False, True])
def test_modules_of_both_layouts_are_found(tmp_path: Path, new: bool) -> None:
    write_modules(tmp_path, "Dense", "Normalize", new=new)
    found = read_pipeline(str(tmp_path))
    assert found is not None
    assert [type(module).__name__ for module in found.modules] == ["Pooling", "Dense", "Normalize"]
    assert found.entries == read_json(tmp_path / "modules.json")
    assert has_pooling(str(tmp_path))


def test_a_transformer_alone_has_no_pooling(tmp_path: Path) -> None:
    kind = "sentence_transformers.base.modules.transformer.Transformer"
    write_json(tmp_path / "modules.json", [{"idx": 0, "name": "0", "path": "", "type": kind}])
    found = read_pipeline(str(tmp_path))
    assert found is not None
    assert found.pooling is None
    assert not has_pooling(str(tmp_path))


@pytest.mark.parametrize(
    ("behind", "named"),
    [("sentence_transformers.models.LSTM", "LSTM"), ("their_code.Normalize", "their_code.Normalize")],
)
def test_a_module_of_another_kind_is_refused_by_name(tmp_path: Path, behind: str, named: str) -> None:
    write_modules(tmp_path, behind)
    with pytest.raises(TeacherError, match=f"of Transformer, Pooling, {named}.*task=features"):
        read_pipeline(str(tmp_path))
    assert has_pooling(str(tmp_path))


def test_modules_in_another_order_are_refused(tmp_path: Path) -> None:
    write_modules(tmp_path, "Dense")
    entries = read_json(tmp_path / "modules.json")
    write_json(tmp_path / "modules.json", [entries[0], entries[2], entries[1]])
    with pytest.raises(TeacherError, match="of Transformer, Dense, Pooling"):
        read_pipeline(str(tmp_path))


@pytest.mark.parametrize("place", ["../other", "/somewhere"])
def test_folders_outside_of_the_models_are_refused(tmp_path: Path, place: str) -> None:
    write_modules(tmp_path)
    entries = read_json(tmp_path / "modules.json")
    write_json(tmp_path / "modules.json", [entries[0], entries[1] | {"path": place}])
    with pytest.raises(TeacherError, match="names folders outside"):
        read_pipeline(str(tmp_path))


@pytest.mark.parametrize("content", [3, [3], [{"path": "1_Pooling"}], [{"type": None, "path": ""}], {"a": 1}])
def test_a_file_that_lists_no_modules_is_refused(tmp_path: Path, content: object) -> None:
    write_json(tmp_path / "modules.json", content)
    with pytest.raises(TeacherError, match="is no list of modules"):
        read_pipeline(str(tmp_path))


def test_a_loaded_model_has_the_pipeline_of_its_folder(tmp_path: Path) -> None:
    found = pipeline_of(AutoModel.from_pretrained(save_sentence_teacher(tmp_path, "Normalize")))
    assert found is not None
    assert len(found.modules) == 2


def test_a_model_that_was_loaded_from_nowhere_has_none() -> None:
    config = BertConfig(vocab_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    assert pipeline_of(BertModel(config)) is None


def test_a_model_whose_folder_is_gone_has_none(tmp_path: Path) -> None:
    model = AutoModel.from_pretrained(save_sentence_teacher(tmp_path / "a" / "b" / "c"))
    (tmp_path / "a").rename(tmp_path / "b")
    assert pipeline_of(model) is None

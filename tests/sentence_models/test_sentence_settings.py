"""How a sentence-transformers model reads texts."""

from __future__ import annotations

from pathlib import Path

import pytest
from sentence_folders import write_json, write_modules
from toys import word_tokenizer

from wid_hf.errors import TeacherError
from wid_hf.sentence_models.files import ModelFiles
from wid_hf.sentence_models.settings import SentenceSettings


def settings(folder: Path) -> SentenceSettings:
    return SentenceSettings.read(ModelFiles(str(folder)))


def test_a_folder_without_settings_files_has_the_usual_ones(tmp_path: Path) -> None:
    found = settings(tmp_path)
    assert (found.max_length, found.prompt, found.similarity) == (None, "", "cosine")
    assert found.as_read("One TWO") == "One TWO"
    assert found.files == {}


def test_length_case_prompt_and_similarity_are_the_models(tmp_path: Path) -> None:
    prompts = {"query": "One Two: ", "document": "Three: "}
    model = {"prompts": prompts, "default_prompt_name": "query", "similarity_fn_name": "dot"}
    write_modules(tmp_path, settings=model, transformer={"do_lower_case": True})
    found = settings(tmp_path)
    assert (found.max_length, found.prompt, found.similarity) == (16, "One Two: ", "dot")
    assert found.as_read("FOUR") == "one two: four"
    assert found.files["config_sentence_transformers.json"] == model


def test_settings_that_are_null_are_the_usual_ones(tmp_path: Path) -> None:
    names = ("prompts", "default_prompt_name", "similarity_fn_name")
    write_json(tmp_path / "config_sentence_transformers.json", dict.fromkeys(names))
    found = settings(tmp_path)
    assert (found.prompt, found.similarity) == ("", "cosine")


def test_the_name_of_an_old_file_stays(tmp_path: Path) -> None:
    write_json(tmp_path / "sentence_roberta_config.json", {"max_seq_length": 12})
    found = settings(tmp_path)
    assert found.max_length == 12
    assert list(found.files) == ["sentence_roberta_config.json"]


def test_a_default_prompt_that_is_not_among_the_prompts_is_refused(tmp_path: Path) -> None:
    write_modules(tmp_path, settings={"prompts": {"query": "q"}, "default_prompt_name": "other"})
    with pytest.raises(TeacherError, match=r"default_prompt_name='other'.* not among its prompts: query"):
        settings(tmp_path)


def test_a_file_that_is_not_json_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config_sentence_transformers.json").write_text("{")
    with pytest.raises(TeacherError, match="is not JSON"):
        settings(tmp_path)
    (tmp_path / "config_sentence_transformers.json").write_text("[1]")
    with pytest.raises(TeacherError, match="is not of the form"):
        settings(tmp_path)


def test_tokens_before_the_text_are_those_of_the_prompt_and_the_first_special_one(tmp_path: Path) -> None:
    tokenizer = word_tokenizer()
    assert SentenceSettings({}).prompt_length(tokenizer) == 0
    assert SentenceSettings({}, prompt="one two ").prompt_length(tokenizer) == 3  # [CLS] one two, and not [SEP]

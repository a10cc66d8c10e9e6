"""Vectors of whole pipelines, and those of a student."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from sentence_folders import SPACE, WIDTH, write_modules
from torch.nn import functional

from wid_hf.errors import WidError
from wid_hf.sentence_models import SentencePipeline, read_pipeline

MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0], [0, 1, 1, 1]])


@pytest.fixture
def states() -> torch.Tensor:
    return torch.randn(3, 4, WIDTH, generator=torch.Generator().manual_seed(0))


def pipeline(folder: Path, *behind: str, **given: object) -> SentencePipeline:
    found = read_pipeline(str(write_modules(folder, *behind, **given)))  # type: ignore[arg-type]
    assert found is not None
    return found


@pytest.mark.parametrize("new", [False, True])
def test_vectors_go_through_all_modules_in_order(tmp_path: Path, states: torch.Tensor, new: bool) -> None:
    found = pipeline(tmp_path, "Dense", "Normalize", "Dense", new=new, modes=("cls",))
    first, second = found.modules[1], found.modules[3]
    cls = states[[0, 1, 2], [0, 0, 1]]
    inner = functional.normalize(torch.tanh(cls @ first.weight.T + first.bias), dim=1)
    torch.testing.assert_close(found.vectors(states, MASK), torch.tanh(inner @ second.weight.T + second.bias))


def test_normalised_vectors_have_length_one(tmp_path: Path, states: torch.Tensor) -> None:
    vectors = pipeline(tmp_path, "Normalize").vectors(states, MASK)
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(3))
    assert (pipeline(tmp_path).vectors(states, MASK).norm(dim=1) - 1).abs().min() > 0.1


def test_tokens_of_a_prompt_count_unless_the_pooling_leaves_them_out(tmp_path: Path, states: torch.Tensor) -> None:
    whole = pipeline(tmp_path / "a").vectors(states, MASK, prompt_length=2)
    torch.testing.assert_close(whole, (states * MASK[..., None]).sum(1) / MASK.sum(1)[:, None])
    without = pipeline(tmp_path / "b", pooling={"include_prompt": False}).vectors(states, MASK, prompt_length=2)
    expected = torch.stack([states[0, 2:].mean(0), states[1, 2], states[2, 3]])  # the third is padded on the left
    torch.testing.assert_close(without, expected)


def test_a_student_keeps_the_teachers_space_behind_the_first_dense_layer(tmp_path: Path) -> None:
    found = pipeline(tmp_path, "Dense", "Dense", "Normalize", modes=("mean", "lasttoken"))
    output_map = torch.linalg.qr(torch.randn(WIDTH, 8)).Q
    narrow = found.narrowed(8, output_map)
    states = torch.randn(3, 4, 8)
    vectors = narrow.vectors(states, MASK)
    assert vectors.shape == (3, SPACE)
    torch.testing.assert_close(vectors, found.vectors(states @ output_map.T, MASK))
    assert [module.config.get("in_features") for module in narrow.modules] == [None, 16, SPACE, None]
    assert narrow.modules[0].config["word_embedding_dimension"] == 8
    assert found.modules[1].config["in_features"] == 2 * WIDTH, "the teacher's pipeline has changed"


def test_a_student_as_wide_as_its_teacher_has_its_pipeline(tmp_path: Path, states: torch.Tensor) -> None:
    found = pipeline(tmp_path, "Dense")
    torch.testing.assert_close(found.narrowed(WIDTH, None).vectors(states, MASK), found.vectors(states, MASK))


def test_without_a_map_a_dense_layer_cannot_follow(tmp_path: Path) -> None:
    with pytest.raises(WidError, match="takes vectors of 24 numbers, and the student's have 12"):
        pipeline(tmp_path, "Dense").narrowed(12, None)
    assert pipeline(tmp_path, "Normalize").narrowed(12, None).modules[0].config["word_embedding_dimension"] == 12

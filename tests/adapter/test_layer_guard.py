"""Layers put in the place of others are refused before anything is trained or merged."""

from __future__ import annotations

import pytest
from torch import nn
from wid_models import IDS, identity, tiny_classifier, tiny_gpt2

from wid_hf import (
    WidError,
)


@pytest.mark.parametrize("where", ["student", "wrapper", "student's body"])
def test_a_layer_put_in_the_place_of_another_is_refused_before_it_trains_and_merges(where: str) -> None:
    model = identity(tiny_classifier())
    student = model.base_model.model
    if where == "student":
        student.classifier = nn.Linear(12, 5)
    elif where == "wrapper":
        model.classifier = nn.Linear(12, 5)
    else:
        student.bert.resize_token_embeddings(70)
    with pytest.raises(
        WidError, match=r"was (replaced or resized|set)[^:]*: the layers of a wid model are computed from"
    ):
        model.train()(**IDS)
    with pytest.raises(WidError, match=r"after merge_and_unload"):
        model.merge_and_unload()


def test_a_teacher_resized_afterwards_is_refused_before_it_trains() -> None:
    model = identity(teacher := tiny_gpt2())
    teacher.resize_token_embeddings(70)
    with pytest.raises(WidError, match=r"of the teacher was replaced or resized after get_wid_model"):
        model.train()(**IDS)

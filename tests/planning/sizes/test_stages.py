"""Heads that are counted stage by stage: which numbers of them are tried where the widths of stages shrink."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import PretrainedConfig, SegformerConfig, SwinConfig

from wid_hf import WidConfig
from wid_hf.planning.sizes import Request, Way

SWIN = SwinConfig(embed_dim=96, num_heads=[3, 6, 12, 24])
SEGFORMER = SegformerConfig(hidden_sizes=[32, 64, 160, 256], num_attention_heads=[1, 2, 5, 8])


def heads_by_way(config: PretrainedConfig, name: str, overrides: dict[str, Any]) -> dict[Way, list[int] | None]:
    meanings = Request(config, WidConfig(overrides=overrides)).meanings
    return {meaning.way: meaning.sizes.get(name) for meaning in meanings}


def test_heads_stay_or_become_fewer_in_proportion_to_one_width() -> None:
    found = heads_by_way(SWIN, "num_heads", {"embed_dim": 64})
    assert found == {Way.NARROWER: None, Way.FEWER: [2, 4, 8, 16], Way.OTHER_COUNT: [2, 4, 8, 16]}


def test_where_no_proportion_is_whole_the_most_heads_that_divide_and_are_no_wider_are_tried() -> None:
    found = heads_by_way(SWIN, "num_heads", {"embed_dim": 84})
    assert found == {Way.NARROWER: None, Way.OTHER_COUNT: [3, 6, 12, 21]}


def test_a_width_that_no_number_of_heads_divides_leaves_them_as_they_are() -> None:
    assert heads_by_way(SWIN, "num_heads", {"embed_dim": 80}) == {Way.NARROWER: None}


@pytest.mark.parametrize(
    ("widths", "fewer"),
    [([32, 32, 96, 128], [1, 1, 3, 4]), ([16, 32, 80, 128], None), ([32, 64, 64, 256], [1, 2, 2, 8])],
)
def test_each_stage_has_its_own_width(widths: list[int], fewer: list[int] | None) -> None:
    assert heads_by_way(SEGFORMER, "num_attention_heads", {"hidden_sizes": widths}).get(Way.FEWER) == fewer

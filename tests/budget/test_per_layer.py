"""Inner widths move between layers where the class has one for each: at no more cost, and only if that is nearer."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from imitations import made_strong
from transformers import BertForMaskedLM, Gemma3nForCausalLM, Gemma3nTextConfig

from wid_hf import get_wid_model
from wid_hf.budget import Front, Space
from wid_hf.budget.front import Candidate
from wid_hf.budget.halving import _Search, search
from wid_hf.budget.per_layer import moved, profiles
from wid_hf.hub.model_size import model_size

HALF = {"intermediate_size": 32, "num_hidden_layers": 3}


@pytest.fixture
def listed() -> Front:
    """One candidate of a class whose config has a width for each layer, as `Space.of` finds it."""
    torch.manual_seed(0)
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "num_kv_shared_layers": 0}
    sizes = {"vocab_size": 60, "vocab_size_per_layer_input": 60, "hidden_size": 16, "hidden_size_per_layer_input": 8}
    kinds = ["sliding_attention", "sliding_attention", "full_attention"]
    others = {"laurel_rank": 8, "layer_types": kinds, "activation_sparsity_pattern": [0.0] * 3, "pad_token_id": 0}
    config = Gemma3nTextConfig(**sizes, **heads, **others, intermediate_size=[64] * 3, num_hidden_layers=3)
    teacher = made_strong(Gemma3nForCausalLM(config).eval())
    space = Space(teacher, {}, {"intermediate_size": 64}, (3,), ("narrower",), 8, False)
    return Front(space, {}, {}, (Candidate(HALF, {"params": 0.0}, 1.0),), 1, 0.0)


def batches() -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [{"input_ids": torch.randint(5, 60, (8, 12), generator=generator)} for _ in range(6)]


@pytest.mark.parametrize(
    ("values", "size", "whole", "widths"),
    [
        ((-1.0, 0.0, 1.0), 32, 64, (16, 32, 48)),
        ((1.0, 0.0, -1.0), 32, 64, (48, 32, 16)),
        ((-1.0, 0.0, 1.0), 32, 40, (24, 32, 40)),  # no wider than the teacher
        ((-1.0, 0.0, 1.0), 64, 64, (64, 64, 64)),
        ((-1.0, 0.0, 1.0), 8, 64, (8, 8, 8)),  # none vanishes
        ((-1.0, -1 / 3, 1 / 3, 1.0), 64, 128, (32, 56, 72, 96)),
        ((1.0, 1.0), 32, 64, (32, 32)),
    ],
)
def test_what_some_layers_get_others_lose(
    values: tuple[float, ...], size: int, whole: int, widths: tuple[int, ...]
) -> None:
    found = moved(values, size, whole, 8)
    assert found == widths
    assert sum(found) == len(values) * size


def test_a_list_of_widths_is_one_width_of_the_space_and_is_asked_for_as_a_list(listed: Front) -> None:
    space = listed.space
    assert dict(space._inner_sizes())["intermediate_size"] == 64
    assert space.config(HALF).requested == {"intermediate_size": [32, 32, 32]}
    assert space.plan(HALF).config.intermediate_size == [32, 32, 32]


def test_profiles_cost_no_more_than_the_winner(listed: Front) -> None:
    space = listed.space
    most = model_size(space.skeleton(HALF)).total
    found = [*profiles(space, HALF)]
    assert [each.name for each in found] == ["growing", "falling", "wide in the middle", "narrow in the middle"]
    assert {sum(each.widths["intermediate_size"]) for each in found} == {96}
    request = replace(space.config(HALF, None, found[1].widths), init="identity", selection="first")
    student = get_wid_model(space.teacher, request).merge_and_unload()
    assert student.config.intermediate_size == [48, 32, 16]
    assert model_size(student).total == most


def test_classes_without_such_lists_have_none(tiny_bert: BertForMaskedLM) -> None:
    space = Space.of(tiny_bert, round_to=4, layers=(2,))
    assert not space.lists
    assert not [*profiles(space, {"hidden_size": 24, "num_attention_heads": 4, "intermediate_size": 24})]


def test_the_nearest_profile_is_taken_only_if_it_is_nearer_than_the_winner(
    listed: Front, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = {(32, 32, 32): 0.5, (16, 32, 48): 0.4, (48, 32, 16): 0.6}
    texts: list[int] = []

    def score(self: _Search, config: object, some: list[dict[str, torch.Tensor]]) -> float:
        texts.append(sum(len(batch["input_ids"]) for batch in some))
        return scores.get(tuple(config.overrides["intermediate_size"]), 0.9)  # type: ignore[attr-defined]

    monkeypatch.setattr(_Search, "_score_of", score)
    found = search(listed, batches(), seconds=60)
    assert len(set(texts)) == 1 and len(texts) == 5
    assert found.by_layer is not None and found.by_layer.profile.name == "growing"
    assert found.config.requested == {"intermediate_size": [16, 32, 48]}
    assert "Widths that differ from layer to layer are nearer, 0.4: growing, intermediate_size=[16, 32, 48]" in (
        found.reason
    )
    assert [each["score"] for each in found.to_dict()["profiles"]][:2] == [0.4, 0.6]
    scores[16, 32, 48] = 0.55
    found = search(listed, batches(), seconds=60)
    assert found.config.requested == {"intermediate_size": [32, 32, 32]}
    assert found.reason.endswith("None of 4 profiles of widths over the layers is nearer.")


def test_profiles_are_calibrated_and_scored_as_candidates_are(listed: Front, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wid_hf.budget.per_layer.PROFILES", {"falling": lambda at: -at})
    found = search(listed, batches(), seconds=60)
    scores = [found.scored[0].scores[-1], *(each.score for each in found.profiles)]
    assert len(set(scores)) == 2 and all(0 < each < 1 for each in scores)

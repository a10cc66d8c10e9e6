"""Shapes that fill a target: none is above it, none is smaller than it must be, and none is worse in every size."""

from __future__ import annotations

from dataclasses import replace

import pytest
from encoder_decoders import bart
from transformers import BertForMaskedLM, PretrainedConfig, PreTrainedModel

from wid_hf import ConfigError, PlanError
from wid_hf.budget import Front, Space, Target, propose
from wid_hf.budget.latency import Timing
from wid_hf.hub.model_size import model_size
from wid_hf.planning.student_plan import empty_student


def clockwork(config: PretrainedConfig) -> Timing:
    """A device on which a layer takes a fixed time and as much again for each 1,000 products of widths."""
    return Timing(config.num_hidden_layers * (1 + config.hidden_size * config.intermediate_size / 1000), 0.0, 0.0)


def planned(front: Front) -> list[PreTrainedModel]:
    return [empty_student(front.space.teacher, front.space.plan(each.shape).config) for each in front.candidates]


def test_every_candidate_is_below_the_target_and_could_not_be_wider(tiny_bert: BertForMaskedLM) -> None:
    front = propose(tiny_bert, Target(params="50%"), round_to=2)
    most = model_size(tiny_bert).total / 2
    assert front.limits == {"params": most}
    assert len(front.candidates) >= 3
    for candidate, student in zip(front.candidates, planned(front), strict=True):
        assert model_size(student).total == candidate.needs["params"] <= most
        assert candidate.filled == candidate.needs["params"] / most
        wider = {**candidate.shape, "intermediate_size": candidate.shape["intermediate_size"] + 2}
        if wider["intermediate_size"] <= 48 and candidate.shape["intermediate_size"] != 48:
            assert model_size(front.space.skeleton(wider)).total > most


def test_the_guess_shrinks_all_widths_alike(tiny_bert: BertForMaskedLM) -> None:
    guess = propose(tiny_bert, Target(params="50%"), round_to=2).guess.shape
    assert guess["hidden_size"] / 24 == pytest.approx(guess["intermediate_size"] / 48, abs=0.1)


def test_a_guess_that_the_plan_refuses_makes_way_for_the_next(tiny_bert: BertForMaskedLM) -> None:
    front = propose(tiny_bert, Target(params="50%"), round_to=2, most=2)
    wrong = replace(front.guess, shape={**front.guess.shape, "hidden_size": 10})  # does not divide into 4 heads
    assert front.planned_guess() is front.guess
    assert replace(front, candidates=(wrong, *front.candidates)).planned_guess() is front.guess
    with pytest.raises(PlanError, match="None of the 1 shapes that fill the target can be planned"):
        replace(front, candidates=(wrong,)).planned_guess()


def test_no_candidate_is_smaller_than_another_in_every_size(tiny_bert: BertForMaskedLM) -> None:
    shapes = [each.shape for each in propose(tiny_bert, Target(params="60%"), round_to=2, layers=(1, 2)).candidates]
    assert {shape["num_hidden_layers"] for shape in shapes} == {1, 2}
    sizes = [[shape[n] for n in ("hidden_size", "intermediate_size", "num_hidden_layers")] for shape in shapes]
    for one in sizes:
        assert not any(other != one and all(a <= b for a, b in zip(one, other, strict=True)) for other in sizes)


def test_candidates_are_as_many_as_asked_for_and_far_apart(tiny_bert: BertForMaskedLM) -> None:
    every = propose(tiny_bert, Target(params="50%"), round_to=2).candidates
    few = propose(tiny_bert, Target(params="50%"), round_to=2, most=2).candidates
    assert few == every[:2]
    widths = [each.shape["hidden_size"] for each in every]
    assert abs(widths[1] - widths[0]) == max(abs(width - widths[0]) for width in widths)


@pytest.mark.parametrize(
    "target",
    [
        Target(encoder_params="30%"),
        Target(bytes="40%"),
        Target(params="70%", bytes=20_000),
        Target(params="50%", encoder_params="30%"),
        Target(params="40%", encoder_params="90%"),  # the encoder may have more than all together: it never decides
    ],
)
def test_other_counts_are_targets_too_and_all_must_hold(tiny_bert: BertForMaskedLM, target: Target) -> None:
    front = propose(tiny_bert, target, round_to=2)
    for student in planned(front):
        size = model_size(student)
        needs = {"params": size.total, "encoder_params": size.encoder, "bytes": size.bytes}
        assert all(needs[name] <= most for name, most in front.limits.items())
    assert max(each.filled for each in front.candidates) > 0.9


def test_a_latency_is_filled_by_few_measurements(tiny_bert: BertForMaskedLM) -> None:
    measured: list[tuple[int, int]] = []

    def timer(config: PretrainedConfig) -> Timing:
        measured.append((config.hidden_size, config.intermediate_size))
        return clockwork(config)

    front = propose(tiny_bert, Target(latency_ms=3.0), round_to=1, timer=timer)
    assert len(measured) < 10 * front.tried
    for candidate in front.candidates:
        assert 3.0 * 0.85 <= candidate.needs["latency_ms"] <= 3.0


def test_memory_is_filled_by_counting_what_is_alive(tiny_bert: BertForMaskedLM) -> None:
    front = propose(tiny_bert, Target(memory="50%", batch=2, length=16), round_to=2, most=3)
    for candidate in front.candidates:
        assert candidate.needs["bytes"] < candidate.needs["memory"] <= front.limits["memory"]


def test_too_small_a_target_is_refused_with_the_least_and_what_dominates(tiny_bert: BertForMaskedLM) -> None:
    with pytest.raises(ConfigError) as refusal:
        propose(tiny_bert, Target(params=100), round_to=8)
    text = str(refusal.value)
    assert "params=100 cannot be reached" in text
    least = model_size(Space.of(tiny_bert, round_to=8).skeleton({"hidden_size": 8, "num_attention_heads": 4,
        "intermediate_size": 8, "num_hidden_layers": 1})).total  # fmt: skip
    assert f"has {least:,} parameters" in text
    assert "bert.embeddings.word_embeddings.weight 480" in text
    assert "cut what is largest" in text


def test_of_several_targets_a_refusal_names_those_that_cannot_be_reached(tiny_bert: BertForMaskedLM) -> None:
    with pytest.raises(ConfigError, match="Target: params=100 cannot be reached"):
        propose(tiny_bert, Target(params=100, encoder_params="50%"), round_to=8)


def test_encoder_decoders_have_one_candidate_and_are_told_why() -> None:
    front = propose(bart(0), Target(params="40%"), round_to=2)
    assert len(front.candidates) == 1
    assert "All sizes shrink by one scale" in str(front)
    assert model_size(planned(front)[0]).total <= front.limits["params"]


def test_the_cost_of_rounding_is_told(tiny_bert: BertForMaskedLM) -> None:
    front = propose(tiny_bert, Target(params="50%"), round_to=8)
    unused = [1 - each.filled for each in front.candidates]
    assert f"multiples of 8, which leaves {min(unused):.1%} to {max(unused):.1%} of the target unused" in str(front)
    widths = {each.shape["hidden_size"] // each.shape["num_attention_heads"] for each in front.candidates}
    others = ", ".join(map(str, sorted(widths - {6})))
    assert others
    assert f"Heads are as wide as the teacher's, 6, or multiples of 2 ({others})." in str(front)


def test_a_candidate_that_was_measured_in_a_slow_moment_goes(tiny_bert: BertForMaskedLM) -> None:
    seen: dict[tuple[int, int], int] = {}

    def timer(config: PretrainedConfig) -> Timing:
        """Take a third longer the first time for narrow inner widths."""
        sizes = config.hidden_size, config.intermediate_size
        seen[sizes] = seen.get(sizes, 0) + 1
        slow = 4 / 3 if seen[sizes] == 1 and config.intermediate_size < 30 else 1.0
        return Timing(slow * clockwork(config).ms, 0.0, 0.0)

    front = propose(tiny_bert, Target(latency_ms=3.0), round_to=1, timer=timer)
    assert all(2.55 <= each.needs["latency_ms"] <= 3.0 for each in front.candidates)
    assert all(each.shape["intermediate_size"] >= 30 for each in front.candidates)

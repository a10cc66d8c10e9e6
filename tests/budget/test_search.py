"""A search halves its candidates, keeps to its time, and says why the winner won."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from imitations import made_strong
from matplotlib import image
from matplotlib.figure import Figure
from torch import Tensor
from transformers import BertConfig, BertForMaskedLM, BertModel

from wid_hf import ConfigError, DataError, PlanError, WidConfig, get_wid_model
from wid_hf.adapter import layers_kept
from wid_hf.budget import Front, Space, Target, propose, search
from wid_hf.budget.front import filled
from wid_hf.budget.halving import halved
from wid_hf.budget.survey import FOLLOWING, ORDERING, Survey
from wid_hf.calibration.divergence import divergence, output_divergence
from wid_hf.calibration.division import parted, spread
from wid_hf.plots.front import draw_front


@pytest.fixture
def front(tiny_bert: BertForMaskedLM) -> Front:
    return propose(made_strong(tiny_bert), Target(params="50%"), round_to=2, most=4)


def batches(count: int = 8) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [{"input_ids": torch.randint(5, 60, (8, 12), generator=generator)} for _ in range(count)]


class Clock:
    """Goes on by a second each time it is read."""

    now = 0.0

    def __call__(self) -> float:
        self.now += 1.0
        return self.now


def test_the_winner_has_seen_most_texts_and_is_nearest(front: Front) -> None:
    found = search(front, batches())
    assert (found.texts, found.held_out) == ((24, 48), 16)
    assert len(found.scored) == len(front.candidates) == 4
    assert [len(each.scores) for each in found.scored] == [2, 2, 1, 1]
    assert found.scored[0].scores[-1] <= found.scored[1].scores[-1]
    first = [each.scores[0] for each in found.scored]
    assert max(first[:2]) <= min(first[2:])
    assert found.measure == "KL of the scores, nats"
    assert found.winner == found.scored[0].candidate.shape


def test_candidates_of_an_encoder_are_compared_in_one_measure_whatever_their_width(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(0)
    sizes = {"vocab_size": 60, "hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 3}
    encoder = made_strong(BertModel(BertConfig(**sizes, num_attention_heads=4)).eval())
    widths: dict[int, str] = {}

    def noted(teacher: Any, student: Any, held_out: Any) -> tuple[float, str]:
        found = output_divergence(teacher, student, held_out)
        widths[student[0].last_hidden_state.shape[-1]] = found[1]
        return found

    monkeypatch.setattr("wid_hf.budget.halving.output_divergence", noted)

    search(propose(encoder, Target(params="60%"), round_to=2, most=8), batches(4))

    assert 24 in widths and len(widths) > 1
    assert set(widths.values()) == {"1 - correlation of cosines"}


def test_the_guess_is_compared_on_all_texts_however_few_texts_judge_it(
    front: Front, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = {id(each): 1.0 + at for at, each in enumerate(reversed(front.candidates))}  # the guess is the worst
    monkeypatch.setattr("wid_hf.budget.halving._Search._score", lambda self, each, some: scores[id(each)])

    found = search(front, batches())

    finalists = [each.candidate for each in found.scored if each.texts[-1:] == (found.texts[-1],)]
    assert front.guess in finalists and len(finalists) == 2
    assert found.winner == front.candidates[-1].shape


def test_the_winners_config_makes_the_student(front: Front) -> None:
    found = search(front, batches(4))
    student = get_wid_model(front.space.teacher, found.config).base_model.model
    sizes = found.winner
    assert (student.config.hidden_size, student.config.intermediate_size) == (
        sizes["hidden_size"],
        sizes["intermediate_size"],
    )


def test_a_search_is_the_same_each_time_and_leaves_the_teacher_alone(front: Front) -> None:
    before = {name: weight.clone() for name, weight in front.space.teacher.named_parameters()}
    first, second = (search(front, batches(4)) for _ in range(2))
    assert [each.scores for each in first.scored] == [each.scores for each in second.scored]
    assert all(torch.equal(before[name], weight) for name, weight in front.space.teacher.named_parameters())


def test_layers_are_chosen_once_for_all_candidates_as_calibrate_chooses_them(
    tiny_bert: BertForMaskedLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = {**tiny_bert.config.to_dict(), "num_hidden_layers": 4}
    teacher = made_strong(BertForMaskedLM(BertConfig(**sizes)).eval())
    front = propose(teacher, Target(params="60%"), round_to=8, layers=(4,))
    shapes = [{"hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": depth} for depth in (1, 2, 3)]
    calls: list[int] = []
    choose = layers_kept.choose_layers
    monkeypatch.setattr(layers_kept, "choose_layers", lambda *a, **k: (calls.append(1), choose(*a, **k))[1])
    found = search(replace(front, candidates=tuple(replace(front.guess, shape=each) for each in shapes)), batches())
    assert calls == [1]
    assert found.order is not None and len(found.order.gone) == 3
    count = found.winner["num_hidden_layers"]
    assert found.config.layers == found.order.kept(count)
    alone = get_wid_model(teacher, WidConfig(num_hidden_layers=count))
    alone.base_model.calibrate(parted(spread(batches()), 48)[0])
    assert found.config.layers == [*alone.base_model.stacks[0].kept]


def test_one_survey_serves_all_targets_and_decides_as_one_for_each(tiny_bert: BertForMaskedLM) -> None:
    sizes = {**tiny_bert.config.to_dict(), "num_hidden_layers": 4}
    teacher = made_strong(BertForMaskedLM(BertConfig(**sizes)).eval())
    space = Space.of(teacher, round_to=8)
    fronts = [filled(space, Target(params=share), most=3) for share in ("80%", "40%")]
    forwards: list[int] = []
    hook = teacher.register_forward_hook(lambda *_: forwards.append(1))
    survey = Survey.of(fronts, batches(), seconds=900.0)
    hook.remove()
    assert forwards
    depths = [each.shape["num_hidden_layers"] for front in fronts for each in front.candidates]
    assert survey.order is not None and len(survey.order.gone) == 4 - min(depths) > 0
    for front in fronts:
        shared, alone = halved(front, survey), search(front, batches())
        assert [each.scores for each in shared.scored] == [each.scores for each in alone.scored]
        assert shared.config == alone.config
        assert shared.spent[FOLLOWING] == survey.spent[FOLLOWING]


def test_a_survey_counts_as_a_part_of_the_time_of_each_search(front: Front) -> None:
    survey = Survey.of([front, front], batches(4), seconds=1.0, clock=Clock())
    assert survey.spent == {FOLLOWING: 0.5, ORDERING: 0.5}
    costly = replace(survey, spent={FOLLOWING: 7.0, ORDERING: 0.0})
    assert [len(each.scores) for each in halved(front, costly, seconds=7.5, clock=Clock()).scored] == [1, 0, 0, 0]


def test_depth_alone_is_a_candidate_and_is_scored_as_calibrate_makes_it(tiny_bert: BertForMaskedLM) -> None:
    teacher = made_strong(tiny_bert)
    front = propose(teacher, Target(params="99%"), round_to=8)
    one = next(
        each
        for each in front.candidates
        if (each.shape["hidden_size"], each.shape["intermediate_size"], each.shape["num_hidden_layers"]) == (24, 48, 1)
    )
    found = search(replace(front, candidates=(one,)), batches())
    given, held_out = parted(spread(batches()), 48)
    model = get_wid_model(teacher, found.config, calibration_data=given)
    with torch.no_grad():
        outputs = [[[seen(**batch).logits] for batch in held_out] for seen in (teacher, model)]
    assert found.scored[0].scores[0] == pytest.approx(divergence(*outputs, held_out)[0], rel=1e-4)


def test_layers_of_other_kinds_lose_with_the_reason_and_the_others_go_on(
    front: Front, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise PlanError("- layers of this model differ in kind")

    monkeypatch.setattr(layers_kept, "choose_layers", refuse)
    found = search(front, batches(4))
    for each in found.scored:
        is_shallow = each.candidate.shape["num_hidden_layers"] < 2
        assert (each.note == "refused: - layers of this model differ in kind") == is_shallow != bool(each.scores)


def test_time_is_exceeded_by_no_more_than_one_candidate(front: Front) -> None:
    found = search(front, batches(4), seconds=1.0, clock=Clock())
    assert [len(each.scores) for each in found.scored] == [1, 0, 0, 0]
    assert "only candidate that could be tried in 1 s" in found.reason
    assert "3 candidates were not tried" in found.time_in_words
    assert found.rows()[2][2] == "not tried"


def test_short_texts_are_enough_even_at_the_first_rung(tiny_bert: BertForMaskedLM) -> None:
    generator = torch.Generator().manual_seed(0)
    short = [{"input_ids": torch.randint(5, 60, (8, 3), generator=generator)} for _ in range(16)]
    front = propose(made_strong(tiny_bert), Target(params="50%"), round_to=2, most=4)
    widest = max(each.shape["intermediate_size"] for each in front.candidates)
    found = search(front, short)
    assert found.texts[0] * 3 >= 2.5 * widest
    assert found.texts[-1] == 96


def test_a_rung_that_has_too_few_texts_is_left_out(front: Front, monkeypatch: pytest.MonkeyPatch) -> None:
    def needs_many(self: Any, candidate: Any, some: Any) -> float:
        if sum(len(batch["input_ids"]) for batch in some) < 48:
            raise DataError("too few")
        return 1.0

    monkeypatch.setattr("wid_hf.budget.halving._Search._score", needs_many)
    assert [each.texts for each in search(front, batches()).scored] == [(48,)] * 4
    with pytest.raises(DataError, match="too few"):
        search(front, batches(4))


def test_the_last_two_see_all_texts_at_once(front: Front) -> None:
    candidates = (*front.candidates, *front.candidates, *front.candidates[:1])
    found = search(replace(front, candidates=candidates), batches(16), seconds=40.0, clock=Clock())
    assert found.texts == (12, 24, 48, 96)
    assert found.scored[0].texts in ((12, 96), (12, 24, 96))
    assert found.scored[0].texts == found.scored[1].texts
    assert "after calibration on 96" in found.reason


def test_two_are_compared_on_equal_texts_even_if_the_time_of_a_rung_is_over(
    front: Front, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    tried: list[int] = []

    def tenths(self: Any, candidate: Any, some: Any) -> float:
        """Take a tenth of the time; later ones are nearer."""
        clock.now += 100.0
        tried.append(sum(len(batch["input_ids"]) for batch in some))
        return 1.0 / len(tried)

    monkeypatch.setattr("wid_hf.budget.halving._Search._score", tenths)
    found = search(front, batches(), seconds=450.0, clock=clock)
    assert tried == [24, 24, 24, 48, 48]  # the first rung may take 225 s
    assert [len(each.scores) for each in found.scored] == [2, 2, 1, 0]


def test_a_shape_that_the_plan_refuses_loses_with_its_reason(front: Front) -> None:
    shape = {**front.guess.shape, "hidden_size": 10, "num_attention_heads": 4}  # 10 does not divide into 4 heads
    wrong = replace(front, candidates=(replace(front.guess, shape=shape), *front.candidates[1:]))
    found = search(wrong, batches(4))
    lost = next(each for each in found.scored if each.candidate.shape == shape)
    assert not lost.scores
    assert lost.note.startswith("refused: ")
    with pytest.raises(PlanError, match="None of the 1 shapes that fill the target can be planned"):
        search(replace(wrong, candidates=wrong.candidates[:1]), batches(4))


def test_table_reason_and_json_say_the_same(front: Front) -> None:
    found = search(front, batches(4))
    header, best, *_ = found.rows()
    assert header == ("", "parameters", "divergence", "texts", "seconds", "sizes")
    assert best[0] == "winner"
    assert f"hidden_size={found.winner['hidden_size']}" in best[-1]
    assert best[-1] in found.reason
    assert f"the least of {len(found.scored)} shapes" in found.reason
    saved = json.loads(json.dumps(found.to_dict()))
    assert saved["winner"] == dict(found.winner)
    assert [each["scores"] for each in saved["candidates"]] == [[*each.scores] for each in found.scored]
    assert sum(saved["spent"].values()) > 0


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        ({"batches": []}, DataError, "A search needs two texts or more"),
        ({"batches": [{"input_ids": torch.ones(1, 4, dtype=torch.long)}]}, DataError, "two texts or more"),
        ({"seconds": 0}, ConfigError, "seconds=0 is not a number above 0"),
    ],
)
def test_bad_input_is_refused(front: Front, given: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        search(front, given.get("batches", batches(2)), seconds=given.get("seconds", 9.0))


def test_the_picture_has_every_scored_candidate_and_marks_the_winner(
    front: Front, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[Figure] = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda figure, *a, **k: (kept.append(figure), save(figure, *a, **k)))
    found = search(front, batches(4))
    draw_front(found, tmp_path / "front.png")
    assert image.imread(tmp_path / "front.png").std() > 0
    axes = kept[0].axes[0]
    drawn = [tuple(point) for group in axes.collections for point in group.get_offsets().tolist()]
    wanted = [(each.candidate.needs["params"] / 1e6, each.scores[-1]) for each in found.scored]
    for point, given in zip(sorted(drawn[: len(wanted)]), sorted(wanted), strict=True):
        assert point == pytest.approx(given)
    assert drawn[-1] == pytest.approx(wanted[0])
    assert axes.get_title().endswith(f"winner: {found.rows()[1][-1]}")

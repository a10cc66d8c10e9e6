"""`python benchmarks/speed` on tiny models: every variant computes what it should, and the files say what is shown."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from benchmark_command import load_command
from torch import nn
from toys import noisy

pytestmark = pytest.mark.slow  # of benchmarks, not of the library

FOLDER = Path(__file__).parents[2] / "benchmarks" / "speed"
CPU = torch.device("cpu")
VARIANTS = ["bare", "narrow", "wide", "activations", "reference", "teacher"]


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps are measured in this process: starting another takes seconds."""
    import measure

    def work_here(work: Any, *given: Any, **_: Any) -> Any:
        try:
            return work(*given)
        except torch.OutOfMemoryError:
            return None

    monkeypatch.setattr(measure, "in_own_process", work_here)


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """`benchmarks/speed/__main__.py` for a tiny teacher, with a folder of its own for records."""
    module = load_command(FOLDER)
    monkeypatch.setattr(module, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(module, "BASE", sizes())
    return module


def sizes() -> Any:
    from cases import Sizes

    return Sizes(layers=2, width=12, teacher_width=24, heads=4, vocabulary=60)


def a_case(**changes: Any) -> Any:
    from cases import Case

    return Case(**{"sizes": sizes(), "rows": 4, "length": 16, **changes})


def made(name: str, case: Any) -> Any:
    """A variant without dropout."""
    from variants import VARIANTS

    variant = VARIANTS[name](case, CPU)
    for module in variant.model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return variant


@pytest.mark.parametrize(("folded", "in_activation_space"), [("narrow", "activations"), ("wide", "reference")])
def test_a_folded_step_is_the_one_in_activation_space(folded: str, in_activation_space: str) -> None:
    case = a_case()
    folds, through = made(folded, case), made(in_activation_space, case)
    noisy(folds.model)
    same = dict(zip(through.trained, folds.trained, strict=True))
    assert len(same) == len(folds.trained)
    with torch.no_grad():
        for theirs, ours in same.items():
            theirs.copy_(ours)
    (batch,) = case.batches(CPU)
    folds.model.eval(), through.model.eval()
    ours, theirs = folds.model(**batch), through.model(**batch)
    assert (ours.logits - theirs.logits).abs().max() < 1e-4
    assert ours.logits.std() > 1e-2
    ours.loss.backward(), theirs.loss.backward()
    for theirs, ours in same.items():
        assert (theirs.grad - ours.grad).norm() <= 1e-4 * ours.grad.norm() + 1e-7


@pytest.mark.parametrize(("name", "like"), [("narrow", "bare"), ("wide", "teacher")])
def test_folded_models_start_as_the_stock_models_beside_them(name: str, like: str) -> None:
    case = a_case()
    folded, stock = made(name, case), made(like, case)
    assert type(stock.model).__module__.startswith("transformers.")
    (batch,) = case.batches(CPU)
    assert torch.allclose(folded.loss(batch), stock.loss(batch), atol=1e-5)


@pytest.mark.parametrize("name", VARIANTS)
def test_heads_on_labelled_positions_have_the_same_loss_for_fewer_products(name: str) -> None:
    full, labelled = (made(name, a_case(logits=logits)) for logits in ("full", "labelled"))
    batches = a_case().batches(CPU)
    assert torch.allclose(full.loss(batches[0]), labelled.loss(batches[0]), atol=1e-5)
    assert labelled.counted_step(batches) < full.counted_step(batches)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("name", VARIANTS)
def test_a_step_trains_all_that_is_to_train_and_frees_its_gradients(name: str, dtype: str) -> None:
    case = a_case(dtype=dtype, micro_batches=2)
    variant = made(name, case)
    before = [parameter.detach().clone() for parameter in variant.trained]
    for _ in range(2):
        variant.step(case.batches(CPU))
    changed = [not torch.equal(a, b) for a, b in zip(before, variant.trained, strict=True)]
    assert all(changed)
    assert all(parameter.grad is None for parameter in variant.trained)
    if name == "wide":
        assert variant.model.base_model.is_wide
        assert any(len(kept) < 24 for kept in variant.model.base_model.progress.index_sets().values())


@pytest.mark.parametrize("name", ["narrow", "wide", "activations", "reference"])
def test_a_frozen_teacher_stays_and_has_no_optimizer_state(name: str) -> None:
    from measure import _added

    trained, frozen = (made(name, a_case(teacher=teacher)) for teacher in ("trained", "frozen"))
    teacher = list(frozen.model.base_model.teacher.parameters())
    before = [weight.detach().clone() for weight in teacher]
    frozen.step(a_case().batches(CPU))
    assert all(torch.equal(a, b) for a, b in zip(before, teacher, strict=True))
    assert not set(frozen.optimizer.state) & set(teacher)
    bytes_of_teacher = sum(weight.numel() * weight.element_size() for weight in teacher)
    assert _added(trained.model) - _added(frozen.model) == 2 * bytes_of_teacher


def test_two_micro_batches_move_the_weights_as_their_union_does() -> None:
    halves, whole = made("narrow", a_case(micro_batches=2)), made("narrow", a_case())
    batches = a_case(micro_batches=2).batches(CPU)
    for batch in batches:
        batch["labels"] = batch["input_ids"]  # as many in one as in the other
    union = {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}
    halves.optimizer = torch.optim.SGD(halves.trained, lr=0.1)  # Adam would hide the size of gradients
    whole.optimizer = torch.optim.SGD(whole.trained, lr=0.1)
    halves.step(batches)
    whole.step([union])
    for a, b in zip(halves.trained, whole.trained, strict=True):
        assert (a - b).norm() <= 1e-5 * b.norm() + 1e-7


@pytest.mark.usefixtures("here")
def test_products_of_the_fold_are_counted_once_a_step_and_those_of_tokens_with_each_batch() -> None:
    from measure import measure_steps

    from wid_hf.layers import Compactor
    from wid_hf.layers.fold import cheapest_order, multiplications
    from wid_hf.layers.folded_weight import places

    once, twice = (
        measure_steps(a_case(rows=40, micro_batches=count), ["bare", "narrow"], rounds=1, warm_up=0) for count in (1, 2)
    )
    assert twice["bare"]["step_flops"] == 2 * once["bare"]["step_flops"] > 0
    assert once["narrow"]["fold_flops"] == twice["narrow"]["fold_flops"]
    forward = 0
    originals = {place.weight: place.original for place in places(made("narrow", a_case()).model)}
    for weight, original in originals.items():
        maps = {int(axis): len(map.matrix) for axis, map in weight.maps.items() if isinstance(map, Compactor)}
        if original.ndim > 1:  # a matrix times a vector is not counted
            forward += multiplications(original.shape, maps, cheapest_order(original.shape, maps))
    # Forward once; backward the first of two products anew, and two products for each of them.
    assert 3 * 2 * forward <= once["narrow"]["fold_flops"] <= 4 * 2 * forward


@pytest.mark.usefixtures("here")
def test_the_page_shows_what_the_records_hold(
    command: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "speed.md"
    asked: dict[str, Any] = {
        "layers": [1],
        "width": [12],
        "batch": ["2x16"],
        "dtype": ["fp32"],
        "variant": ["narrow"],
        "rounds": 2,
        "calibration_rows": 8,
        "memory": False,
        "output": page,
    }
    command.main(**asked)
    first = page.read_text()
    rows = [line.strip("| ").split(" | ") for line in first.splitlines() if line.startswith("| 1 |")]
    records = [json.loads(file.read_text()) for file in (tmp_path / "results" / "speed").iterdir()]
    once = next(record["once"] for record in records if "once" in record)
    assert list(once) == ["plan", "calibration", "save adapter", "merge", "save student"]
    steps = {record["settings"]["teacher"]: record["variants"] for record in records if "variants" in record}
    assert set(steps) == {"frozen", "trained"}
    shown = 0
    for cells in rows:
        _, width, batch, dtype, teacher, what, seconds, *rest = (cell.strip() for cell in cells)
        assert width == "24 → 12"
        if what in once:
            assert seconds == f"{once[what]:.3f}"
        else:
            made = steps[teacher][what]
            assert (batch, dtype) == ("2x16", "fp32")
            assert seconds.startswith(f"{made['seconds']:.3f} (")
            assert rest[0] == f"{made['tokens_per_second']:,.0f}"
            assert rest[1].startswith(f"{made['ratio']:.2f} ({made['least_ratio']:.2f} to ")
            assert made["tokens_per_second"] == pytest.approx(32 / made["seconds"])
            assert made["least_seconds"] <= made["seconds"] <= made["greatest_seconds"]
            assert made["ratio"] == pytest.approx(made["seconds"] / steps[teacher]["bare"]["seconds"])
        shown += 1
    assert shown == len(once) + 2 * 2
    assert "bare" in capsys.readouterr().out

    command.measure_steps = command.measure_once = lambda *_: pytest.fail("measured again")
    command.main(**asked)
    assert page.read_text() == first
    with pytest.raises(BaseException, match="measured again"):
        command.main(**asked, anew=True)


@pytest.mark.usefixtures("here")
def test_what_does_not_fit_into_memory_together_is_said_and_the_rest_goes_on(
    command: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import measure

    steps, page = measure._steps, tmp_path / "speed.md"

    def too_much(case: Any, *given: Any) -> Any:
        if case.teacher == "trained":
            raise torch.OutOfMemoryError
        return steps(case, *given)

    monkeypatch.setattr(measure, "_steps", too_much)
    command.main(
        layers=[1],
        width=[12],
        batch=["2x16"],
        dtype=["fp32"],
        variant=["narrow"],
        rounds=1,
        calibration_rows=0,
        memory=False,
        output=page,
    )
    rows = [[cell.strip() for cell in line.split("|")] for line in page.read_text().splitlines()]
    told = {(cells[5], cells[6]): cells[7] for cells in rows if len(cells) > 7 and cells[1] == "1"}
    assert set(told) == {(teacher, name) for teacher in ("frozen", "trained") for name in ("bare", "narrow")}
    for (teacher, _), seconds in told.items():
        assert (seconds == "out of memory") == (teacher == "trained")


def test_a_process_that_is_killed_for_its_memory_gives_nothing_and_any_other_what_it_found() -> None:
    from own_process import in_own_process

    before = dict(os.environ)
    assert in_own_process(os.getenv, "WID_HF_TEST", environment={"WID_HF_TEST": "1"}) == "1"
    assert in_own_process(torch.get_num_threads) == torch.get_num_threads()
    assert in_own_process(os._exit, 9) is None
    assert dict(os.environ) == before


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(("ratio", "measured"), [(0.5, {"fp32", "bf16"}), (20.0, {"fp32"})])
def test_bf16_is_left_out_where_it_is_slower_unless_it_is_asked_for(
    command: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ratio: float, measured: set[str]
) -> None:
    monkeypatch.setattr(command, "bf16_ratio", lambda _: ratio)
    page = tmp_path / "speed.md"
    asked: dict[str, Any] = {
        "layers": [1],
        "width": [12],
        "batch": ["2x16"],
        "variant": ["narrow"],
        "rounds": 1,
        "calibration_rows": 0,
        "memory": False,
        "output": page,
    }

    def dtypes() -> set[str]:
        files = (tmp_path / "results" / "speed").iterdir()
        return {json.loads(file.read_text())["settings"]["dtype"] for file in files}

    command.main(**asked)
    assert dtypes() == measured
    assert ("take 20 times as long" in page.read_text()) == (measured == {"fp32"})
    command.main(**asked, dtype=["bf16"])
    assert dtypes() == measured | {"bf16"}
    assert [line for line in page.read_text().splitlines() if line.endswith("1 layers, bf16, narrow")]


def test_a_product_in_bf16_is_timed_beside_one_in_fp32() -> None:
    from measure import bf16_ratio

    assert 0 < bf16_ratio(CPU, 64) < float("inf")


@pytest.mark.slow
def test_memory_of_a_step_is_that_of_a_process_of_its_own(command: ModuleType) -> None:
    from measure import measure_memory

    large = command.replace(sizes(), teacher_width=768, heads=12, width=192, layers=1, vocabulary=4096)
    found = measure_memory(a_case(sizes=large, rows=32, length=128), ["bare", "narrow", "teacher"])
    peaks = {name: record["peak_gigabytes"] for name, record in found.items()}
    weights = 4 * (4096 * 768 + 12 * 768**2) / 1e9  # of the teacher, without what is small
    assert peaks["teacher"] > 4 * weights  # weights, gradients and two moments
    assert peaks["bare"] < peaks["narrow"] < found["narrow"]["allowed_gigabytes"]
    assert found["narrow"]["allowed_gigabytes"] > peaks["bare"] + 3 * weights


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"width": [10]}, "--width 10: give a multiple of 4"),
        ({"width": [24]}, "below 24"),
        ({"batch": ["8*128"]}, "such as 32x128"),
        ({"batch": ["8x513"]}, "at most 512"),
        ({"dtype": ["fp8"]}, "--dtype fp8 is none of fp32, bf16"),
        ({"teacher": ["melted"]}, "--teacher melted is none of frozen, trained"),
        ({"logits": "some"}, "--logits some is none of full, labelled"),
        ({"logits": "labelled", "compiled": True}, "leave out --logits labelled"),
        ({"compile_mode": "most"}, "--compile-mode most is none of default, reduce-overhead"),
        ({"variant": ["fast"]}, "--variant fast is none of bare, narrow"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_anything_is(
    command: ModuleType, tmp_path: Path, asked: dict[str, Any], told: str
) -> None:
    with pytest.raises(command.typer.BadParameter, match=told.replace("*", r"\*")):
        command.main(**{"width": [12], **asked}, output=tmp_path / "page.md")
    assert not list(tmp_path.iterdir())

"""A sample of what `python benchmarks/architectures` runs: the whole path of twelve families; slowly, all of it."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest
from ask import asks, is_hidden, wanted
from benchmark_command import load_command
from check import TooSlow, Verdict, check, verdict
from fewer import Fewer, Found, asked, fewer_verdict
from tiny import TASKS, families, tiny_config
from transformers import CLIPConfig, LlamaConfig, Mamba2Config, ResNetConfig, SwinConfig

SAMPLE = [
    ("masked LM", "bert"),
    ("masked LM", "deberta-v2"),
    ("masked LM", "modernbert"),
    ("causal LM", "gemma2"),
    ("causal LM", "gpt_neox"),
    ("causal LM", "llama"),
    ("causal LM", "mamba"),
    ("causal LM", "mixtral"),
    ("seq2seq LM", "bart"),
    ("seq2seq LM", "t5"),
    ("image classification", "vit"),
    ("question answering", "roberta"),
]
FEWER = [("masked LM", "bert", "num_hidden_layers"), ("image classification", "swin", "depths.3")]
QUICK = {"bert", "llama", "vit"}


def found_for(task: str, family: str) -> Verdict:
    return verdict(family, task, families(task)[family])


FOLDER = Path(__file__).parents[2] / "benchmarks" / "architectures"  # of modules that import those of `shared`


@pytest.fixture(scope="module")
def harness() -> ModuleType:
    return load_command(FOLDER)


@pytest.mark.parametrize(
    ("task", "family"),
    [
        pytest.param(task, family, id=f"{task}-{family}", marks=() if family in QUICK else pytest.mark.slow)
        for task, family in SAMPLE
    ],
)
def test_a_tiny_model_goes_the_whole_way_from_plan_to_reload(task: str, family: str) -> None:
    found = found_for(task, family)
    assert found.status == "works", found
    assert found.hidden, found
    assert found.default, found


def test_a_family_with_an_operation_that_has_no_rule_is_refused_by_name() -> None:
    found = found_for("masked LM", "fnet")
    assert found.status == "partly"
    assert found.widths == ("intermediate_size",)
    assert not found.hidden
    assert "aten._fft" in found.reason
    assert "fnet.encoder.layer.0.fourier.self" in found.reason


def test_a_merge_that_changed_an_output_would_be_called_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter([True, False])  # a student of full size is the teacher; merging changes what it computes
    monkeypatch.setattr("check.equal", lambda *_, **__: next(answers))
    found = found_for("masked LM", "bert")
    assert found.status == "wrong"
    assert "merging changed the outputs" in found.reason


def test_a_student_of_full_size_that_is_not_its_teacher_would_be_called_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("check.first_indices", lambda plan: {})
    monkeypatch.setattr("check.install", lambda *_: None)  # the student keeps its zeros
    found = found_for("masked LM", "bert")
    assert found.status == "wrong"
    assert "is not the teacher" in found.reason


def test_a_family_that_takes_too_long_is_not_called_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Planning takes what a model's class raises for its refusal; the alarm that rings meanwhile is none."""

    def slow(*_: object) -> None:
        raise TooSlow("took more than 60 s")

    monkeypatch.setattr("wid_hf.planning.tracing.further_examples", slow)
    found = check("bert", "masked LM", "BertForMaskedLM")
    assert (found.status, found.reason) == ("not built", "the tiny model is too slow: took more than 60 s")


def test_tiny_configs_keep_the_ratios_of_heads_to_widths() -> None:
    config = tiny_config(LlamaConfig)
    full = LlamaConfig()
    assert config.hidden_size % config.num_attention_heads == 0
    assert config.head_dim * config.num_attention_heads == config.hidden_size
    assert config.intermediate_size / config.hidden_size == full.intermediate_size / full.hidden_size
    assert config.head_dim >= 8
    assert config.head_dim % 4 == 0


def test_lists_of_widths_are_halved_and_numbers_of_layers_are_not() -> None:
    sizes = asks(ResNetConfig(embedding_size=16, hidden_sizes=[32, 64], depths=[2, 2]))[0]
    assert sizes == {"embedding_size": 8, "hidden_sizes": [16, 32]}


def test_every_part_of_a_composite_model_is_asked_for_first_and_single_parts_later() -> None:
    config = tiny_config(CLIPConfig)
    names = {"text_config.hidden_size", "vision_config.hidden_size"}
    assert names < wanted(config)
    assert all(is_hidden(config, name) for name in names)
    assert not is_hidden(config, "text_config.intermediate_size")
    asked = [sizes.keys() for sizes in asks(config)]
    assert asked[0] == {"text_config", "vision_config"}
    assert {"text_config"} in asked


def test_the_width_that_a_computed_hidden_size_follows_is_a_hidden_size() -> None:
    assert {"embed_dim"} < wanted(SwinConfig())


def test_heads_that_fill_the_expanded_hidden_size_shrink_with_it() -> None:
    config = tiny_config(Mamba2Config)
    assert asks(config)[0]["num_heads"] * 2 == config.num_heads


def test_the_summary_counts_hidden_sizes_among_families_that_were_built(harness: ModuleType) -> None:
    rows = [
        Verdict("a", "t", "A", "works", ("hidden_size",), hidden=True, default="head"),
        Verdict("b", "t", "B", "works", ("hidden_size",), hidden=True),
        Verdict("c", "t", "C", "not built"),
    ]
    told = harness.summary("t", rows)
    assert all(fact in told for fact in ("2 of 2 built (100 %)", "by default: 1 (50 %)", "2 works", "1 not built"))


@pytest.mark.slow
def test_a_run_that_was_interrupted_goes_on_where_it_stopped(
    harness: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(harness, "ROOT", tmp_path)
    monkeypatch.setattr(harness, "_fingerprint", lambda: "code")
    store = tmp_path / ".cache" / "coverage" / "code.jsonl"
    (first,) = harness.run(["masked LM"], ["fnet"], 1)
    assert first.status == "partly"
    store.write_text(store.read_text().replace('"partly"', '"read back"'))
    (again,) = harness.run(["masked LM"], ["fnet"], 1)
    assert (again.status, again.widths) == ("read back", first.widths)


@pytest.mark.slow
def test_nearly_every_family_that_can_be_built_shrinks_its_hidden_size_and_none_is_wrong(harness: ModuleType) -> None:
    verdicts = list(harness.run(list(TASKS), None, 2))
    assert [found for found in verdicts if found.status == "wrong"] == []
    for task in TASKS:
        built = [found for found in verdicts if found.task == task and found.status != "not built"]
        # Of 12 audio classifiers one has positions that its code never uses, and what is not reached is frozen.
        least = {"masked LM": 0.95, "audio classification": 0.8}.get(task, 0.9)
        assert sum(found.hidden for found in built) >= least * len(built), task
        by_default = sum(bool(found.default) for found in built)
        assert by_default >= {"masked LM": 0.95, "causal LM": 0.9}.get(task, 0.7) * len(built), task
    for found in verdicts:
        assert found.reason or (found.status == "works" and found.default), found


@pytest.mark.parametrize(("task", "family", "entry"), FEWER)
def test_a_tiny_model_loses_a_layer_and_half_of_its_tokens(task: str, family: str, entry: str) -> None:
    found = fewer_verdict(family, task, families(task)[family])

    assert found.layers.status == "works", found
    assert entry in found.layers.entries
    assert found.tokens.status == ("works" if task == "masked LM" else "none")


def test_a_student_that_computes_something_else_without_a_layer_would_be_called_wrong(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("fewer.dropped_layers", lambda stacks: [])

    found = fewer_verdict("bert", "masked LM", "BertForMaskedLM")

    assert (found.layers.status, found.tokens.status) == ("wrong", "works")
    assert "not the teacher past the other layers" in found.layers.reason


def test_one_layer_fewer_is_asked_for_where_the_config_counts_them() -> None:
    config = SwinConfig(depths=[2, 6])
    assert asked(config, [("depths", 0), ("depths", 1)]) == {"overrides": {"depths": [1, 5]}}
    assert asked(LlamaConfig(num_hidden_layers=3), [("num_hidden_layers",)]) == {"num_hidden_layers": 2}
    parts = [("text_config", "num_hidden_layers"), ("vision_config", "num_hidden_layers")]
    assert asked(CLIPConfig(), parts) == {
        "overrides": {"text_config": {"num_hidden_layers": 11}, "vision_config": {"num_hidden_layers": 11}}
    }


def test_shares_leave_out_what_counts_no_layers_and_the_section_stays_when_the_page_is_written(
    harness: ModuleType, tmp_path: Path
) -> None:
    from fewer_page import MARK, fewer_lines, shares
    from page import write_between

    none, works = Found("none"), Found("works", entries=("num_hidden_layers",))
    rows = [
        Fewer("a", "t", "A", works, works),
        Fewer("b", "t", "B", Found("refused", "no | layer"), none),
        Fewer("c", "t", "C", none, Found("not built")),
    ]
    assert shares(rows)[0] == (
        "fewer layers: works for 1 of 2 whose config counts layers (50 %); 0 partly, 1 refused, 0 wrong; all built"
    )
    page = tmp_path / "coverage.md"
    page.write_text("# Coverage\nold\n")
    write_between(page, "", MARK, fewer_lines(rows, ["t"]))
    harness.write_page(page, "# Coverage\nnew\n")
    assert page.read_text().startswith("# Coverage\nnew\n")
    assert "| b | refused |  |  | no \\| layer |" in page.read_text()


@pytest.mark.slow
def test_what_is_not_settled_is_tried_again_by_another_version(
    harness: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(harness, "RECORDS", tmp_path)
    monkeypatch.setattr(harness, "library_version", lambda: "first")
    (first,) = harness.run_fewer(["masked LM"], ["bert"], 1, anew=False)
    assert first.layers.status == "works"
    store = tmp_path / "coverage" / "fewer.jsonl"
    store.write_text(store.read_text().replace('"works"', '"refused"'))

    assert harness.run_fewer(["masked LM"], ["bert"], 1, anew=False)[0].layers.status == "refused"
    monkeypatch.setattr(harness, "library_version", lambda: "second")
    assert harness.run_fewer(["masked LM"], ["bert"], 1, anew=False)[0] == first

"""Reports of numbers: that could not be repeated, that nobody told, or that counted something else."""

from __future__ import annotations

import json
from math import prod
from pathlib import Path

import torch
from case import case
from small import bert, compressed, program, save_teacher
from transformers import AutoModelForMaskedLM

from wid_hf import WidConfig, plan_student

KIND = "Numbers and reports"


def _report(folder: Path) -> dict:
    return json.loads((folder / "wid_report.json").read_text(encoding="utf-8"))


@case(
    KIND,
    "CoFiPruning#3, CoFiPruning#29, CoFiPruning#47, CoFiPruning#48, Pretrained-Language-Model#155",
    "Two runs with one seed: the same weights, losses and scores",
)
def seeds_repeat(folder: Path) -> None:
    teacher = save_teacher(folder / "teacher")
    reports = [compressed(teacher, folder / name, steps=4) for name in ("one", "other")]
    assert reports[0].scores == reports[1].scores
    assert reports[0].losses == reports[1].losses
    assert reports[0].fingerprints == reports[1].fingerprints
    assert reports[0].fingerprints["student"] != reports[0].fingerprints["teacher"]
    one, other = (AutoModelForMaskedLM.from_pretrained(folder / name).state_dict() for name in ("one", "other"))
    assert all(torch.equal(one[name], other[name]) for name in one)


@case(
    KIND,
    "LLM-Pruner#34, Pretrained-Language-Model#80",
    "What a run was made with: versions, seed, settings and command are in its report",
)
def what_a_run_was_made_with(folder: Path) -> None:
    teacher = save_teacher(folder / "teacher")
    program(
        "compress",
        teacher,
        "--train",
        folder / "texts.txt",
        "--hidden-size",
        "12",
        "--intermediate-size",
        "24",
        "--steps",
        "1",
        "--seed",
        "5",
        "--batch-size",
        "8",
        "--max-length",
        "16",
        "--validation-texts",
        "8",
        "--output",
        folder / "student",
    )
    told = _report(folder / "student")
    assert told["versions"]["torch"] == torch.__version__
    assert told["seed"] == 5
    assert told["settings"]["batch_size"] == 8
    assert all(word in told["command"] for word in ("compress", "--seed 5", "--hidden-size 12")), told["command"]


@case(
    KIND,
    "unilm#105, unilm#233, unilm#316, Pretrained-Language-Model#22, Pretrained-Language-Model#195",
    "What a training cost: steps, tokens and seconds in the report, the tokens counted without padding",
)
def what_a_training_cost(folder: Path) -> None:
    teacher = save_teacher(folder / "teacher")
    lines = [" ".join(f"w{(line + 2 * word) % 55 + 5}" for word in range(3 + 2 * (line % 2))) for line in range(120)]
    (folder / "texts.txt").write_text("\n".join(lines), encoding="utf-8")
    told = compressed(teacher, folder / "student", steps=3)
    assert told.steps == 3
    assert 3 * 8 * 3 <= told.tokens <= 3 * 8 * 5, told.tokens
    assert told.tokens % 2 == 0  # rows of three and of five
    assert 0 < told.seconds < 60
    assert [step for step, _ in told.losses][-1] == 3
    assert _report(folder / "student")["tokens"] == told.tokens


@case(
    KIND,
    "sentence-transformers#595, sentence-transformers#1143",
    "The size that is quoted is the size on disk; the encoder, without tables and head, is told beside it",
)
def sizes_in_all_and_of_the_encoder(folder: Path) -> None:
    teacher = save_teacher(folder / "teacher")
    told = compressed(teacher, folder / "student", steps=0).sizes
    for name, place in (("teacher", teacher), ("student", folder / "student")):
        model = AutoModelForMaskedLM.from_pretrained(place)
        tables = sum(table.weight.numel() for table in model.modules() if isinstance(table, torch.nn.Embedding))
        assert told[name].total == sum(weight.numel() for weight in model.parameters())
        assert told[name].encoder == sum(weight.numel() for weight in model.bert.parameters()) - tables
        assert told[name].encoder < told[name].total
        file = (place / "model.safetensors").stat().st_size
        assert told[name].bytes <= file < told[name].bytes + 20_000, (told[name].bytes, file)


@case(
    KIND,
    "sentence-transformers#1143, model2vec#108",
    "How small it will be is told by the plan, without training, and true of the student",
)
def the_plan_tells_the_size(folder: Path) -> None:
    teacher = save_teacher(folder / "teacher")
    printed = program("plan", teacher, "--hidden-size", "12", "--intermediate-size", "24")
    compressed(teacher, folder / "student", steps=0)
    student = AutoModelForMaskedLM.from_pretrained(folder / "student")
    total = sum(weight.numel() for weight in student.parameters())
    plan = plan_student(bert(), WidConfig(hidden_size=12, intermediate_size=24)).plan
    assert total == sum(prod(plan.shape(name)) for name, _ in student.named_parameters())
    assert f"{total:,}" in printed or str(total) in printed, printed


@case(
    KIND, "CoFiPruning#39, TextPruner#9", "How fast it is: seconds of a forward of teacher and student, both measured"
)
def latency_before_and_after(folder: Path) -> None:
    told = compressed(save_teacher(folder / "teacher"), folder / "student", steps=0).latency
    assert told is not None
    assert set(told.seconds) == {"teacher", "student"}
    assert all(0 < seconds < 10 for seconds in told.seconds.values())
    assert _report(folder / "student")["latency"]["seconds"] == told.seconds


@case(KIND, "model2vec#108", "Whether it is as good: scores of teacher, start and student on held-out texts")
def scores_before_and_after(folder: Path) -> None:
    teacher = save_teacher(folder / "teacher")
    told = compressed(teacher, folder / "student", steps=2).scores
    assert set(told) == {"teacher", "start", "student"}
    names = [set(figures) for figures in told.values()]
    assert names[0] == names[1] == names[2]

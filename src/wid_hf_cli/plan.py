"""`wid-hf plan`: what would shrink, how small it would get, how good and how long."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from . import options

if TYPE_CHECKING:
    from wid_hf.tools.plan_report import PlanReport

PLAIN: dict[str, Any] = {"soft_wrap": True, "markup": False, "highlight": False}


def plan(
    teacher: options.Teacher,
    hidden_size: options.HiddenSize = None,
    intermediate_size: options.IntermediateSize = None,
    heads: options.Heads = None,
    key_value_heads: options.KeyValueHeads = None,
    head_dim: options.HeadDim = None,
    head_strategy: options.Strategy = options.HeadStrategy.auto,
    num_hidden_layers: options.HiddenLayers = None,
    layers: options.Layers = None,
    overrides: options.Overrides = None,
    tie_word_embeddings: options.TieWordEmbeddings = None,
    params: options.Params = None,
    encoder_params: options.EncoderParams = None,
    bytes_on_disk: options.Bytes = None,
    latency_ms: options.LatencyMs = None,
    memory: options.Memory = None,
    target_batch: options.TargetBatch = 1,
    target_length: options.TargetLength = 128,
    round_to: options.RoundTo = None,
    train: Annotated[
        list[str] | None,
        typer.Option(
            help="Rows, as compress takes them: a target is searched for on them, and a training is measured."
        ),
    ] = None,
    seconds: options.SearchSeconds = 900.0,
    task: options.OfTask = options.Task.auto,
    column: options.Column = None,
    split: options.Split = "train",
    validation: options.Validation = None,
    validation_split: options.ValidationSplit = "validation",
    validation_texts: options.ValidationTexts = 256,
    batch_size: options.BatchSize = 32,
    max_length: options.MaxLength = 128,
    calibration_samples: options.CalibrationSamples = 256,
    calibration_batch_size: options.CalibrationBatchSize = 32,
    keep_last_good: options.LastGood = options.KeepLastGood.device,
    seed: options.Seed = 0,
    training: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            help="Training arguments that compress would get, such as gradient_checkpointing=true.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON in place of tables.")] = False,
    picture: Annotated[Path | None, typer.Option(help="Draw the candidates of the search to this PNG.")] = None,
    verify: Annotated[bool, typer.Option("--verify", help="Prove the coupled dimensions by permutation.")] = False,
    revision: options.Revision = None,
    trust_remote_code: options.TrustRemoteCode = False,
) -> None:
    """Show the coupled dimensions of a teacher and the sizes of the student, given or found for a target."""
    from wid_hf import CalibrationConfig, ConfigError
    from wid_hf.hub.paths import expanded
    from wid_hf.objectives.registry import may_be_headless
    from wid_hf.plots.front import draw_front
    from wid_hf.tools.plan_report import plan_report
    from wid_hf.tools.recipe import CompressSettings
    from wid_hf.tools.teachers import Teacher

    target = options.target(
        params=params,
        encoder_params=encoder_params,
        bytes=bytes_on_disk,
        latency_ms=latency_ms,
        memory=memory,
        batch=target_batch,
        length=target_length,
    )
    asked = options.wid_config(
        hidden_size,
        intermediate_size,
        heads,
        key_value_heads,
        head_dim,
        head_strategy,
        overrides,
        num_hidden_layers,
        layers,
        target=options.size_search(target, seconds, round_to),
        tie_word_embeddings=tie_word_embeddings,
        calibration_config=CalibrationConfig(calibration_samples, calibration_batch_size),
    )
    settings = CompressSettings(
        task=task.value,
        batch_size=batch_size,
        max_length=max_length,
        column=tuple(column or ()),
        split=split,
        validation=validation,
        validation_split=validation_split,
        validation_texts=validation_texts,
        keep_last_good=keep_last_good.place,
        seed=seed,
        training=options.pairs("--set", training or []),
    )
    if picture is not None and (target is None or not train or not seconds):
        raise ConfigError(
            "--picture draws the candidates of a search. Give a target such as --params 25%, and --train."
        )
    subject = Teacher(
        teacher, revision=revision, trust_remote_code=trust_remote_code, headless=may_be_headless(task.value)
    )
    with Console(stderr=True).status("Planning"):
        report = plan_report(subject, asked, train=train, settings=settings, proof=verify)
    if picture is not None and report.found is not None and report.found.result is not None:
        draw_front(report.found.result, Path(expanded(picture)))
    if as_json:
        typer.echo(json.dumps(report.to_dict(), indent=2))
    else:
        _tell(report, Console())


def _tell(report: PlanReport, console: Console) -> None:
    """Print what would become of the teacher."""
    from wid_hf.hub.model_size import size_rows
    from wid_hf.tools.plan_table import plan_table

    planned, found = report.planned, report.found
    if found is not None:
        if found.result is not None:
            console.print(_table(found.result.rows(), title="Candidates"))
        console.print(found.words, **PLAIN)
    for stack in planned.stacks:
        console.print(str(stack), markup=False)
    console.print(plan_table(planned.plan))
    for note in planned.plan.notes:
        console.print(note, markup=False)
    console.print(_table([("", *report.sizes), *size_rows(report.sizes, list(report.sizes))], title="Sizes"))
    if report.forecast is not None:
        console.print(_table(report.forecast.rows(), title=f"Expected on {report.forecast.held_out} held-out rows"))
        console.print(_table(report.forecast.memory.rows(), title="Memory of a training step"))
        console.print(report.forecast.words, **PLAIN)
    if report.proved:
        console.print("Proved by permutation: every coupled dimension above.")


def _table(rows: list[tuple[str, ...]], title: str) -> Table:
    """Return a table of texts, the first row above the others."""
    header, *others = rows
    table = Table(title=title)
    for name in header:
        table.add_column(name, overflow="fold")
    for row in others:
        table.add_row(*row)
    return table

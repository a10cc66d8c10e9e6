"""`wid-hf compress`: from a teacher and texts to a student's folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from . import options, run_file
from .words import as_options

if TYPE_CHECKING:
    from wid_hf.tools.reports.wid_report import Report

PLAIN: dict[str, Any] = {"soft_wrap": True, "markup": False, "highlight": False}


def compress(
    ctx: typer.Context,
    teacher: options.Teacher,
    train: Annotated[
        list[str],
        typer.Option(
            help="File, pattern such as 'data/*.jsonl', folder, or name of a dataset; repeat it for more files."
        ),
    ],
    output: Annotated[Path, typer.Option(help="Folder for the student.")],
    hidden_size: options.HiddenSize = None,
    intermediate_size: options.IntermediateSize = None,
    heads: options.Heads = None,
    key_value_heads: options.KeyValueHeads = None,
    head_dim: options.HeadDim = None,
    head_strategy: options.Strategy = options.HeadStrategy.auto,
    num_hidden_layers: options.HiddenLayers = None,
    layers: options.Layers = None,
    vocabulary: options.Vocabulary = None,
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
    search_seconds: options.SearchSeconds = 900.0,
    sizes: Annotated[
        str | None,
        typer.Option(
            metavar="75%,50%,25%",
            help="Students of several numbers or shares of parameters, each in a folder of its own below --output, and "
            "a page that compares them.",
        ),
    ] = None,
    chain: Annotated[
        bool, typer.Option("--chain", help="With --sizes: make each student from the next larger one.")
    ] = False,
    init: Annotated[
        options.Init | None,
        typer.Option(
            help="Calibrate the start on texts of --train (default), or only select (--schedule progressive)."
        ),
    ] = None,
    selection: Annotated[
        options.Selection | None, typer.Option(help="Which of the teacher's indices the start keeps.")
    ] = None,
    calibration_samples: options.CalibrationSamples = 256,
    calibration_batch_size: options.CalibrationBatchSize = 32,
    ridge: Annotated[
        float,
        typer.Option(
            help="Ridge strength of the least-squares fits, relative to the mean input variance; more for few texts."
        ),
    ] = 1e-4,
    calibration_output: Annotated[
        options.Output,
        typer.Option(help="Outputs of a headless student: turned where that loses less, or always coordinates."),
    ] = options.Output.auto,
    refine: Annotated[
        Any,
        typer.Option(
            parser=options.steps_or_auto,
            metavar="STEPS|auto",
            help="Steps by which each layer of the calibrated start is refined by itself; 0 for none.",
        ),
    ] = 0,
    refine_seconds: Annotated[
        float | None, typer.Option(help="Time that refinement may take in all; no limit without.")
    ] = None,
    layer_choice: Annotated[
        options.LayerChoice,
        typer.Option(help="Drop the layers without which outputs change least, or those of least influence (faster)."),
    ] = options.LayerChoice.greedy,
    schedule: Annotated[
        options.Schedule,
        typer.Option(help="Narrow from the first step, or from full width by the paper's proportions or step counts."),
    ] = options.Schedule.narrow,
    task: options.OfTask = options.Task.auto,
    train_weights: Annotated[
        options.TrainWeights,
        typer.Option(
            help="Train compactors, or merge the start at once and train the student's own weights (auto, unless other "
            "options are about compactors)."
        ),
    ] = options.TrainWeights.auto,
    steps: Annotated[int, typer.Option(min=0, help="Optimizer steps; 0 leaves the student at its start.")] = 1000,
    batch_size: options.BatchSize = 32,
    max_length: options.MaxLength = 128,
    learning_rate: Annotated[
        float | None, typer.Option(min=0, help="Of the student's own weights (--train-weights merged).")
    ] = None,
    compactor_learning_rate: Annotated[float | None, typer.Option(min=0, help="0 freezes compactors.")] = None,
    teacher_learning_rate: Annotated[float | None, typer.Option(min=0, help="0 freezes the teacher's weights.")] = None,
    distillation: Annotated[
        str | None,
        typer.Option(
            help=f"Losses from the teacher, names with commas between them: {', '.join(options.LOSSES)}; none for no "
            "such loss. With them the teacher's weights do not change, and compactors train unless --train-weights is "
            "merged. By default merged students of classifiers and taggers compare hidden states."
        ),
    ] = None,
    dropout: Annotated[bool, typer.Option(help="Train with the dropout of the teacher's config.")] = False,
    label_weight: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            help="Share of the loss on labels beside that from the teacher; by default 0.5 if there are labels.",
        ),
    ] = None,
    column: options.Column = None,
    split: options.Split = "train",
    streaming: Annotated[
        bool, typer.Option("--streaming", help="Read rows while training: no table of them is made before.")
    ] = False,
    validation: options.Validation = None,
    validation_split: options.ValidationSplit = "validation",
    validation_texts: options.ValidationTexts = 512,
    keep_last_good: options.LastGood = options.KeepLastGood.device,
    seed: options.Seed = 0,
    training: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            callback=run_file.with_those_of_file,
            help="Any other of transformers' TrainingArguments, such as bf16=true; may be given several times.",
        ),
    ] = None,
    revision: options.Revision = None,
    trust_remote_code: options.TrustRemoteCode = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an output that exists.")] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the same run if it was stopped or killed.")
    ] = False,
    config_file: run_file.Config = None,
    print_config: run_file.PrintConfig = False,
) -> None:
    """Make a narrower student of a teacher, calibrate and train it, and save it as a stock model."""
    run = run_file.effective(ctx)
    if print_config:
        typer.echo(run_file.as_yaml(run), nl=False)
        return
    from wid_hf import CalibrationConfig, ConfigError
    from wid_hf.budget import SizeSearch
    from wid_hf.errors import Stopped
    from wid_hf.hub.paths import expanded
    from wid_hf.tools.compress import CompressSettings
    from wid_hf.tools.compress import compress as compress_teacher
    from wid_hf.tools.many_sizes import compress_sizes

    several = options.words(sizes) if sizes is not None else ()
    if several and any((params, encoder_params, bytes_on_disk, latency_ms, memory)):
        raise ConfigError("--sizes and another target are given. Give one target for one student, --sizes for several.")
    if chain and not several:
        raise ConfigError("--chain is for --sizes: each student is made from the next larger one.")
    target = options.target(
        params=several[0] if several else params,
        encoder_params=encoder_params,
        bytes=bytes_on_disk,
        latency_ms=latency_ms,
        memory=memory,
        batch=target_batch,
        length=target_length,
    )
    config = options.wid_config(
        hidden_size,
        intermediate_size,
        heads,
        key_value_heads,
        head_dim,
        head_strategy,
        overrides,
        num_hidden_layers,
        layers,
        target=options.size_search(target, search_seconds, round_to),
        tie_word_embeddings=tie_word_embeddings,
        vocabulary=options.vocabulary(vocabulary),
        init=init.value if init is not None else None,
        selection=selection.value if selection is not None else None,
        calibration_config=CalibrationConfig(
            calibration_samples,
            calibration_batch_size,
            ridge,
            output=calibration_output.value,
            refine=refine,
            refine_seconds=refine_seconds,
            layer_choice=layer_choice.value,
        ),
        schedule=schedule.stated,
    )
    settings = CompressSettings(
        steps=steps,
        task=task.value,
        batch_size=batch_size,
        max_length=max_length,
        train_weights=train_weights.value,
        learning_rate=learning_rate,
        compactor_learning_rate=compactor_learning_rate,
        teacher_learning_rate=teacher_learning_rate,
        distillation=options.losses(distillation),
        dropout=dropout,
        label_weight=label_weight,
        column=tuple(column or ()),
        split=split,
        streaming=streaming,
        keep_last_good=keep_last_good.place,
        validation=validation,
        validation_split=validation_split,
        validation_texts=validation_texts,
        seed=seed,
        training=options.pairs("--set", training or []),
    )
    console = Console()
    common: dict[str, Any] = {
        "revision": revision,
        "trust_remote_code": trust_remote_code,
        "overwrite": overwrite,
        "resume": resume,
        "tell": lambda words: console.print(words, **PLAIN),
    }
    told: dict[str, Any] = {"command": options.command_line(), "run": run}
    try:
        if several:
            assert isinstance(config, SizeSearch)
            reports, page = compress_sizes(
                teacher, train, output, several, config, settings, chain=chain, told=told, **common
            )
        else:
            reports, page = {"": compress_teacher(teacher, train, output, config, settings, **told, **common)}, None
    except Stopped as stop:
        if options.leads():
            said = as_options(str(stop), ctx.find_root().command)
            Console(stderr=True, highlight=False, soft_wrap=True, markup=False).print(said)
        raise typer.Exit(128 + stop.signal) from None
    if options.leads():
        for name, report in reports.items():
            _tell(report, Path(expanded(output)) / name, console, streaming=streaming)
        if page is not None:
            console.print(f"All students on one page: {page}", **PLAIN)


def _tell(report: Report, output: Path, console: Console, *, streaming: bool) -> None:
    """Print what came out of a run."""
    from wid_hf.hub.own_files import CALIBRATION_PICTURE
    from wid_hf.tools.reports.calibration_table import calibration_table, refined_table

    if streaming:
        console.print(*(f"{source}: {found['words']}" for source, found in report.rows.items()), sep="\n", **PLAIN)
    for layer in report.calibration.dropped if report.calibration is not None else ():
        console.print(f"Left out: {layer}", **PLAIN)
    if report.calibration is not None and report.calibration.inputs:
        console.print(calibration_table(report.calibration))
        if report.calibration.refined:
            console.print(refined_table(report.calibration))
        console.print(
            f"The same as a picture, input by input: {output / CALIBRATION_PICTURE}", soft_wrap=True, markup=False
        )
    if report.settled:
        console.print(report.settled, markup=False)
    if report.outputs == "turned":
        console.print(
            f"Its outputs are turned: y_student ~ y_teacher @ wid_hf.load_output_map({str(output)!r}). Cosines and "
            "distances stay, coordinates do not; --calibration-output coordinates keeps them.",
            soft_wrap=True,
            markup=False,
        )
    console.print(report.table())
    console.print(
        f"The student is in {output}, a stock model; the lines that load it are in its README.md.",
        soft_wrap=True,
        markup=False,
    )

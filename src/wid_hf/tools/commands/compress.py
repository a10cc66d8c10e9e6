"""`wid-hf compress`: from a teacher and texts to a student's folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from ...config import CalibrationConfig
from ...errors import ConfigError, Stopped
from ...hub.own_files import CALIBRATION_PICTURE
from ...hub.paths import expanded
from ..compress import CompressSettings
from ..compress import compress as compress_teacher
from ..methods import METHODS, find_method
from ..reports.calibration_table import calibration_table
from . import options


def compress(
    teacher: options.Teacher,
    train: Annotated[str, typer.Option(help="Text file, JSON lines, or name of a dataset.")],
    output: Annotated[Path, typer.Option(help="Folder for the student.")],
    method: Annotated[
        str, typer.Option(help=f"WID, or what it is compared with at the same shape: {', '.join(METHODS)}.")
    ] = CompressSettings.method,
    hidden_size: options.HiddenSize = None,
    intermediate_size: options.IntermediateSize = None,
    heads: options.Heads = None,
    key_value_heads: options.KeyValueHeads = None,
    head_dim: options.HeadDim = None,
    head_strategy: options.Strategy = options.HeadStrategy.auto,
    overrides: options.Overrides = None,
    init: Annotated[
        options.Init | None,
        typer.Option(
            help="Solve for the start on texts of --train (default), or only select (--schedule progressive)."
        ),
    ] = None,
    selection: Annotated[
        options.Selection | None, typer.Option(help="Which of the teacher's indices the start keeps.")
    ] = None,
    calibration_samples: Annotated[int, typer.Option(min=1, help="Texts to calibrate on.")] = CalibrationConfig.samples,
    calibration_batch_size: Annotated[
        int, typer.Option(min=1, help="Texts per batch of calibration.")
    ] = CalibrationConfig.batch_size,
    ridge: Annotated[
        float, typer.Option(help="Ridge strength of the least-squares fits, above 0; more for few texts.")
    ] = CalibrationConfig.ridge,
    schedule: Annotated[
        options.Schedule,
        typer.Option(help="Narrow from the first step, or from full width by the paper's proportions or step counts."),
    ] = options.Schedule.narrow,
    steps: Annotated[
        int, typer.Option(min=0, help="Optimizer steps; 0 leaves the student at its start.")
    ] = CompressSettings.steps,
    batch_size: Annotated[int, typer.Option(min=1, help="Texts per step.")] = CompressSettings.batch_size,
    max_length: Annotated[int, typer.Option(min=3, help="Tokens per text.")] = CompressSettings.max_length,
    compactor_learning_rate: Annotated[float | None, typer.Option(min=0, help="0 freezes compactors.")] = None,
    teacher_learning_rate: Annotated[float | None, typer.Option(min=0, help="0 freezes the teacher's weights.")] = None,
    learning_rate: Annotated[
        float | None, typer.Option(min=0, help="Of a stock student: for methods without compactors.")
    ] = None,
    column: Annotated[str | None, typer.Option(help="Column that holds the text.")] = None,
    validation: Annotated[str | None, typer.Option(help="Held-out texts; by default part of --train.")] = None,
    validation_texts: Annotated[int, typer.Option(min=1, help="How many.")] = CompressSettings.validation_texts,
    seed: Annotated[int, typer.Option(help="Of data order, masking and held-out texts.")] = 0,
    revision: options.Revision = None,
    trust_remote_code: options.TrustRemoteCode = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an output that exists.")] = False,
) -> None:
    """Make a narrower student of a teacher, calibrate and train it, and save it as a stock model."""
    config = options.wid_config(
        hidden_size,
        intermediate_size,
        heads,
        key_value_heads,
        head_dim,
        head_strategy,
        overrides,
        init=init.value if init is not None else None,
        selection=selection.value if selection is not None else None,
        calibration_config=CalibrationConfig(calibration_samples, calibration_batch_size, ridge),
        schedule=schedule.stated,
    )
    if not find_method(method, config).folds and (init is not None or selection is not None):
        raise ConfigError(f"--method {method} decides the start: leave --init and --selection out.")
    settings = CompressSettings(
        method=method,
        steps=steps,
        batch_size=batch_size,
        max_length=max_length,
        compactor_learning_rate=compactor_learning_rate,
        teacher_learning_rate=teacher_learning_rate,
        learning_rate=learning_rate,
        column=column,
        validation=validation,
        validation_texts=validation_texts,
        seed=seed,
    )
    try:
        report = compress_teacher(
            teacher, train, output, config, settings,
            revision=revision, trust_remote_code=trust_remote_code, overwrite=overwrite, command=options.command_line(),
        )  # fmt: skip
    except Stopped as stop:
        Console(stderr=True, highlight=False, soft_wrap=True, markup=False).print(str(stop))
        raise typer.Exit(128 + stop.signal) from None
    console = Console()
    output = Path(expanded(output))
    if report.calibration is not None and report.calibration.sites:
        console.print(calibration_table(report.calibration))
        console.print(
            f"The same as a picture, input by input: {output / CALIBRATION_PICTURE}", soft_wrap=True, markup=False
        )
    if report.settled:
        console.print(report.settled, markup=False)
    console.print(report.table())
    console.print(
        f"The student is in {output}: AutoModel.from_pretrained({str(output)!r}) loads it.",
        soft_wrap=True,
        markup=False,
    )

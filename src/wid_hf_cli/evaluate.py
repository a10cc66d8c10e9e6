"""`wid-hf eval`: how well a model does on tasks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from . import options

TASKS = (
    "cola",
    "sst2",
    "mrpc",
    "stsb",
    "qqp",
    "mnli",
    "qnli",
    "rte",
    "wnli",
    "squad",
    "squad_v2",
    "reactions",
    "stsb-zero-shot",
    "masked-lm",
    "perplexity",
)


def evaluate(
    model: Annotated[str, typer.Argument(help="Folder or Hub id of a model with its tokenizer.")],
    tasks: Annotated[str, typer.Option(help=f"Names with commas between them: {', '.join(TASKS)}.")],
    output: Annotated[
        Path | None, typer.Option(help="Folder for results; by default eval/ and the model's name.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(envvar="WID_HF_DATA", help="Folder with tasks in files; what it lacks is on the Hub.")
    ] = None,
    texts: Annotated[str | None, typer.Option(help="File or dataset for masked-lm and perplexity.")] = None,
    column: Annotated[str | None, typer.Option(help="Column of --texts that holds the text.")] = None,
    learning_rates: Annotated[
        str, typer.Option(help="All are tried; the best on the dev split is reported.")
    ] = "2e-05,5e-05,0.0001",
    seeds: Annotated[str, typer.Option(help="Each is run with each learning rate.")] = "0,1,2",
    epochs: Annotated[float, typer.Option(min=0, help="Passes over the training examples.")] = 3.0,
    steps: Annotated[int | None, typer.Option(min=1, help="Optimizer steps, instead of epochs.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Examples per step.")] = 32,
    max_length: Annotated[
        int | None, typer.Option(min=8, help="Tokens per example; by default the task's own.")
    ] = None,
    train_examples: Annotated[int | None, typer.Option(min=1, help="Examples to train on; by default all.")] = None,
    eval_examples: Annotated[int | None, typer.Option(min=2, help="Examples per scored split; by default all.")] = None,
    revision: options.Revision = None,
    trust_remote_code: options.TrustRemoteCode = False,
) -> None:
    """Score a model on tasks, fine-tuning it if a task has labels to train on. A second call continues."""
    from wid_hf.hub.paths import expanded
    from wid_hf.tools.evaluate import EvalSettings
    from wid_hf.tools.evaluate import evaluate as evaluate_model
    from wid_hf.tools.evaluation.tasks import DataPlaces, FineTuning
    from wid_hf.tools.reports.eval_report import FILE_NAME

    settings = EvalSettings(
        places=DataPlaces(data, texts, column, train_examples, eval_examples),
        fine_tuning=FineTuning(
            learning_rates=options.numbers("--learning-rates", learning_rates, float),
            seeds=options.numbers("--seeds", seeds, int),
            epochs=epochs,
            steps=steps,
            batch_size=batch_size,
        ),
        max_length=max_length,
    )
    folder = Path(expanded(model))
    output = Path(expanded(output or Path("eval") / (folder.resolve().name if folder.is_dir() else folder.name)))
    report = evaluate_model(
        model,
        options.words(tasks),
        output,
        settings,
        revision=revision,
        trust_remote_code=trust_remote_code,
        command=options.command_line(),
    )
    console = Console()
    console.print(report.table())
    console.print(f"All runs: {output / FILE_NAME}", soft_wrap=True, markup=False)

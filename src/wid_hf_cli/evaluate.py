"""`wid-hf eval`: how well a model does on tasks, or as it is on rows."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

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

# Options that only one of the two ways to score has.
OF_TASKS = ("tasks", "output", "texts", "learning_rates", "seeds", "epochs", "steps", "train_examples")
OF_AS_IS = ("teacher", "task", "split", "as_json")


def evaluate(
    ctx: typer.Context,
    model: Annotated[str, typer.Argument(help="Folder or Hub id of a model with its tokenizer.")],
    tasks: Annotated[str | None, typer.Option(help=f"Names with commas between them: {', '.join(TASKS)}.")] = None,
    as_is: Annotated[
        bool, typer.Option("--as-is", help="Score a fine-tuned model on rows of --data, without training it.")
    ] = False,
    teacher: Annotated[
        str | None, typer.Option(help="With --as-is: folder or Hub id of the model that it shall be like.")
    ] = None,
    task: Annotated[
        options.Task, typer.Option(help="With --as-is: what the model is for; auto finds it from its class.")
    ] = options.Task.auto,
    split: Annotated[
        str, typer.Option(help="With --as-is: split of --data, where it is a dataset or a folder.")
    ] = "validation",
    as_json: Annotated[bool, typer.Option("--json", help="With --as-is: print figures and settings as JSON.")] = False,
    output: Annotated[
        Path | None, typer.Option(help="Folder for results; by default eval/ and the model's name.")
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            envvar="WID_HF_DATA",
            help="Folder with tasks in files; what it lacks is on the Hub. With --as-is: rows, as those of --train.",
        ),
    ] = None,
    texts: Annotated[str | None, typer.Option(help="File or dataset for masked-lm and perplexity.")] = None,
    column: Annotated[
        list[str] | None,
        typer.Option(metavar="ROLE=NAME", help="Column of a role such as text or label; a NAME alone is the text's."),
    ] = None,
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
    """Score a model on tasks, fine-tuning it if a task has labels to train on, or on rows as it is (--as-is).

    A second call on tasks continues.
    """
    given = {param.name: param.opts[0] for param in ctx.command.params if _is_given(ctx, param.name)}
    if strange := [given[name] for name in given if name in (OF_TASKS if as_is else OF_AS_IS)]:
        raise typer.BadParameter(
            f"{strange[0]} is {'not for --as-is, which trains nothing' if as_is else 'for --as-is'}."
        )
    if as_is and "data" not in given:
        raise typer.BadParameter("--as-is scores the model on rows: name them with --data.")
    if not as_is and not tasks:
        raise typer.BadParameter("Name tasks with --tasks, or score the model on rows with --as-is and --data.")
    if as_is:
        rows = {"task": task.value, "column": tuple(column or ()), "split": split, "eval_examples": eval_examples}
        lengths = {"batch_size": batch_size} | ({"max_length": max_length} if max_length is not None else {})
        named = {"teacher": teacher, "revision": revision, "trust_remote_code": trust_remote_code}
        _as_is(model, str(data), rows | lengths, as_json=as_json, **named)
        return
    from wid_hf.hub.paths import expanded
    from wid_hf.tools.evaluate import EvalSettings
    from wid_hf.tools.evaluate import evaluate as evaluate_model
    from wid_hf.tools.evaluation.tasks import DataPlaces, FineTuning
    from wid_hf.tools.reports.eval_report import FILE_NAME

    settings = EvalSettings(
        places=DataPlaces(Path(data) if data else None, texts, tuple(column or ()), train_examples, eval_examples),
        fine_tuning=FineTuning(
            learning_rates=options.each_once("--learning-rates", learning_rates, float),
            seeds=options.each_once("--seeds", seeds, int),
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
        options.words(tasks or ""),
        output,
        settings,
        revision=revision,
        trust_remote_code=trust_remote_code,
        command=options.command_line(),
    )
    console = Console()
    console.print(report.table())
    console.print(f"All runs: {output / FILE_NAME}", soft_wrap=True, markup=False)


def _is_given(ctx: typer.Context, name: str) -> bool:
    """Return whether an option is on the command line; one of the environment is for all commands."""
    source = ctx.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _as_is(model: str, data: str, settings: dict[str, Any], *, as_json: bool, **named: Any) -> None:
    """Score a model without training it, and print the figures."""
    from wid_hf.tools.as_is import AsIsSettings, evaluate_as_is

    console = Console(stderr=as_json)  # whoever reads JSON gets nothing else
    report = evaluate_as_is(
        model,
        data,
        settings=AsIsSettings(**settings),
        command=options.command_line(),
        tell=lambda words: console.print(words, soft_wrap=True, markup=False, highlight=False),
        **named,
    )
    if as_json:
        typer.echo(report.json())
    else:
        console.print(report.table())

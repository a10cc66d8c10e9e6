"""Options that several commands share, and what they mean together."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .run_file import with_those_of_file

if TYPE_CHECKING:
    from wid_hf import WidConfig, WidSchedule
    from wid_hf.budget import SizeSearch, Target


LOSSES = ("logits", "hidden", "relations")  # of --distillation
NO_LOSSES = "none"  # of --distillation, in the place of names


class HeadStrategy(str, Enum):
    """The words of `--head-strategy`."""

    auto = "auto"
    dim = "dim"
    head = "head"


class Init(str, Enum):
    """The words of `--init`."""

    calibrated = "calibrated"
    identity = "identity"


class Selection(str, Enum):
    """The words of `--selection`."""

    first = "first"
    variance = "variance"
    pivots = "pivots"


class LayerChoice(str, Enum):
    """The words of `--layer-choice`."""

    greedy = "greedy"
    influence = "influence"


class KeepLastGood(str, Enum):
    """The words of `--keep-last-good`."""

    device = "device"
    cpu = "cpu"
    disk = "disk"
    none = "none"

    @property
    def place(self) -> str | None:
        """Where the copy is; None for nowhere."""
        return None if self is KeepLastGood.none else self.value


class Task(str, Enum):
    """The words of `--task`."""

    auto = "auto"
    masked_lm = "masked-lm"
    sequence_classification = "sequence-classification"
    token_classification = "token-classification"
    question_answering = "question-answering"
    multiple_choice = "multiple-choice"
    seq2seq = "seq2seq"
    speech_seq2seq = "speech-seq2seq"
    causal_lm = "causal-lm"
    image_classification = "image-classification"
    audio_classification = "audio-classification"
    ctc = "ctc"
    sentence_vectors = "sentence-vectors"
    features = "features"


class TrainWeights(str, Enum):
    """The words of `--train-weights`."""

    auto = "auto"
    compactors = "compactors"
    merged = "merged"


class Output(str, Enum):
    """The words of `--calibration-output`."""

    auto = "auto"
    coordinates = "coordinates"


class Schedule(str, Enum):
    """The words of `--schedule`."""

    narrow = "narrow"
    progressive = "progressive"
    paper = "paper"

    @property
    def stated(self) -> str | WidSchedule:
        """The value for `WidConfig`."""
        from wid_hf import WidSchedule

        return WidSchedule.paper() if self is Schedule.paper else self.value


LastGood = Annotated[
    KeepLastGood, typer.Option(help="Where the last weights with a finite loss are kept while training.")
]
Teacher = Annotated[str, typer.Argument(help="Folder or Hub id of the teacher.")]
HiddenSize = Annotated[int | None, typer.Option(help="Width of the student's residual stream.")]
IntermediateSize = Annotated[int | None, typer.Option(help="Inner width of its feed-forward blocks.")]
Heads = Annotated[int | None, typer.Option("--num-attention-heads", help="Number of attention heads.")]
KeyValueHeads = Annotated[int | None, typer.Option("--num-key-value-heads", help="Number of key/value heads.")]
HeadDim = Annotated[int | None, typer.Option(help="Width of one head, where the config states it.")]
Strategy = Annotated[
    HeadStrategy,
    typer.Option(
        "--head-strategy", help="Narrow every head (dim), drop whole heads (head), or what is possible (auto)."
    ),
]
HiddenLayers = Annotated[
    int | None, typer.Option("--num-hidden-layers", help="Number of layers; which stay is chosen on texts of --train.")
]
Layers = Annotated[
    str | None,
    typer.Option("--layers", metavar="0,2,5", help="The teacher's layers that stay, in place of a number of them."),
]
Vocabulary = Annotated[
    str | None,
    typer.Option(
        metavar="corpus|SIZE", help="Tokens that stay: those that the rows of --train use, or so many of these."
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--override",
        callback=with_those_of_file,
        help="Another size under the teacher's own name, NAME=SIZE; dots reach into parts.",
    ),
]
TieWordEmbeddings = Annotated[
    bool | None,
    typer.Option(help="Whether the head shares the table of tokens; by default as in the teacher."),
]
Params = Annotated[str | None, typer.Option(help="Target: parameters at most, 20M or 25% of the teacher's.")]
EncoderParams = Annotated[str | None, typer.Option(help="Target: parameters outside embeddings and head.")]
Bytes = Annotated[str | None, typer.Option("--bytes", help="Target: bytes of weights on disk, 20MB or 25%.")]
LatencyMs = Annotated[str | None, typer.Option(help="Target: milliseconds of a forward on this device.")]
Memory = Annotated[str | None, typer.Option(help="Target: bytes at the peak of a forward, 200MB or 25%.")]
TargetBatch = Annotated[int, typer.Option("--target-batch", min=1, help="Rows of that forward.")]
TargetLength = Annotated[int, typer.Option("--target-length", min=1, help="Tokens of each row.")]
RoundTo = Annotated[
    int | None,
    typer.Option(min=1, help="What sizes found for a target are multiples of; by default 8 on a CPU, 64 elsewhere."),
]
Column = Annotated[
    list[str] | None,
    typer.Option(
        metavar="ROLE=NAME", help="Column of a role such as text, text_pair or label; a NAME alone is the text's."
    ),
]
OfTask = Annotated[Task, typer.Option("--task", help="What the teacher is for; auto finds it from its class.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Texts per step.")]
MaxLength = Annotated[int, typer.Option(min=3, help="Tokens per text.")]
Split = Annotated[str, typer.Option(help="Split of --train, where it is a dataset or a folder.")]
Validation = Annotated[
    list[str] | None, typer.Option(help="Held-out rows, named as for --train; by default part of those.")
]
ValidationSplit = Annotated[str, typer.Option(help="Split of --validation.")]
ValidationTexts = Annotated[int, typer.Option(min=1, help="How many.")]
Seed = Annotated[int, typer.Option(help="Of data order, masking and held-out texts.")]
CalibrationSamples = Annotated[int, typer.Option(min=1, help="Texts to calibrate on.")]
CalibrationBatchSize = Annotated[int, typer.Option(min=1, help="Texts per batch of calibration.")]
SearchSeconds = Annotated[
    float, typer.Option(min=0, help="Time of the search for sizes that fill a target; 0 takes a guess.")
]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of the teacher on the Hub.")]
TrustRemoteCode = Annotated[bool, typer.Option("--trust-remote-code", help="Run model code from the Hub.")]


def wid_config(
    hidden_size: int | None,
    intermediate_size: int | None,
    heads: int | None,
    key_value_heads: int | None,
    head_dim: int | None,
    strategy: HeadStrategy,
    overrides: list[str] | None,
    num_hidden_layers: int | None = None,
    layers: str | None = None,
    *,
    target: SizeSearch | None = None,
    **start: Any,
) -> WidConfig | SizeSearch:
    """Return the `WidConfig` that the options describe, or with a target the search for its sizes.

    `start` has its other fields by name.

    Raises:
        ConfigError: sizes are given beside a target.
    """
    from wid_hf import WidConfig

    sizes: dict[str, Any] = {
        "hidden_size": hidden_size,
        "intermediate_size": intermediate_size,
        "num_attention_heads": heads,
        "num_key_value_heads": key_value_heads,
        "head_dim": head_dim,
        "overrides": _nested(overrides or []),
        "num_hidden_layers": num_hidden_layers,
        "layers": list(numbers("--layers", layers, int)) if layers is not None else None,
    }
    others: dict[str, Any] = {"head_strategy": strategy.value, **start}
    if target is None:
        return WidConfig(**sizes, **others)
    return replace(target, others={name: value for name, value in sizes.items() if value not in (None, {})} | others)


def size_search(target: Target | None, seconds: float, round_to: int | None) -> SizeSearch | None:
    """Return the search for a target; None without one."""
    from wid_hf.budget import SizeSearch

    return SizeSearch(target, seconds, round_to) if target is not None else None


def target(**given: Any) -> Target | None:
    """Return the `Target` that the options describe, None where they name none.

    Numbers come as texts; `latency_ms` may have its unit.
    """
    from wid_hf.budget import Target

    if all(value is None for name, value in given.items() if name not in ("batch", "length")):
        return None
    return Target(**given)


def vocabulary(text: str | None) -> str | int | None:
    """Return what `--vocabulary` says: a number, or the word for the tokens of the rows."""
    return int(text) if text is not None and text.isdigit() else text


def leads() -> bool:
    """Return whether this process prints: the only one, or the first of those that torchrun or accelerate started."""
    return os.environ.get("RANK", "0") == "0"


def command_line() -> str:
    """Return the command line of this program, for reports."""
    program = Path(sys.argv[0])
    as_module = program == Path(__file__).with_name("__main__.py")  # python -m wid_hf_cli
    return shlex.join(["wid-hf" if as_module else program.name, *sys.argv[1:]])


def steps_or_auto(text: str | int) -> int | str:
    """Return the number that `text` is, or the word "auto"."""
    if text == "auto":
        return "auto"
    try:
        return int(text)
    except ValueError as error:
        raise typer.BadParameter(f"{text!r} is neither a number of steps nor auto.") from error


def numbers(option: str, text: str, kind: type[float] | type[int]) -> tuple[Any, ...]:
    """Return the numbers in `text` with commas between them, as they are written."""
    from wid_hf import ConfigError

    try:
        return tuple(kind(part) for part in text.split(","))
    except ValueError as error:
        example = "2e-5,5e-5" if kind is float else "0,1,2"
        raise ConfigError(f"{option} {text!r} is not a list of numbers such as {example}.") from error


def each_once(option: str, text: str, kind: type[float] | type[int]) -> tuple[Any, ...]:
    """Return the `numbers` in `text` without those that came before: to do the same twice would tell nothing."""
    return tuple(dict.fromkeys(numbers(option, text, kind)))


def words(text: str) -> tuple[str, ...]:
    """Return the words in `text` with commas between them."""
    return tuple(word for part in text.split(",") if (word := part.strip()))


def losses(text: str | None) -> tuple[str, ...] | None:
    """Return the losses that `--distillation` names, `()` for none of them, and None where it is not given."""
    return None if text is None else () if text.strip() == NO_LOSSES else words(text)


def pairs(option: str, given: Sequence[str]) -> dict[str, Any]:
    """Return the values in `NAME=VALUE` by name: texts, or with brackets around them lists or mappings of texts.

    Raises:
        ConfigError: there is no name, or brackets are not closed.
    """
    import yaml

    from wid_hf import ConfigError

    found = {}
    for pair in given:
        name, equals, text = pair.partition("=")
        try:
            found[name] = yaml.load(text, Loader=yaml.BaseLoader) if text[:1] in ("[", "{") else text
        except yaml.YAMLError as error:
            raise ConfigError(f"{option} {pair!r}: {error}") from error
        if not name or not equals:
            raise ConfigError(f"{option} {pair!r} is not NAME=VALUE.")
    return found


def _nested(pairs: list[str]) -> dict[str, object]:
    from wid_hf import ConfigError

    result: dict[str, object] = {}
    for pair in pairs:
        path, _, size = pair.partition("=")
        if not size.isdigit():
            raise ConfigError(f"--override {pair!r} is not NAME=SIZE, such as embedding_size=64.")
        *parents, name = path.split(".")
        level = result
        for parent in parents:
            level = level.setdefault(parent, {})  # type: ignore[assignment]
        level[name] = int(size)
    return result

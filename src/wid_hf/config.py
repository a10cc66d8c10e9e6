"""`WidConfig`: which student to make; `CalibrationConfig`: how its start is made from data.

Takes a user's request; checks what can be checked without a model. `planning` turns it into the student's transformers
config, PEFT saves it as `adapter_config.json`.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import InitVar, asdict, dataclass, field, fields, replace
from enum import Enum
from math import inf
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

from peft import PeftConfig
from transformers.utils import CONFIG_NAME

from .deprecation import warn
from .errors import ConfigError
from .format_version import refuse_newer
from .progressive.schedule import WidSchedule
from .saved_dataclass import from_saved
from .stored_inputs import packed

HeadStrategy = Literal["auto", "dim", "head"]
Selection = Literal["first", "variance", "pivots"]
Init = Literal["calibrated", "identity"]
Output = Literal["auto", "coordinates"]
CORPUS = "corpus"
Vocabulary: TypeAlias = list[int] | int | str | None
LayerChoice = Literal["greedy", "influence"]


class PeftType(str, Enum):
    """The name of the method; like the members of PEFT's own enum it is also a string."""

    WID = "WID"


@dataclass(frozen=True)
class CalibrationConfig:
    """How the start is made from calibration data: how much of it, and how strongly fits are regularised.

    Args:
        samples: how many rows of the training set `WidTrainer` and `WidCallback` calibrate on, if the model is not
            calibrated yet.
        batch_size: rows per batch of these.
        ridge: ridge strength of the least-squares fit of each weight's input, relative to the mean input variance;
            more for few texts.
        output: what the student's outputs are along an axis that shrinks and that a caller sees, such as the hidden
            states of an encoder without a head. `"auto"` turns them where that brings the student nearer to the
            teacher on held-out batches: combinations of the teacher's coordinates, with about its cosines and
            distances. `"coordinates"` keeps selected coordinates.
        refine: most optimizer steps by which each layer, and at the end the head, is refined by itself after the closed
            form, without labels; one text in ten is held out, and nothing gets worse on these. `"auto"` is 40 steps and
            one more for every two texts, at most 300. 0 refines no layer; only a head between a stream and a tied
            table (of masked language models) is trained then, which no closed form fits.
        layer_choice: how the layers are chosen that a shallower student does not have. `"greedy"` drops one after the
            other, each time that without which the teacher's outputs on calibration data change least; `"influence"`
            drops those that change their own stream least, which takes one forward.
        refine_seconds: seconds that refinement may take in all; None for no limit.

    Raises:
        ConfigError: a count that is not a positive integer, a ridge or a time that is not above 0, an unknown output,
            or steps of refinement that are neither a number from 0 nor "auto".
    """

    samples: int = field(default=256, metadata={"help": "Training rows to calibrate on."})
    batch_size: int = field(default=32, metadata={"help": "Rows per batch of calibration."})
    ridge: float = field(default=1e-4, metadata={"help": "Ridge strength of the least-squares fit."})
    output: Output = field(
        default="auto", metadata={"help": "Outputs that a caller sees: 'auto' may turn them, or 'coordinates'."}
    )
    refine: int | Literal["auto"] = field(default=0, metadata={"help": "Steps of each layer's refinement, or 'auto'."})
    layer_choice: LayerChoice = field(
        default="greedy", metadata={"help": "How layers are chosen: 'greedy' or by their 'influence'."}
    )
    refine_seconds: float | None = field(default=None, metadata={"help": "Seconds that refinement may take in all."})

    def __post_init__(self) -> None:
        problems = _not_sizes({"samples": self.samples, "batch_size": self.batch_size})
        if not _is_above_zero(self.ridge):
            problems.append(f"ridge={self.ridge!r} is not a number above 0")
        if self.output not in get_args(Output):
            problems.append(f"output={self.output!r} is not one of {', '.join(map(repr, get_args(Output)))}")
        if self.layer_choice not in get_args(LayerChoice):
            problems.append(
                f"layer_choice={self.layer_choice!r} is not one of {', '.join(map(repr, get_args(LayerChoice)))}"
            )
        if self.refine != "auto" and not (type(self.refine) is int and self.refine >= 0):
            problems.append(f'refine={self.refine!r} is not a number of steps, 0 or more, or "auto"')
        if self.refine_seconds is not None and not _is_above_zero(self.refine_seconds):
            problems.append(f"refine_seconds={self.refine_seconds!r} is not a number above 0; None is for no limit")
        if problems:
            raise ConfigError("CalibrationConfig: " + "; ".join(problems))

    def flat(self) -> dict[str, Any]:
        """Return the settings under their names in `wid_report.json`."""
        values = asdict(self)
        old = {flat: values.pop(name) for flat, name in FLAT.items()}
        return old | values


# Fields of WidConfig in version 0.1 and in its adapters; reports still use these names.
FLAT = {"calibration_samples": "samples", "calibration_batch_size": "batch_size", "ridge": "ridge"}
FORMAT_VERSION = 2  # of what a saved adapter is: 2 has shifts of norms' vectors as well
COUNT = "num_hidden_layers"
SIZES = ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim")


@dataclass
class WidConfig(PeftConfig):
    """The student's sizes, how its compactors start, and whether it becomes narrow at once or step by step.

    Sizes that are None stay the teacher's, except those that follow from `hidden_size` by `head_strategy`.

    Args:
        hidden_size: width of the residual stream.
        intermediate_size: inner width of the feed-forward blocks.
        num_attention_heads: number of (query) heads; by default decided by `head_strategy`.
        num_key_value_heads: number of key/value heads, for grouped-query attention.
        head_dim: width of a head, for models whose config states it.
        head_strategy: `"dim"` keeps the number of heads and makes each narrower; `"head"` keeps the width
            of heads and drops whole heads, and key/value heads with them. `"auto"` uses the first that is possible:
            narrower heads, fewer heads, heads as they are, another number of heads, or the nearest hidden size, with
            a warning. The plan says which and why.
        num_hidden_layers: number of layers, under transformers' common name; fewer than the teacher has. Which of them
            stay is chosen on calibration data (`CalibrationConfig.layer_choice`), or spread evenly without any. Other
            counts, of a decoder or of stages, are given in `overrides`: `{"decoder_layers": 3}`.
        layers: numbers of the layers that stay, from 0 and ascending: `[0, 2, 5]`; by the entry that counts them if
            that is another, `{"decoder_layers": [0, 5]}`.
        vocabulary: which tokens stay, where tables of tokens and heads become shorter too: their numbers, ascending, as
            `wid_hf.vocabulary.kept_tokens` gives them, with `smaller_tokenizer` for the tokenizer. `wid_hf.compress`
            and `wid-hf compress`, which have a tokenizer and rows, also take `"corpus"` for the tokens that the rows to
            train on use, and a number for as many, the most used.
        overrides: any other size under its name in the teacher's config, `{"embedding_size": 64}`; nested for composite
            models, `{"text_config": {"hidden_size": 384}}`; a list if the teacher's config has a list,
            `{"hidden_sizes": [32, 64, 128]}`; by layer number if its layers have different sizes,
            `{"per_layer_config": {2: {"head_dim": 32}}}`.
        tie_word_embeddings: whether the head shares the table of tokens, as in transformers' configs. None keeps the
            teacher's tie. False gives the student of a tied teacher a head of its own, which starts from the table;
            the plan tells its price. The teacher given keeps its tie. On an untied teacher False changes nothing, and
            True is refused; both are refused where the teacher has no output embedding.
        init: how compactors start. `"calibrated"` solves for them in closed form on calibration data;
            `"identity"` only selects rows and columns of the teacher's weights. By default calibrated, and identity
            with a progressive schedule.
        selection: which indices are selected: the `"first"`, those with the largest `"variance"` of activations,
            or a column subset by pivoted Cholesky of their covariances, `"pivots"`. By default `"pivots"` for a
            calibrated start and `"first"` for identity.
        calibration_config: how much data a start is made from, and how; see `CalibrationConfig`.
        schedule: `"narrow"` trains the student's sizes from the first step; `"progressive"` begins at the teacher's
            widths and drops more and more indices, in the proportions of the paper; a `WidSchedule` sets the details. A
            progressive training starts at the identity.
        example_inputs: keyword arguments of one forward of the teacher, if those made from its config do not fit. Saved
            with the adapter, which needs them to load; `get_wid_model(..., example_inputs=...)` fills this in.
        settled: what `head_strategy="auto"` decided for the teacher, and why; filled in when a wid model is made, whose
            own config states every size.
        teacher_fingerprint: of the teacher's weights; filled in when a wid model is made. A config with one, such as a
            saved adapter's, is refused for any other teacher.
        calibration_samples: deprecated, `CalibrationConfig.samples`.
        calibration_batch_size: deprecated, `CalibrationConfig.batch_size`.
        ridge: deprecated, `CalibrationConfig.ridge`.
        format_version: of the files of a saved adapter; filled in. Adapters of version 0.1 have none.

    Raises:
        FormatError: the config of an adapter that a newer wid_hf saved.
        ConfigError: an unknown value, a size that is neither a positive integer nor a list of them, a count that is
            not a positive integer, or no size at all.
    """

    hidden_size: int | None = field(default=None, metadata={"help": "Width of the residual stream."})
    intermediate_size: int | None = field(default=None, metadata={"help": "Inner width of the feed-forward blocks."})
    num_attention_heads: int | None = field(default=None, metadata={"help": "Number of attention heads."})
    num_key_value_heads: int | None = field(default=None, metadata={"help": "Number of key/value heads."})
    head_dim: int | None = field(default=None, metadata={"help": "Width of one attention head."})
    head_strategy: HeadStrategy = field(
        default="auto",
        metadata={
            "help": "'dim' narrows every head, 'head' drops whole heads, 'auto' uses the first that is possible."
        },
    )
    num_hidden_layers: int | None = field(default=None, metadata={"help": "Number of layers."})
    layers: list[int] | dict[str, list[int]] | None = field(
        default=None, metadata={"help": "Numbers of the teacher's layers that stay."}
    )
    vocabulary: Vocabulary = field(default=None, metadata={"help": "Tokens that stay."})
    overrides: dict[str, Any] = field(
        default_factory=dict, metadata={"help": "Other sizes under the teacher's own config names."}
    )
    tie_word_embeddings: bool | None = field(
        default=None, metadata={"help": "False gives the student a head of its own; None keeps the teacher's tie."}
    )
    init: Init | None = field(default=None, metadata={"help": "How compactors start: 'calibrated' or 'identity'."})
    # Here and not in CalibrationConfig: with `init` it defines the start, decides whether calibration data are needed
    # at all, and is used by identity starts as well.
    selection: Selection | None = field(
        default=None, metadata={"help": "Which indices the start selects: 'first', 'variance' or 'pivots'."}
    )
    calibration_config: CalibrationConfig = field(
        default_factory=CalibrationConfig, metadata={"help": "How much data a start is made from, and how."}
    )
    schedule: Literal["narrow", "progressive"] | WidSchedule = field(
        default="narrow", metadata={"help": "'narrow', 'progressive', or a WidSchedule."}
    )
    example_inputs: dict[str, Any] | None = field(
        default=None, metadata={"help": "Keyword arguments of one forward of the teacher."}
    )
    settled: str | None = field(default=None, metadata={"help": "What head_strategy='auto' decided, and why."})
    teacher_fingerprint: str | None = field(default=None, metadata={"help": "Fingerprint of the teacher's weights."})
    format_version: int | None = field(default=None, metadata={"help": "Of the adapter's files."})

    # Fields of version 0.1, accepted as arguments until 0.3.
    calibration_samples: InitVar[int | None] = None
    calibration_batch_size: InitVar[int | None] = None
    ridge: InitVar[float | None] = None

    def __post_init__(
        self, calibration_samples: int | None, calibration_batch_size: int | None, ridge: float | None
    ) -> None:
        super().__post_init__()
        refuse_newer(self.format_version, FORMAT_VERSION, "The adapter's configuration")
        # PEFT passes peft_type when it reads adapter_config.json, users never do.
        is_saved = getattr(self, "peft_type", None) is not None
        self.peft_type = PeftType.WID
        if self.format_version is None:
            self.format_version = 1 if is_saved else FORMAT_VERSION
        if isinstance(self.layers, tuple):
            self.layers = list(self.layers)
        if not isinstance(self.overrides, dict):
            raise ConfigError(f"WidConfig: overrides={self.overrides!r} is not a dictionary of sizes by name")
        self._restore()
        flat = dict(zip(FLAT, (calibration_samples, calibration_batch_size, ridge), strict=True))
        self._take_flat({name: value for name, value in flat.items() if value is not None}, warns=not is_saved)
        self._fill_in_start()
        if problems := [*self._word_problems(), *self._schedule_problems(), *self._size_problems()]:
            raise ConfigError("WidConfig: " + "; ".join(problems))

    def _restore(self) -> None:
        """Make objects of the dictionaries in adapter_config.json, and make example inputs savable."""
        if isinstance(self.calibration_config, dict):
            self.calibration_config = from_saved(CalibrationConfig, self.calibration_config)
        elif not isinstance(self.calibration_config, CalibrationConfig):
            raise ConfigError(
                f"WidConfig: calibration_config={self.calibration_config!r} is not a CalibrationConfig; leave it out "
                "for the defaults"
            )
        if isinstance(self.schedule, dict):
            self.schedule = WidSchedule.from_dict(self.schedule)
        if self.example_inputs is not None:
            self.example_inputs = packed(self.example_inputs)

    def _take_flat(self, given: dict[str, Any], *, warns: bool) -> None:
        """Move the fields of version 0.1 into `calibration_config`."""
        if given and warns:
            old = ", ".join(f"{name}={value!r}" for name, value in given.items())
            new = ", ".join(f"{FLAT[name]}={value!r}" for name, value in given.items())
            warn(f"WidConfig({old})", f"calibration_config=CalibrationConfig({new})", stacklevel=5)
        self.calibration_config = replace(self.calibration_config, **{FLAT[name]: given[name] for name in given})

    def _fill_in_start(self) -> None:
        """Fill in the defaults of schedule, init and selection."""
        if self.schedule == "progressive":
            self.schedule = WidSchedule()
        if self.init is None:
            self.init = "identity" if isinstance(self.schedule, WidSchedule) else "calibrated"
        if self.selection is None:
            self.selection = "pivots" if self.init == "calibrated" else "first"

    def _word_problems(self) -> Iterator[str]:
        for name, words in (("head_strategy", HeadStrategy), ("init", Init), ("selection", Selection)):
            if getattr(self, name) not in get_args(words):
                yield f"{name}={getattr(self, name)!r} is not one of {', '.join(map(repr, get_args(words)))}"
        if not isinstance(self.tie_word_embeddings, (bool, type(None))):
            yield f"tie_word_embeddings={self.tie_word_embeddings!r} is not True, False or None"
        if not isinstance(self.settled, (str, type(None))):
            yield f"settled={self.settled!r} is not a text; leave it out"

    def _schedule_problems(self) -> Iterator[str]:
        if self.calibration_config.refine and self.init != "calibrated":
            yield f'refine={self.calibration_config.refine!r} needs init="calibrated", got init={self.init!r}'
        if isinstance(self.schedule, WidSchedule):
            if (self.init, self.selection) != ("identity", "first"):
                yield (
                    "a progressive schedule starts at the full width and chooses indices during training: leave init "
                    f"and selection out, got init={self.init!r}, selection={self.selection!r}"
                )
        elif self.schedule != "narrow":
            yield f"schedule={self.schedule!r} is not 'narrow', 'progressive' or a WidSchedule"

    def _size_problems(self) -> Iterator[str]:
        named = {name: size for name in SIZES if (size := getattr(self, name)) is not None}
        for name, size in named.items():
            if self.overrides.get(name, size) != size:
                yield f"{name} is {size!r} and, in overrides, {self.overrides[name]!r}; give it once"
        if self.num_hidden_layers is not None:
            named[COUNT] = self.num_hidden_layers
        yield from _not_sizes(named)
        yield from self._layer_problems()
        yield from self._vocabulary_problems()
        yield from _not_sizes(self.overrides)
        if not self.requested:
            yield "no size is given; set hidden_size, intermediate_size, num_hidden_layers or another size to shrink"

    def _vocabulary_problems(self) -> Iterator[str]:
        given = self.vocabulary
        if given is None or given == CORPUS or _is_size(given):
            return
        if not (isinstance(given, list) and given and all(map(_is_number, given))):
            yield f'vocabulary={given!r} is neither "{CORPUS}", a number of tokens, nor a list of numbers of tokens'
        elif given != sorted(set(given)):
            yield "vocabulary: give each token's number once, in ascending order"

    def _layer_problems(self) -> Iterator[str]:
        given = self.layers if isinstance(self.layers, dict) else {COUNT: self.layers}
        for name, layers in given.items() if self.layers is not None else ():
            title = "layers" if name == COUNT else f"layers[{name!r}]"
            if not isinstance(name, str):
                yield f"layers={self.layers!r}: give layers by the name of the entry that counts them"
            elif not (isinstance(layers, (list, tuple)) and layers and all(map(_is_number, layers))):
                yield f"{title}={layers!r} is not a list of layers' numbers, from 0"
            elif list(layers) != sorted(set(layers)):
                yield f"{title}={list(layers)}: give each number once, in ascending order"
            elif name == COUNT and self.num_hidden_layers not in (None, len(layers)):
                yield f"{title} names {len(layers)} layers, and {COUNT} is {self.num_hidden_layers}; give one of them"

    def save_pretrained(self, save_directory: str, **kwargs: Any) -> None:
        """Save as PEFT does; warn if the folder holds a model, which the adapter would hide."""
        if (Path(save_directory) / CONFIG_NAME).is_file():
            warnings.warn(
                f"The folder {save_directory} now holds a model ({CONFIG_NAME}) and this adapter, and from_pretrained "
                "would load the adapter. Save the adapter in a separate folder.",
                stacklevel=4,
            )
        self.format_version = FORMAT_VERSION  # of what is written, whatever was read
        super().save_pretrained(save_directory, **kwargs)

    @property
    def needs_data(self) -> bool:
        """Whether the start is made from calibration data."""
        return self.init == "calibrated" or self.selection != "first"

    @property
    def requested(self) -> dict[str, Any]:
        """Everything that makes the student smaller, by name: layers, tokens and sizes."""
        tokens = f"{len(self.vocabulary)} tokens" if isinstance(self.vocabulary, list) else self.vocabulary
        other = {COUNT: self.num_hidden_layers, "layers": self.layers, "vocabulary": tokens}
        return {name: value for name, value in other.items() if value is not None} | self.sizes

    @property
    def sizes(self) -> dict[str, Any]:
        """Every requested size, by name; nested dictionaries for composite configs."""
        named = {f.name: getattr(self, f.name) for f in fields(self) if f.name in SIZES}
        return {name: size for name, size in named.items() if size is not None} | dict(self.overrides)


def _not_sizes(sizes: dict[str, Any], prefix: str = "") -> list[str]:
    problems: list[str] = []
    for name, size in sizes.items():
        if isinstance(size, dict):
            problems += _not_sizes(size, f"{prefix}{name}.")
        elif isinstance(size, (list, tuple)) and size:
            problems += [
                f"{prefix}{name}={size!r}: {one!r} is not a positive integer" for one in size if not _is_size(one)
            ]
        elif not _is_size(size):
            problems.append(f"{prefix}{name}={size!r} is not a positive integer")
    return problems


def _is_above_zero(number: object) -> bool:
    return not isinstance(number, bool) and isinstance(number, (int, float)) and 0 < number < inf


def _is_size(size: object) -> bool:
    return type(size) is int and size > 0


def _is_number(number: object) -> bool:
    """Return whether it may be the number of a layer or a token."""
    return type(number) is int and number >= 0

"""`WidConfig`: which student to make, in the teacher's own words.

Takes what a user wants; checks what can be checked without a model. `student` turns it into the student's
transformers config, PEFT saves it as `adapter_config.json`.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field, fields
from enum import Enum
from math import inf
from pathlib import Path
from typing import Any, Literal, get_args

from peft import PeftConfig
from transformers.utils import CONFIG_NAME

from .errors import ConfigError
from .format_version import refuse_newer
from .progressive.schedule import WidSchedule
from .stored_inputs import packed

HeadStrategy = Literal["auto", "dim", "head"]
Selection = Literal["first", "variance", "pivots"]
Init = Literal["calibrated", "identity"]


class PeftType(str, Enum):
    """The name of the method, a string as well as a member, as those in PEFT's own enum are."""

    WID = "WID"


FORMAT_VERSION = 1  # of what a saved adapter is
SIZES = ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim")


@dataclass
class WidConfig(PeftConfig):
    """The student's sizes and how its compactors start.

    Sizes that are None stay the teacher's, except what follows from `hidden_size` by `head_strategy`.

    Args:
        hidden_size: width of the residual stream.
        intermediate_size: inner width of the feed-forward blocks.
        num_attention_heads: number of (query) heads; by default decided by `head_strategy`.
        num_key_value_heads: number of key/value heads, for grouped-query attention.
        head_dim: width of a head, for models whose config states it.
        head_strategy: `"dim"` keeps the number of heads and makes each narrower; `"head"` keeps the width
            of heads and drops whole heads, and key/value heads with them. `"auto"` takes what the teacher allows:
            narrower heads, else fewer, else heads as they are or another number of them, else the nearest hidden
            size, with a warning. The plan says which and why.
        overrides: any other size under the name the teacher's config has for it, `{"embedding_size": 64}`;
            nested for composite models, `{"text_config": {"hidden_size": 384}}`; a list where the teacher's
            config has one, `{"hidden_sizes": [32, 64, 128]}`; by number of the layer where its layers have sizes
            of their own, `{"per_layer_config": {2: {"head_dim": 32}}}`.
        init: how compactors start. `"calibrated"` solves for them in closed form on calibration data;
            `"identity"` only selects rows and columns of the teacher's weights. By default calibrated, and identity
            with a progressive schedule.
        selection: which indices are selected: the `"first"`, those with the largest `"variance"` of activations,
            or a choice by pivoted Cholesky of their covariances, `"pivots"`. By default pivots for a calibrated
            start and the first for identity.
        calibration_samples: how many rows of the training set `WidTrainer` calibrates on, if nobody did before.
        calibration_batch_size: rows per batch then.
        ridge: ridge strength of the least-squares fit of what each weight reads, relative to the mean input variance.
        schedule: `"narrow"` trains the student's sizes from the first step; `"progressive"` begins at the teacher's
            widths and drops ever more, by the proportions of the paper; a `WidSchedule` says how exactly. A progressive
            training starts at the identity.
        example_inputs: keyword arguments of one forward of the teacher, where those made from its config do not fit.
            Kept with the adapter, which loads by them; `get_wid_model(..., example_inputs=...)` fills this in.
        settled: what `head_strategy="auto"` came to mean for the teacher, and why; filled in when a wid model is made,
            whose own config states every size.
        teacher_fingerprint: of the teacher's weights; filled in when a wid model is made. A config that has one, as
            those of saved adapters do, is refused by any other teacher.
        format_version: of the files of a saved adapter; filled in. Adapters of version 0.1 have none.

    Raises:
        FormatError: the config of an adapter that a newer wid_hf saved.
        ConfigError: an unknown word, a size that is neither a positive integer nor a list of them, a count that is
            no positive integer, or no size at all.
    """

    hidden_size: int | None = field(default=None, metadata={"help": "Width of the residual stream."})
    intermediate_size: int | None = field(default=None, metadata={"help": "Inner width of the feed-forward blocks."})
    num_attention_heads: int | None = field(default=None, metadata={"help": "Number of attention heads."})
    num_key_value_heads: int | None = field(default=None, metadata={"help": "Number of key/value heads."})
    head_dim: int | None = field(default=None, metadata={"help": "Width of one attention head."})
    head_strategy: HeadStrategy = field(
        default="auto",
        metadata={"help": "'dim' narrows every head, 'head' drops whole heads, 'auto' takes what the teacher allows."},
    )
    overrides: dict[str, Any] = field(
        default_factory=dict, metadata={"help": "Other sizes under the teacher's own config names."}
    )
    init: Init | None = field(default=None, metadata={"help": "How compactors start: 'calibrated' or 'identity'."})
    selection: Selection | None = field(
        default=None, metadata={"help": "Which indices the start selects: 'first', 'variance' or 'pivots'."}
    )
    calibration_samples: int = field(default=256, metadata={"help": "Training rows to calibrate on."})
    calibration_batch_size: int = field(default=32, metadata={"help": "Rows per batch of calibration."})
    ridge: float = field(default=1e-4, metadata={"help": "Ridge strength of the least-squares fit."})
    schedule: Literal["narrow", "progressive"] | WidSchedule = field(
        default="narrow", metadata={"help": "'narrow', 'progressive', or a WidSchedule."}
    )
    example_inputs: dict[str, Any] | None = field(
        default=None, metadata={"help": "Keyword arguments of one forward of the teacher."}
    )
    settled: str | None = field(default=None, metadata={"help": "What head_strategy='auto' came to mean, and why."})
    teacher_fingerprint: str | None = field(default=None, metadata={"help": "Fingerprint of the teacher's weights."})
    format_version: int = field(default=FORMAT_VERSION, metadata={"help": "Of the adapter's files."})

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse_newer(self.format_version, FORMAT_VERSION, "The adapter's configuration")
        self.peft_type = PeftType.WID
        if self.schedule == "progressive":
            self.schedule = WidSchedule()
        elif isinstance(self.schedule, dict):  # from adapter_config.json
            self.schedule = WidSchedule.from_dict(self.schedule)
        progressive = isinstance(self.schedule, WidSchedule)
        if self.init is None:
            self.init = "identity" if progressive else "calibrated"
        if self.selection is None:
            self.selection = "pivots" if self.init == "calibrated" else "first"
        if not isinstance(self.overrides, dict):
            raise ConfigError(f"WidConfig: overrides={self.overrides!r} is not a dictionary of sizes by name")
        if self.example_inputs is not None:
            self.example_inputs = packed(self.example_inputs)
        problems = [
            f"{name}={getattr(self, name)!r} is not one of {', '.join(map(repr, get_args(words)))}"
            for name, words in (("head_strategy", HeadStrategy), ("init", Init), ("selection", Selection))
            if getattr(self, name) not in get_args(words)
        ]
        if not progressive and self.schedule != "narrow":
            problems.append(f"schedule={self.schedule!r} is not 'narrow', 'progressive' or a WidSchedule")
        if progressive and (self.init, self.selection) != ("identity", "first"):
            problems.append(
                "a progressive schedule starts at the full width and chooses as it trains: leave init and selection "
                f"out, got init={self.init!r}, selection={self.selection!r}"
            )
        named = {name: size for name in SIZES if (size := getattr(self, name)) is not None}
        problems += [
            f"{name} is {named[name]!r} and, in overrides, {self.overrides[name]!r}; give it once"
            for name in named
            if self.overrides.get(name, named[name]) != named[name]
        ]
        problems += list(_not_sizes(named))
        problems += list(_not_sizes(self.overrides))
        counts = ("calibration_samples", "calibration_batch_size")
        problems += list(_not_sizes({name: getattr(self, name) for name in counts}))
        if isinstance(self.ridge, bool) or not isinstance(self.ridge, (int, float)) or not 0 < self.ridge < inf:
            problems.append(f"ridge={self.ridge!r} is not a number above 0")
        if not isinstance(self.settled, (str, type(None))):
            problems.append(f"settled={self.settled!r} is no text; leave it out")
        if not self.requested:
            problems.append("no size is given; set hidden_size, intermediate_size or another size to shrink")
        if problems:
            raise ConfigError("WidConfig: " + "; ".join(problems))

    def save_pretrained(self, save_directory: str, **kwargs: Any) -> None:
        """Save as PEFT does; a warning tells where a model lies in the folder already, which the adapter would hide."""
        if (Path(save_directory) / CONFIG_NAME).is_file():
            warnings.warn(
                f"The folder {save_directory} holds a model ({CONFIG_NAME}) beside this adapter now, and "
                "from_pretrained loads an adapter where it finds one. Save the adapter in a folder of its own.",
                stacklevel=4,
            )
        super().save_pretrained(save_directory, **kwargs)

    @property
    def needs_data(self) -> bool:
        """Return whether the start is made from activations."""
        return self.init == "calibrated" or self.selection != "first"

    @property
    def requested(self) -> dict[str, Any]:
        """Every size asked for, by name; nested dictionaries for composite configs."""
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


def _is_size(size: object) -> bool:
    return type(size) is int and size > 0

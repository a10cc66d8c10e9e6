"""Old names that still work for one release, each with a warning that says what to write instead.

`warn` is for anything old: an argument, an option, a name. `MOVED` has the import paths of version 0.1 that its
documentation and examples used; modules that no longer exist as files are created from it when they are imported.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Sequence
from functools import wraps
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, ParamSpec, TypeVar

GONE_IN = "0.3"
P = ParamSpec("P")
R = TypeVar("R")
BASELINES = "benchmarks/baselines/{}.py of a checkout of wid-hf"  # not installed with the package

# Import path of 0.1 -> import path now, or another place.
_TOOLS = {
    "compress": ("CompressSettings", "compress"),
    "evaluate": ("EvalSettings", "evaluate"),
    "evaluation": ("latency",),
    "evaluation.tasks": ("TASKS", "DataPlaces", "FineTuning", "find_tasks"),
    "evaluation.tasks.classification": ("Classification",),
    "evaluation.tasks.source": ("Origin", "Source"),
    "export": ("export_onnx",),
    "output_folder": ("OutputFolder", "write_folder"),
    "reports.wid_report": ("FILE_NAME", "Report"),
    "teachers": ("load_teacher", "load_tokenizer"),
}
_SCORES = (
    "cosine_correlation",
    "embed",
    "masked_batches",
    "masked_lm_score",
    "perplexity_score",
    "retrieval_agreement",
    "sentence_score",
)
MOVED = {
    **{f"wid_hf.data.{name}": f"wid_hf.inputs.{name}" for name in ("batches", "tokenize")},
    **{f"wid_hf.evaluation.{name}": f"wid_hf.scores.{name}" for name in _SCORES},
    **{
        f"wid_hf.{module}.{name}": f"wid_hf.tools.{module}.{name}" for module, names in _TOOLS.items() for name in names
    },
    **{f"wid_hf.data.{name}": f"wid_hf.rows.{name}" for name in ("hold_out", "load_texts")},
    "wid_hf.compress.OF_CALIBRATION": "wid_hf.config.FLAT",
    "wid_hf.evaluation.mean_pool": "wid_hf.sentence_models.pooling.mean_pool",
    "wid_hf.evaluation.model_size": "wid_hf.hub.model_size.model_size",
    "wid_hf.teachers.save_tokenizer": "wid_hf.tools.teachers.save_processor",
    "wid_hf.progressive.picture.narrow_from": "wid_hf.progressive.history.narrow_from",
    "wid_hf.progressive.picture.widths_over_steps": "wid_hf.progressive.history.widths_over_steps",
    "wid_hf.reports.card.CARD_NAME": "wid_hf.hub.cards.CARD_NAME",
    "wid_hf.reports.card.adapter_card": "wid_hf.hub.cards.adapter_card",
    "wid_hf.reports.card.student_card": "wid_hf.hub.cards.student_card",
    "wid_hf.reports.own_files.why_not_ours": "wid_hf.hub.own_files.why_not_ours",
    "wid_hf.reports.wid_report.PICTURE_NAME": "wid_hf.hub.own_files.CALIBRATION_PICTURE",
    "wid_hf.whole_file.whole_file": "wid_hf.atomic_write.atomic_write",
    "wid_hf.DistillingTrainer": BASELINES.format("distilling_trainer"),
    "wid_hf.methods.METHODS": BASELINES.format("methods"),
    "wid_hf.methods.find_method": BASELINES.format("methods"),
    "wid_hf.training.baselines.stock_student": BASELINES.format("distilling_trainer"),
}

# Old modules whose name is a public function today. Importing one puts it in the function's place in `wid_hf`.
FUNCTIONS_NOW = {"wid_hf.compress": "wid_hf.tools.one_call.compress"}


def warn(old: str, new: str, stacklevel: int = 3) -> None:
    """Warn that `old` is deprecated in favour of `new`; by default at the line of the caller's caller."""
    warnings.warn(f"{old} is deprecated and will be removed in wid-hf {GONE_IN}: use {new}.", FutureWarning, stacklevel)


def renamed_arguments(**names: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Let a function take arguments under their old names, each with a warning; `names` maps old to new."""

    def renamed(function: Callable[P, R]) -> Callable[P, R]:
        @wraps(function)
        def called(*args: P.args, **given: P.kwargs) -> R:
            for old in names.keys() & given.keys():
                warn(f"{function.__name__}({old}=...)", f"{names[old]}=")
                given[names[old]] = given.pop(old)
            return function(*args, **given)

        return called

    return renamed


def refuse_moved(old: str) -> None:
    """Raise ImportError if the import path `old` is one of those that left the package; it says where to find it."""
    new = MOVED.get(old)
    if new is not None and not new.startswith("wid_hf."):
        raise ImportError(f"{old} is no longer part of the package. It is in {new}.")


def find_old_modules() -> None:
    """Make modules of `MOVED` that no longer exist as files importable; a second call changes nothing."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.append(_Finder())  # last: it is only used for modules that no other finder has


class _Finder(MetaPathFinder, Loader):
    """Finds old modules, and the packages that they were in, and makes them."""

    def __init__(self) -> None:
        paths = [path.split(".")[:-1] for path in MOVED]
        self.modules = {".".join(parts[:end]) for parts in paths for end in range(2, len(parts) + 1)}

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return ModuleSpec(fullname, self, is_package=True) if fullname in self.modules else None

    def exec_module(self, module: ModuleType) -> None:
        def moved(name: str) -> Any:
            old = f"{module.__name__}.{name}"
            new = MOVED.get(old)
            if new is None:
                raise AttributeError(f"module {module.__name__!r} is gone, and {name!r} was not documented in it")
            refuse_moved(old)
            warn(old, new)
            home, _, now = new.rpartition(".")
            value = getattr(import_module(home), now)
            setattr(module, name, value)  # `from` looks a name up twice; there should be one warning
            return value

        module.__getattr__ = moved  # type: ignore[method-assign]
        if module.__name__ in FUNCTIONS_NOW:
            module.__class__ = _FunctionNow
            module.__doc__ = f"The old module, and the function of that name: see `{FUNCTIONS_NOW[module.__name__]}`."


class _FunctionNow(ModuleType):
    """An old module that can be called as the function which has its name today."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        home, _, name = FUNCTIONS_NOW[self.__name__].rpartition(".")
        return getattr(import_module(home), name)(*args, **kwargs)

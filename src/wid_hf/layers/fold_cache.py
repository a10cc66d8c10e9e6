"""When a weight of the student is folded, and how long its fold is kept: one cache, one policy.

Takes a student with folded weights. `install` keeps folds of shared weights during each forward, `WidTrainer` keeps all
folds during an optimizer step or an evaluation, calibration keeps each fold until its maps are written.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from math import inf
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.utils import parametrize

from .folded_weight import FoldedWeight, KeptFold, places
from .table_rows import fold_by_rows, lookups


@dataclass(frozen=True)
class FoldPolicy:
    """Until when folds are kept, and which. There are the four below; `FoldCache` says what each does.

    Attributes:
        until: the end of the `"forward"`, the `"release"` of all, or a `"write"` of the weight's own maps.
        gradients: whether a backward pass may go through the folds.
        tokens: how many tokens are looked up until then, in all. If a table has more rows and only one embedding uses
            it, each forward folds only the rows that it looks up. None: whole tables are kept.
        dtype: what the folds are cast to; the teacher's if None.
    """

    until: Literal["forward", "release", "write"]
    gradients: bool = True
    tokens: int | None = None
    dtype: torch.dtype | None = None

    @classmethod
    def for_forwards(cls) -> FoldPolicy:
        """Keep the weights that several modules share during each forward of the whole student."""
        return cls("forward")

    @classmethod
    def for_step(cls, tokens: int | None = None) -> FoldPolicy:
        """Keep every weight during one optimizer step, whose micro-batches have about `tokens` tokens in all."""
        return cls("release", tokens=tokens)

    @classmethod
    def for_evaluation(cls, dtype: torch.dtype | None = None) -> FoldPolicy:
        """Keep every weight, cast to `dtype`, during several forwards without gradients."""
        return cls("release", gradients=False, dtype=dtype)

    @classmethod
    def for_calibration(cls) -> FoldPolicy:
        """Keep every weight until its maps are written: one fold serves the paused forwards of all batches."""
        return cls("write")


class FoldCache:
    """Every `FoldedWeight` of a student, and the folds that are kept of them.

    Without a policy each use of a weight folds it. So gradient checkpointing, which computes a part of the forward
    again in the backward pass, folds again. A policy says when a fold is formed, kept and dropped:

    - `for_forwards` (set by `install`, for as long as the student lives): a weight that several modules share is formed
      at its first use in a forward of the whole student, and dropped when that forward returns or raises. There is one
      fold for uses with gradients and one for uses without. A checkpointed part of a forward folds separately, because
      it is computed again when the forward is over.
    - `for_step` (`WidTrainer`): `keep` forms every weight at once, and each stays until `release`. Gradients are
      linear: all micro-batches but the last use leaf tensors, in which gradients add up. `open` is called before the
      last micro-batch, whose backward pass goes through the folds and adds the gradients of the leaves. This equals
      folding in every forward, up to rounding, at the cost of one fold a step; and the last forward uses every
      parameter, as `DistributedDataParallel` needs. Large lookup tables are not kept: each forward folds the rows that
      it looks up.
    - `for_evaluation` (`WidTrainer`): as for a step, without gradients, in any dtype, until `drop`.
    - `for_calibration`: a weight is formed at its first use, and stays until `forget`, called when its maps were
      written, or until `drop`.

    A fold kept for a step or an evaluation is used everywhere, also in shared weights and checkpoints. A copy of a
    student has no folds.

    Args:
        student: an installed student; each call looks its weights up again, since a student that shrinks gets new ones.
    """

    def __init__(self, student: nn.Module) -> None:
        self.student = student
        self._folds: dict[FoldedWeight, Tensor] = {}  # with the graph that leads to the maps
        self._leaves: dict[FoldedWeight, Tensor] = {}
        self._filled: set[FoldedWeight] = set()
        self._by_rows: list[Callable[[], None]] = []

    def keep(self, policy: FoldPolicy) -> None:
        """Keep folds from now on, as `policy` says."""
        if policy.until == "forward":
            self._keep_shared_in_forwards()
        elif policy.until == "write":
            self._filled = {place.weight for place in places(self.student)}
            for weight in self._filled:
                self.forget(weight)
        else:
            self._form_all(policy)

    @contextmanager
    def keeping(self, policy: FoldPolicy) -> Iterator[FoldCache]:
        """Keep folds inside, and drop them at the end."""
        self.keep(policy)
        try:
            yield self
        finally:
            self.drop()

    def open(self) -> None:
        """Let the next backward pass go through the folds and add the gradients of the leaves."""
        for weight, folded in self._folds.items():
            if folded.requires_grad:
                weight.slot = _Formed(_Opened.apply(folded, partial(self._gathered, weight)))

    def release(self) -> None:
        """Drop all folds; gradients of leaves that the last forward did not use go through their folds first."""
        left = [(self._folds[weight], leaf.grad) for weight, leaf in self._leaves.items() if leaf.grad is not None]
        self.drop()
        if left:
            torch.autograd.backward([folded for folded, _ in left], [gradient for _, gradient in left])

    def drop(self) -> None:
        """Let each use fold again; gradients in the leaves are lost."""
        for weight in self._filled:
            weight.slot = None
        for stop in self._by_rows:
            stop()
        self._folds, self._leaves, self._filled, self._by_rows = {}, {}, set(), []

    def forget(self, weight: FoldedWeight) -> None:
        """Let the next use of `weight`, whose maps were written, form its fold again."""
        weight.slot = _AtFirstUse()

    def _form_all(self, policy: FoldPolicy) -> None:
        most = inf if policy.tokens is None else policy.tokens
        few = {table: module for table, module in lookups(self.student).items() if most < module.num_embeddings}
        originals = {place.weight: place.original for place in places(self.student) if place.weight not in few}
        with torch.set_grad_enabled(policy.gradients and torch.is_grad_enabled()):
            self._folds = {weight: weight.fold(original) for weight, original in originals.items()}
        for weight, folded in self._folds.items():
            # Torch chooses kernels by `requires_grad` even without gradients: the rounding must be that of a parameter.
            trains = folded.requires_grad or originals[weight].requires_grad
            leaf = folded.detach().to(policy.dtype or folded.dtype).requires_grad_(trains)
            weight.slot, self._leaves[weight] = _Formed(leaf), leaf
        self._filled = set(self._folds)
        self._by_rows = [fold_by_rows(table, module) for table, module in few.items()]

    def _gathered(self, weight: FoldedWeight, gradient: Tensor) -> Tensor:
        leaf = self._leaves.pop(weight, None)
        return gradient if leaf is None or leaf.grad is None else gradient + leaf.grad

    def _keep_shared_in_forwards(self) -> None:
        everything = list(places(self.student))
        users = Counter(place.weight for place in everything)
        first = {place.weight: place.spot for place in reversed(everything) if users[place.weight] > 1}
        spots = tuple(first.values())  # torch.compile cannot trace a view of a dictionary

        def shared(model: nn.Module) -> Iterator[FoldedWeight]:
            # Looked up at every forward: a model that shrinks gets new weights, and a copy of it has others.
            for path, attribute in spots:
                module: Any = model.get_submodule(path)
                if parametrize.is_parametrized(module, attribute):  # the parametrization may have been removed
                    yield module.parametrizations[attribute][0]

        def begin(model: nn.Module, *_: Any) -> None:
            for weight in shared(model):
                if not isinstance(weight.slot, _Formed):
                    weight.slot = _AtFirstUse()

        def end(model: nn.Module, *_: Any) -> None:
            for weight in shared(model):
                if not isinstance(weight.slot, _Formed):
                    weight.slot = None

        if spots:
            self.student.register_forward_pre_hook(begin)
            self.student.register_forward_hook(end, always_call=True)


class _Formed(KeptFold):
    """A fold that every use shares."""

    def __init__(self, fold: Tensor) -> None:
        self.fold = fold

    def of(self, weight: FoldedWeight, original: Tensor) -> Tensor:
        return self.fold


class _AtFirstUse(KeptFold):
    """Folds that are formed at first use: one with gradients and one without."""

    def __init__(self) -> None:
        self.folds: dict[bool, Tensor] = {}  # by whether gradients are recorded

    def of(self, weight: FoldedWeight, original: Tensor) -> Tensor:
        if _inside_checkpoint():  # which computes this part again later, when this fold is dropped
            return weight.fold_like_a_parameter(original)
        recording = torch.is_grad_enabled()
        if recording not in self.folds:
            self.folds[recording] = weight.fold_like_a_parameter(original)
        return self.folds[recording]


class _Opened(torch.autograd.Function):
    """A fold, unchanged, whose gradient is changed on its way back to the fold.

    A hook on the fold would also change the results of `torch.autograd.grad` elsewhere.
    """

    @staticmethod
    def forward(ctx: Any, folded: Tensor, gathered: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.gathered = gathered
        return folded.view_as(folded)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return ctx.gathered(gradient), None


def _inside_checkpoint() -> bool:
    """Return whether saved tensors are being intercepted, as `torch.utils.checkpoint` does."""
    if torch.compiler.is_compiling():
        return False
    return torch._C._autograd._top_saved_tensors_default_hooks(True) is not None

"""The lift of every read: from what the student reads to what the teacher reads, by regression.

Takes teacher and student side by side, goes through the reads in the order of the forward, and writes the
column compactors and bias shifts of each before the student goes on. Called by the tuner after `survey`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn

from ..coupling.plan import Plan, key
from ..coupling.trace import Trace, quiet_forward
from ..coupling.weight_inputs import WeightInput
from ..errors import DataError
from ..layers import Compactor, FoldCache, FoldedWeight, FoldPolicy, IndexSelect
from .lockstep import Batch, Forward, Precision, Stop, prepared, walk
from .moments import Lift, Regression
from .norm_scale import divergence, scaled_reads, seen_through
from .report import Site
from .select import NOT_FINITE, same
from .small_sample import Known, few_lift

ENOUGH = 2  # positions per index of the student; below that a fit says more about these positions than others
FEW = "too few positions"
ROUTED = "positions of teacher and student differ"
UNSCALED = "scores are nearer without scaling"
COMPARED = 256  # positions whose scores are compared: enough for a mean, and few enough for a large vocabulary


def lift_reads(
    teacher: nn.Module, student: nn.Module, folded_weights: Mapping[str, FoldedWeight], trace: Trace, plan: Plan,
    batches: Sequence[Batch], *, precision: Precision, ridge: float,
) -> list[Site]:  # fmt: skip
    """Set the column compactors of `student` and the shifts of the biases beside them, read after read.

    A table that is also looked up (a tied decoder) writes along the axis that it reads, so its columns stay. There the
    vector that scales what is read (the last normalisation's weight) is fitted instead: `f = argmin E|W x_teacher -
    W C (f * x_student)|^2`, since the logits are what is read for. It is kept if their softmax comes nearer as well.

    At each read `C = argmin E|x_teacher - C x_student - c0|^2` over all positions, where the student has been
    lifted at all earlier reads; then `W_student = R W C`, and `R W c0` goes into the bias, where there is one.
    A weight that is read several times (shared layers) is fitted to all its reads so far. Where positions
    cannot be paired (experts that other tokens are routed to), the latest lift of the same coupled dimension is taken.
    Where they are fewer than two per index (a pooled token), the fit leans on that lift, as cross-validation has it.

    Args:
        teacher: runs as it is.
        student: installed, at its start.
        folded_weights: of the student, by the teacher's name of each weight.
        trace: the teacher's.
        plan: sizes and reads.
        batches: as for `survey`.
        precision: of the forwards.
        ridge: strength of the regularisation, a share of the mean variance.

    Raises:
        DataError: activations of the student are not finite.
    """
    return _Lifter(teacher, student, folded_weights, trace, plan, precision, ridge).run(batches)


class _Lifter:
    def __init__(
        self, teacher: nn.Module, student: nn.Module, folded_weights: Mapping[str, FoldedWeight], trace: Trace,
        plan: Plan, precision: Precision, ridge: float,
    ) -> None:  # fmt: skip
        self.teacher, self.student, self.precision = teacher, student, precision
        self.folds = FoldCache(student)
        self.folded_weights, self.trace, self.plan, self.ridge = folded_weights, trace, plan, ridge
        modules = {
            at: folded_weights[plan.weight_inputs[at].weight].maps[str(plan.weight_inputs[at].axis)]
            for at in plan.fitted
        }
        self.compactors = {at: module for at, module in modules.items() if isinstance(module, Compactor)}
        self.vectors = scaled_reads(plan, folded_weights)
        self.uses = Counter(plan.weight_inputs[at].weight for at in self.compactors)
        self.starts = {plan.weight_inputs[at].weight: m.matrix.detach().T.clone() for at, m in self.compactors.items()}
        self.so_far: dict[str, Regression] = {}
        self.latest: dict[Any, Regression] = {}
        self.rows: tuple[Tensor, Tensor] | None = None  # what teacher and student read last, where positions are few

    def run(self, batches: Sequence[Batch]) -> list[Site]:
        sites: list[Site] = []
        stops = {*self.compactors, *self.vectors}
        if not stops:
            return sites
        with quiet_forward(self.teacher), quiet_forward(self.student), ExitStack() as stack:
            stack.enter_context(self.folds.keeping(FoldPolicy.for_calibration()))
            teachers = [self._teacher(batch, stops) for batch in batches]
            students = [self._student(batch, stops, stack) for batch in batches]
            pairs = list(zip(teachers, students, strict=True))
            regression: Regression | None = None
            previous: list[Stop | None] = []
            for at, here in track(
                walk([*teachers, *students], stops),
                "Calibrating",
                total=len(stops),
                transient=True,
                console=Console(stderr=True),
            ):
                if at in self.vectors:
                    sites.append(self._scale(at, pairs, here))
                    previous = []  # what is read was written to
                    continue
                if not previous or not same(previous, here):
                    regression = self._observe(
                        pairs, here[: len(pairs)], here[len(pairs) :], self.plan.weight_inputs[at]
                    )
                previous = here
                sites.append(self._lift(at, regression))
                self._refresh(students, self.plan.weight_inputs[at])
        return sites

    def _teacher(self, batch: Batch, stops: Collection[int]) -> Forward:
        forward = Forward(self.teacher, prepared(self.teacher, batch), self.plan, stops, self.precision)
        for name, tensor in self.trace.weights.items():
            forward.know(name, tensor)
        return forward

    def _student(self, batch: Batch, stops: Collection[int], stack: ExitStack) -> Forward:
        forward = Forward(self.student, prepared(self.student, batch), self.plan, stops, self.precision)
        for name, compaction in self.folded_weights.items():
            stack.callback(forward.watch(name, compaction))
        return forward

    def _observe(
        self, pairs: Sequence[tuple[Forward, Forward]], teacher: Sequence[Stop | None], student: Sequence[Stop | None],
        read: WeightInput, root: Tensor | None = None,
    ) -> Regression | None:  # fmt: skip
        """Return the joint moments of this read, or None where positions cannot be paired.

        What the teacher reads is seen through `root (m, n)`, if one is given.
        """
        if read.routed:
            return None
        regression = None
        rows: list[tuple[Tensor, Tensor]] = []
        few = ENOUGH * self.plan.size(self.plan.axes[read.weight][read.axis])
        self.rows = None
        for (one, other), mine, theirs in zip(pairs, teacher, student, strict=True):
            if mine is None and theirs is None:
                continue
            if mine is None or theirs is None:
                return None
            x, y = one.rows(mine), other.rows(theirs)
            if len(x) != len(y):
                return None
            if root is not None:
                x = x.to(root.dtype) @ root.T
            regression = regression or Regression(x.shape[1], y.shape[1], x.device)
            regression.add(x, y)
            if regression.count < few:
                rows.append((x, y))
        if regression is not None and regression.count < few:
            of_teacher, of_student = zip(*rows, strict=True)
            self.rows = torch.cat(of_teacher), torch.cat(of_student)
        if regression is not None:
            for who, fine in zip(("teacher", "student"), regression.is_finite(), strict=True):
                if not fine:
                    raise DataError(NOT_FINITE.format(who))
        return regression

    def _lift(self, at: int, seen: Regression | None) -> Site:
        """Set the compactor and the shift of one read."""
        read, compactor = self.plan.weight_inputs[at], self.compactors[at]
        intercept = read.bias is not None
        dim = self.plan.axes[read.weight][read.axis]
        start, size = self.starts[read.weight], self.plan.size(dim)
        if seen is not None and self.uses[read.weight] > 1:
            total = self.so_far.setdefault(read.weight, Regression(dim.size, size, seen.energy.device))
            total += seen
            seen = total
        note = ROUTED if seen is None else FEW if seen.count < ENOUGH * size else ""
        latest = self.latest.get(key(dim))
        lift = latest.solve(start, self.ridge, intercept) if note and latest is not None else None
        if seen is not None and not note:
            self.latest[key(dim)] = seen
            lift = seen.solve(start, self.ridge, intercept)
        elif seen is not None and self.rows is not None:
            known = Known(start, latest, self.ridge, ENOUGH * size)
            reader = self.trace.weights[read.weight].detach().movedim(read.axis, -1).flatten(0, -2)
            lift = few_lift(*self.rows, reader, known, intercept) or lift
        if lift is not None:
            self._write(read, compactor, lift)
        before, after = (
            seen.error(each, intercept) if seen is not None else float("nan")
            for each in (start, lift.columns if lift is not None else start)
        )
        return Site(read.weight, read.axis, dim.size, size, seen.count if seen else 0, before, after, note)

    @torch.no_grad()
    def _scale(self, at: int, pairs: Sequence[tuple[Forward, Forward]], here: Sequence[Stop | None]) -> Site:
        """Set the vectors that scale what one table reads."""
        read, students = self.plan.weight_inputs[at], here[len(pairs) :]
        dim = self.plan.axes[read.weight][read.axis]
        size = self.plan.size(dim)
        root, columns = seen_through(self.trace.weights[read.weight], read.axis, self.folded_weights[read.weight])
        seen = self._observe(pairs, here[: len(pairs)], students, read, root)
        if seen is None or seen.count < ENOUGH * size:
            before = seen.error(columns, intercept=False) if seen is not None else float("nan")
            note = ROUTED if seen is None else FEW
            return Site(read.weight, read.axis, dim.size, size, seen.count if seen else 0, before, before, note)
        factors = seen.scales(columns, self.ridge)
        # Squares weigh every score alike, a softmax the high ones: what is nearer by squares may be farther off.
        if not self._is_nearer(read, pairs, here, factors):
            before = seen.error(columns, intercept=False)
            return Site(read.weight, read.axis, dim.size, size, seen.count, before, before, UNSCALED)
        for name in self.vectors[at]:
            for choice in self.folded_weights[name].maps.values():
                assert isinstance(choice, IndexSelect)  # `scaled_reads` asked
                choice.factors.mul_(factors.to(choice.factors))
            self.folds.forget(self.folded_weights[name])
        for stop in students:
            if stop is not None:  # scaled already, with the factors of before
                stop.tensor.mul_(factors.to(stop.tensor).view([-1] + [1] * (stop.tensor.ndim - 1 - stop.axis)))
        before, after = (seen.error(each, intercept=False) for each in (columns, columns * factors))
        return Site(read.weight, read.axis, dim.size, size, seen.count, before, after)

    def _is_nearer(
        self, read: WeightInput, pairs: Sequence[tuple[Forward, Forward]], here: Sequence[Stop | None], factors: Tensor
    ) -> bool:
        """Return whether a tied table's scores become more like the teacher's by `factors (k,)`, on some positions."""
        table = self.trace.weights[read.weight].movedim(read.axis, -1).flatten(0, -2)
        compactor = self.folded_weights[read.weight].maps[str(read.axis)]
        assert isinstance(compactor, Compactor)  # `scaled_reads` asked
        columns = compactor.matrix.detach().T
        x, y = (
            torch.cat([f.rows(stop) for f, stop in zip(forwards, stops, strict=True) if stop is not None])
            for forwards, stops in zip(zip(*pairs, strict=True), (here[: len(pairs)], here[len(pairs) :]), strict=True)
        )
        count = min(len(x), COMPARED)
        some = torch.arange(count, device=x.device) * (len(x) - 1) // max(count - 1, 1)  # evenly, both ends included
        bias = self.trace.weights[read.bias] if read.bias is not None else None
        without, scaled = (
            divergence(table, bias, x[some], y[some], each) for each in (columns, columns * factors.to(columns))
        )
        return scaled < without

    @torch.no_grad()
    def _write(self, read: WeightInput, compactor: Compactor, lift: Lift) -> None:
        compactor.matrix.copy_(lift.columns.T)
        if read.bias is None:
            return
        bias, weight = self.folded_weights[read.bias], self.trace.weights[read.weight].detach()
        along = [at for at in range(weight.ndim) if at != read.axis]
        made = torch.tensordot(weight.to(lift.offset), lift.offset, dims=([read.axis], [0]))
        made = made.flatten(1).sum(1) if len(along) > 1 else made  # a kernel adds its constant at every tap
        for module in bias.maps.values():
            made = module(made.to(compactor.matrix), 0)
        assert bias.shift is not None  # `install` gave one to every bias that is added at such a read
        bias.shift.copy_(made)

    @torch.no_grad()
    def _refresh(self, students: Sequence[Forward], read: WeightInput) -> None:
        """Let every student go on with the weights as they are now: each has folded the old ones already."""
        for name in (read.weight, read.bias):
            if name is not None:
                self.folds.forget(self.folded_weights[name])
                value = self.folded_weights[name](self.trace.weights[name])
                for student in students:
                    student.replace(name, value)

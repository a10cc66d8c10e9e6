"""Layer-wise least-squares reconstruction: every weight input of the student is fitted to the teacher's.

Takes teacher and student in lockstep, goes through the weight inputs in the order of the forward, and writes the column
compactor and the bias shift of each weight before the student goes on. Called by `initialize`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import nan
from typing import Any

import torch
from torch import Tensor, nn

from ..coupling.landmark_record import Landmark
from ..coupling.plan import Plan, key
from ..coupling.trace import Trace
from ..coupling.weight_inputs import WeightInput
from ..layers import Compactor, FoldCache, FoldedWeight, FoldPolicy, folded_weights
from ..progress_bar import progress_bar
from .batches import Batch
from .lockstep import Lockstep, Operands, Watched, are_same
from .moments import LinearFit, Regression, as_matrix
from .norm_scale import NormScale
from .pairing import ENOUGH, PLENTY, PairedMoments, paired_moments
from .precision import Precision
from .report import FEW, ROUTED, InputReconstruction
from .residual_fit import ResidualFit
from .small_sample import Known, fit_few
from .stream import Stream
from .vector_fit import VectorFit

WRITER_RIDGE = 1e-3  # of the fits before residual sums, which see the student's own activations
SOME = 4  # positions per index of the student's for a fit that a residual sum makes once more: that one starts from it


def reconstruct(
    teacher: nn.Module,
    student: nn.Module,
    trace: Trace,
    plan: Plan,
    batches: Sequence[Batch],
    *,
    precision: Precision,
    ridge: float,
    streams: Sequence[tuple[Stream, Tensor]] = (),
    measured: bool = True,
) -> list[InputReconstruction]:
    """Set the column compactors of `student` and the bias shifts beside them, one weight input after the other.

    At each one `C = argmin E|x_teacher - C x_student - c0|^2` over all positions, where the student's input comes from
    weights that are fitted already; then `W_student = R W C`, and `R W c0` goes into the bias, if there is one.

    - A weight that is used several times (shared layers) is fitted to all its inputs so far.
    - If positions cannot be paired (experts that get other tokens), the latest fit of the same coupled dimension is
      used.
    - If there are fewer than two positions per index (a pooled token), the fit is drawn towards that latest fit, as
      strongly as cross-validation says.
    - A table that is also looked up (a tied decoder) keeps its columns; see `norm_scale`.
    - In a turned stream the weights before each residual sum are fitted to what the stream still lacks, see
      `residual_fit`, and vectors that multiply the stream to the turned teacher's, see `vector_fit`.

    Args:
        teacher: runs as it is.
        student: installed, at its start.
        trace: the teacher's.
        plan: sizes and weight inputs.
        batches: keyword dictionaries for the forwards.
        precision: of the forwards.
        ridge: ridge strength, relative to the mean variance of the student's input.
        streams: each turned stream with its map T `(k, n)`.
        measured: whether to return how near each fit is. Otherwise these errors are NaN, and inputs of weights that
            are fitted once more at a residual sum are left out, which saves time.

    Raises:
        DataError: activations of the student are not finite.
    """
    folded = {name: module for name, module in folded_weights(student).items() if name in trace.weights}
    folds = FoldCache(student)
    fits = _Fits(trace, plan, folded, folds, streams, ridge, measured)
    if not fits.stops:
        return []
    watched = Watched(student, folded)
    models = [Watched(teacher, trace.weights), watched]
    with (
        folds.keeping(FoldPolicy.for_calibration()),
        Lockstep(models, batches, plan, fits.stops, precision) as lockstep,
    ):
        for place, (of_teacher, of_student) in progress_bar(lockstep, "Calibrating", len(fits.stops)):
            for name in fits.fit(place, of_teacher, of_student):  # every forward already has the old fold
                folds.forget(folded[name])
                lockstep.replace(watched, name, folded[name](trace.weights[name]))
    return fits.found


class _Fits:
    """All that is fitted, each at its landmark.

    Attributes:
        stops: the landmarks.
        found: of the weight inputs so far.
    """

    def __init__(
        self,
        trace: Trace,
        plan: Plan,
        folded: Mapping[str, FoldedWeight],
        folds: FoldCache,
        streams: Sequence[tuple[Stream, Tensor]],
        ridge: float,
        measured: bool,
    ) -> None:
        places = plan.landmarks
        self._measured = measured
        maps = {scaling: map_ for stream, map_ in streams for scaling in stream.fitted}
        self._scalings = places.scalings
        self._columns = _Columns(trace, plan, folded, ridge, measured)
        self._norms = NormScale(trace, plan, folded, folds, ridge)
        self._vectors = VectorFit(trace, folded, maps)
        self._residuals = ResidualFit(trace, plan, folded, streams, WRITER_RIDGE)
        inputs = {*self._columns.compactors, *self._norms.vectors, *self._residuals.inputs}
        self.stops = [place for place in places.of("input") if place.number in inputs]
        self.stops += [place for place in places.of("scaled") if places.scalings[place.number] in maps]
        self.stops += self._residuals.sums
        self.found: list[InputReconstruction] = []
        self._moments: PairedMoments | None = None
        self._previous: Operands = []  # those that the moments are of
        self._most = 0  # positions per index of these moments

    def fit(self, place: Landmark, teacher: Operands, student: Operands) -> Iterable[str]:
        """Fit what is at a landmark, and return the names of weights whose folds are old now."""
        if place.kind == "input":
            changed = self._fit_input(place.number, teacher, student)
            self._residuals.keep(place.number, teacher, student)
            return changed
        self._previous = []  # the student's activations change in place
        if place.kind == "scaled":
            return self._vectors.fit(self._scalings[place.number], teacher, student)
        return self._residuals.fit(place, teacher, student)

    def _fit_input(self, at: int, teacher: Operands, student: Operands) -> Iterable[str]:
        if at in self._norms.vectors:
            self.found.append(self._norms.fit(at, teacher, student))
            self._previous = []
        elif at in self._columns.compactors and (self._measured or at not in self._residuals.inputs):
            operands, most = [*teacher, *student], SOME if at in self._residuals.inputs else PLENTY
            if not self._previous or most != self._most or not are_same(self._previous, operands):
                self._moments = self._columns.moments(at, teacher, student, most)
            self._previous, self._most = operands, most
            self.found.append(self._columns.fit(at, self._moments))
            return self._columns.changed(at)
        return ()


class _Columns:
    """Fits the columns of weights, and the shifts of their biases.

    Attributes:
        compactors: for each weight input that is fitted, by its number, the compactor of the weight's columns.
    """

    def __init__(
        self, trace: Trace, plan: Plan, folded: Mapping[str, FoldedWeight], ridge: float, measured: bool
    ) -> None:
        self._trace = trace
        self._measured = measured
        self._plan = plan
        self._folded = folded
        self._ridge = ridge
        inputs = [(at, plan.weight_inputs[at]) for at in plan.fitted]
        maps = {at: folded[each.weight].maps[str(each.axis)] for at, each in inputs}
        self.compactors = {at: map_ for at, map_ in maps.items() if isinstance(map_, Compactor)}
        self._uses = Counter(plan.weight_inputs[at].weight for at in self.compactors)
        self._starts = {
            plan.weight_inputs[at].weight: compactor.matrix.detach().T.clone()
            for at, compactor in self.compactors.items()
        }
        self._so_far: dict[str, Regression] = {}  # of weights that are used several times
        self._latest: dict[Any, Regression] = {}  # of each coupled dimension

    def moments(self, at: int, teacher: Operands, student: Operands, most: float) -> PairedMoments | None:
        """Return the joint moments of a weight's inputs, at about `most` positions for each index of the student's.

        None where positions cannot be paired.
        """
        weight_input = self._plan.weight_inputs[at]
        if weight_input.routed:
            return None
        return paired_moments(teacher, student, size=self._plan.size(self._plan.dim_of(weight_input)), most=most)

    def fit(self, at: int, paired: PairedMoments | None) -> InputReconstruction:
        """Set the compactor and the bias shift of one weight by the moments of its input."""
        weight_input = self._plan.weight_inputs[at]
        start, intercept = self._starts[weight_input.weight], weight_input.bias is not None
        moments = self._of_all_uses(weight_input, paired.regression) if paired is not None else None
        enough = ENOUGH * self._plan.size(self._plan.dim_of(weight_input))
        fit: LinearFit | None
        if moments is not None and moments.count >= enough:
            note = ""
            self._latest[key(self._plan.dim_of(weight_input))] = moments
            fit = moments.solve(start, self._ridge, intercept)
        else:
            note = ROUTED if moments is None else FEW
            fit = self._fit_few(weight_input, paired, enough)
        if fit is not None:
            self._write(weight_input, self.compactors[at], fit)
        if moments is None or not self._measured:
            return InputReconstruction.of(self._plan, at, moments.count if moments else 0, nan, nan, note)
        before = moments.error(start, intercept)
        after = before
        if fit is not None:
            after = moments.error(fit.columns, intercept) if note else fit.error
        return InputReconstruction.of(self._plan, at, moments.count, before, after, note)

    def changed(self, at: int) -> Iterator[str]:
        """Yield the names of the weight and its bias."""
        weight_input = self._plan.weight_inputs[at]
        yield from filter(None, (weight_input.weight, weight_input.bias))

    def _of_all_uses(self, weight_input: WeightInput, moments: Regression) -> Regression:
        """Return the moments of all inputs of the weight so far, this one included."""
        if self._uses[weight_input.weight] == 1:
            return moments
        n, k = moments.cross.shape
        total = self._so_far.setdefault(weight_input.weight, Regression(n, k, moments.energy.device))
        total += moments
        return total

    def _fit_few(self, weight_input: WeightInput, paired: PairedMoments | None, enough: int) -> LinearFit | None:
        """Return a fit drawn towards the latest one of the same dimension; None if the start should stay."""
        start, intercept = self._starts[weight_input.weight], weight_input.bias is not None
        latest = self._latest.get(key(self._plan.dim_of(weight_input)))
        if paired is not None and paired.rows is not None:
            known = Known(start, latest, self._ridge, enough)
            weight = as_matrix(self._trace.weights[weight_input.weight].detach(), weight_input.axis)
            if (fit := fit_few(*paired.rows, weight, known, intercept)) is not None:
                return fit
        return latest.solve(start, self._ridge, intercept) if latest is not None else None

    def _write(self, weight_input: WeightInput, compactor: Compactor, fit: LinearFit) -> None:
        """Write the columns into the compactor, and the weight's product with the offset into the bias shift."""
        compactor.matrix.detach().copy_(fit.columns.T)
        if weight_input.bias is None:
            return
        bias, weight = self._folded[weight_input.bias], self._trace.weights[weight_input.weight].detach()
        made = torch.tensordot(weight.to(fit.offset), fit.offset, dims=([weight_input.axis], [0]))
        made = made.flatten(1).sum(1) if made.ndim > 1 else made  # a kernel adds its constant at every tap
        for map_ in bias.maps.values():
            made = map_(made.to(compactor.matrix), 0)
        assert bias.shift is not None  # `install` gave one to every bias that is added to such an output
        bias.shift.detach().copy_(made)

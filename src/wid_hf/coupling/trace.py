"""Watch tiny forwards of a model and give every tensor symbolic dimensions.

Takes a model and example inputs, gives a `Trace`: the dimension trees of all weights, of all module
outputs and of the model's outputs. `plan` reads it; the rules of `ops` write it while the forwards run.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from .carrier import Carrier
from .dims import NO_RULE, Dim, Reason, freeze, leaves, unify
from .flow import Flow
from .landmark_record import LandmarkRecord, Landmarks
from .landmarks import Sighting
from .op_registry import decomposition, rule_for
from .weight_inputs import WeightInput, is_linear

NOT_REACHED = Reason("", "", "was not reached by the example inputs")
# What a table may meet: sums, and products in which its indices are summed over.
ADDITIVE = {"aten.add.Tensor", "aten.add_.Tensor", "aten.mm.default", "aten.addmm.default", "aten.bmm.default"}
Dims = tuple[Dim, ...]
Call = tuple[str, int]  # a module's name and the number of this call of it in the trace, from 1


@dataclass(frozen=True)
class Example:
    """One forward: of the model, or of a part of it that the model's own forward does not use in full.

    Attributes:
        inputs: keyword arguments of the forward.
        part: name of the submodule that runs; "" is the model itself.
        streams: names of inputs that are hidden states of another model, such as an encoder's: their last
            axis may shrink together with the weights whose input it is.
        rolled: weights (of routers) with the number of places by which their rows are rolled during this forward, so
            that other experts are chosen.
    """

    inputs: Mapping[str, Any]
    part: str = ""
    streams: frozenset[str] = field(default_factory=frozenset)
    rolled: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Step:
    """One operation: its name, the dimensions of its results and, for a product with a number, that number.

    `carrier` names the weights to rescale should the student multiply by another number.
    """

    operation: str
    dims: tuple[Dims, ...]
    factor: float | None = None
    carrier: Carrier | None = None


class Trace:
    """What some forwards revealed about a model's dimensions.

    Attributes:
        examples: the forwards that were watched, in order.
        weights: what a checkpoint of the model holds, by the first name of each tensor.
        aliases: every name in a checkpoint with the first name of the same tensor.
        weight_dims: for each weight the tree of each axis.
        computed: tables that the model computes from its config (positions) and no checkpoint holds.
        computed_dims: for each of those the tree of each axis.
        steps: for each call of a module its operations in order.
        module_outputs: for each module the trees of the first tensor that it returned.
        output_dims: for each output of each example the tree of each axis.
        stream_dims: for each `Example.streams` input, by example and name, the tree of each axis.
        carried_by: for some carriers another one that scales the same tensors: queries for keys.
        tables: groups of embedding tables whose rows are summed.
        weight_inputs: every product of a weight with a tensor that is not a weight, in the order of the forwards.
        looked_up_tables: names of the weights whose rows are taken by number.
        reached: names of the weights from which some example's outputs were computed.
        reduced: for each module every dimension that one of its own operations sums up or takes statistics over.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.examples: list[Example] = []
        self.weights: dict[str, Tensor] = named_weights(model)
        self.aliases: dict[str, str] = aliases(model)
        self.weight_dims: dict[str, Dims] = {}
        self.steps: dict[Call, list[Step]] = defaultdict(list)
        self.module_outputs: dict[str, Dims] = {}
        self.output_dims: list[Dims] = []
        self.stream_dims: dict[tuple[int, str], Dims] = {}
        self.reached: set[str] = set()
        self.carried_by: dict[Carrier, Carrier] = {}
        self.tables: list[set[str]] = []
        self.weight_inputs: list[WeightInput] = []
        self.looked_up_tables: set[str] = set()
        self.reduced: dict[str, list[Dim]] = defaultdict(list)
        self._aligned: list[Dim] = []
        self._dims = WeakIdKeyDictionary()
        self._carriers = WeakIdKeyDictionary()
        self._sums = WeakIdKeyDictionary()
        self._names = WeakIdKeyDictionary()
        self._waiting = WeakIdKeyDictionary()
        self._flow = Flow(())
        self._record = LandmarkRecord(self._names, self.dims, self._weight_axes)
        self._touched: set[str] = set()
        self._noted: list[Tensor] = []
        self._decomposing: list[str] = []
        self._computed = WeakIdKeyDictionary()
        self._calls: list[Call] = [("", 1)]
        self._times_called: Counter[str] = Counter()
        self._operation = ""
        self._pending_factor: tuple[float | None, Carrier | None] = (None, None)
        for name, tensor in self.weights.items():
            self.weight_dims[name] = tuple(Dim(size) for size in tensor.shape)
            self._dims[tensor] = self.weight_dims[name]
            self._names[tensor] = name
        own = {id(tensor) for tensor in self.weights.values()}
        rest = chain(model.named_buffers(), model.named_parameters())
        self.computed: dict[str, Tensor] = {name: tensor for name, tensor in rest if id(tensor) not in own}
        self.computed_dims = {name: tuple(Dim(size) for size in t.shape) for name, t in self.computed.items()}
        self._from_tables = WeakIdKeyDictionary()  # tensors made of computed tables alone, and of which
        for name, tensor in self.computed.items():
            self._dims[tensor] = self.computed_dims[name]
            self._from_tables[tensor] = name

    # What rules use.

    def dims(self, tensor: Tensor) -> Dims:
        """Return the dimensions of `tensor`. A tensor never seen before is a constant: its dimensions are frozen."""
        if tensor not in self._dims:
            why = self.reason("meets an input or a constant")
            self._dims[tensor] = tuple(Dim(size, why) for size in tensor.shape)
        return self._dims[tensor]

    def unify(self, a: Dim, b: Dim) -> None:
        """Make `a` and `b` one dimension."""
        unify(a, b, self.reason("has two structures that cannot be reconciled"))

    def unify_each(self, a: Iterable[Dim], b: Iterable[Dim]) -> None:
        """Make each dimension of `a` one with that of `b` in the same place; both are equally long."""
        for dim, other in zip(a, b, strict=True):
            self.unify(dim, other)

    def freeze(self, dim: Dim, text: str) -> None:
        """Forbid `dim` to shrink because of the current operation."""
        freeze(dim, self.reason(text))

    def freeze_each(self, dims: Iterable[Dim], text: str) -> None:
        """Forbid all of `dims` to shrink because of the current operation."""
        for dim in dims:
            self.freeze(dim, text)

    def freeze_if_used(self, result: Tensor, dim: Dim, text: str) -> None:
        """Forbid `dim` to shrink as soon as anything is computed from `result` (some models read its shape only)."""
        self._waiting.setdefault(result, []).append((dim, self.reason(text)))

    def frozen(self, size: int, text: str) -> Dim:
        """Return a new dimension of `size` that cannot shrink."""
        return Dim(size, self.reason(text))

    def frozen_each(self, sizes: Iterable[int], text: str) -> Dims:
        """Return new dimensions of `sizes` that cannot shrink."""
        return tuple(self.frozen(size, text) for size in sizes)

    def reason(self, text: str) -> Reason:
        """Return `text` with the current module and operation."""
        return Reason(self._calls[-1][0], self._operation, text)

    def note_reduction(self, dim: Dim) -> None:
        """Record that the current operation combines all indices of `dim` into one number."""
        self.reduced[self._calls[-1][0]].append(dim)

    def weight_name(self, tensor: Tensor) -> str | None:
        """Return the weight's name if `tensor` is a weight, else None."""
        return self._names.get(tensor)

    def mark_view(self, tensor: Tensor, weight: Tensor) -> None:
        """Remember that `tensor` holds all of `weight` (a transpose)."""
        if (name := self._names.get(weight)) is not None:
            self._names[tensor] = name

    def carrier(self, tensor: Tensor) -> Carrier | None:
        """Return the weight indices whose scaling scales `tensor`, if known."""
        return self._carriers.get(tensor)

    def carry(self, tensor: Tensor, carrier: Carrier | None) -> None:
        """Remember that scaling `carrier` scales `tensor`."""
        if carrier is not None:
            self._carriers[tensor] = carrier
            self._noted.append(tensor)

    def scaled(self, factor: float, source: Tensor) -> None:
        """Record that the current operation multiplies `source` by `factor`."""
        carrier = self.carrier(source)
        self._pending_factor = (factor, carrier if carrier is not None and carrier.share == 1 else None)

    def depends_on_weights(self, tensor: Tensor) -> bool:
        """Return whether `tensor` is a weight or was computed from one; if not, it is a constant."""
        return tensor in self._names or tensor in self._computed

    def looked_up(self, tensor: Tensor, tables: set[str]) -> None:
        """Record that `tensor` is a sum of rows looked up in `tables`."""
        self._sums[tensor] = tables
        self._noted.append(tensor)
        self.looked_up_tables |= tables

    def lookups(self, tensor: Tensor) -> set[str]:
        """Return the tables whose rows are summed in `tensor`."""
        return self._sums.get(tensor, set())

    @property
    def aligned(self) -> set[Dim]:
        """Every leaf that a non-linear or element-wise operation met: its indices must not be mixed by a rotation."""
        return {leaf for dim in self._aligned for leaf in leaves(dim)}

    # What the dispatch mode and the module hooks use.

    def observe(self, operation: OpOverload, args: Sequence[Any], kwargs: Mapping[str, Any], out: Any) -> None:
        """Record the dimensions of the result, by rule or decomposition; without either, freeze all that is touched."""
        self._operation = str(operation)
        self._pending_factor = (None, None)
        self._noted = []
        operands, results = _tensors_in((args, dict(kwargs))), _tensors_in(out)
        self._freeze_waiting(operands)
        of_weights = any(map(self.depends_on_weights, operands))
        table = self._table_of(operands)
        if of_weights and self._operation not in ADDITIVE:
            self._freeze_tables(operands)
        self._flow.note(operation, operands, results)
        dims = self._result_dims(operation, args, kwargs, out)
        if operation._schema.is_mutable:
            self._forget_what_was(results)
        for tensor, its_dims in zip(results, dims, strict=True):
            self._dims[tensor] = its_dims
            self._note_origin(tensor, of_weights, table)
        seen = self._record.note(operation, args, out, operands, results, counts=not self._decomposing)
        if seen is not None and self._note_weight_input(seen):
            self._record.add_input(seen, len(self.weight_inputs) - 1)
        if not is_linear(operation, args):
            self._aligned += [dim for tensor in operands for dim in self.dims(tensor) if dim.size > 1]
        self.steps[self._calls[-1]].append(Step(self._operation, tuple(dims), *self._pending_factor))

    def _result_dims(
        self, operation: OpOverload, args: Sequence[Any], kwargs: Mapping[str, Any], out: Any
    ) -> Sequence[Dims]:
        """Return the dimensions of each tensor in `out`, by the rule of `operation`, its decomposition, or frozen."""
        results = _tensors_in(out)
        rule = rule_for(operation)
        given = _fitting(rule(self, out, *args, **kwargs), results) if rule is not None else None
        dims = given if given is not None else self._decomposed(operation, args, kwargs, results)
        if dims is not None:
            return dims
        text = NO_RULE if rule is None else "has a structure the rule cannot follow"
        for tensor in _tensors_in((args, dict(kwargs))):
            self.freeze_each(self.dims(tensor), text)
        return [self.frozen_each(tensor.shape, text) for tensor in results]

    def _table_of(self, operands: Sequence[Tensor]) -> str | None:
        """Return the first computed table that an operand comes from."""
        return next((name for tensor in operands if (name := self._from_tables.get(tensor)) is not None), None)

    def _note_origin(self, result: Tensor, of_weights: bool, table: str | None) -> None:
        """Remember that `result` was computed from weights, or from computed tables alone, of which one is `table`."""
        if of_weights:
            self._computed[result] = True
            self._from_tables.pop(result, None)
        elif table is not None:
            self._from_tables[result] = table

    def _decomposed(
        self, operation: OpOverload, args: Sequence[Any], kwargs: Mapping[str, Any], results: Sequence[Tensor]
    ) -> list[Dims] | None:
        """Return the dimensions of `results` as torch's decomposition of `operation` has them, if there is one.

        The operation is computed a second time, by others that are observed as well.
        """
        parts = decomposition(operation)
        if parts is None or self._operation in self._decomposing:
            return None
        self._decomposing.append(self._operation)
        try:
            with _Watch(self):
                again = parts(*args, **kwargs)
        except Exception:  # decompositions are written for compilers, which have no data: not all run
            return None
        finally:
            self._operation = self._decomposing.pop()
            self._pending_factor = (None, None)
        found = _tensors_in(again)
        if [tensor.shape for tensor in found] != [tensor.shape for tensor in results]:
            return None
        for tensor, other in zip(results, found, strict=True):
            self.carry(tensor, self.carrier(other))
        return [self.dims(tensor) for tensor in found]

    def _forget_what_was(self, results: Sequence[Tensor]) -> None:
        """Drop what was known of tensors before an operation wrote into them, unless its rule has just recorded it."""
        for tensor in results:
            if not any(tensor is noted for noted in self._noted):
                self._carriers.pop(tensor, None)
                self._sums.pop(tensor, None)

    def _note_weight_input(self, seen: Sighting) -> bool:
        """Remember a product of a weight with a tensor that is not a weight; return whether it counts."""
        assert seen.product is not None and seen.weight is not None
        weight, place = seen.weight
        _, name, _ = seen.key
        dim = self.dims(weight)[place]
        axis = next((at for at, own in enumerate(self.weight_dims[name]) if own is dim), None)
        if axis is None:
            return False
        bias = self.weight_name(seen.product.bias) if seen.product.bias is not None else None
        self.weight_inputs.append(WeightInput(name, axis, bias, self.carrier(seen.tensor), seen.product.routed))
        return True

    def _weight_axes(self, tensor: Tensor) -> tuple[str, list[int]] | None:
        """Return the name of the weight that `tensor` holds, and for each axis of `tensor` the weight's, or -1."""
        if (name := self._names.get(tensor)) is None:
            return None
        own = self.weight_dims[name]
        return name, [next((at for at, mine in enumerate(own) if mine is dim), -1) for dim in self.dims(tensor)]

    def _freeze_tables(self, operands: Sequence[Tensor]) -> None:
        """Forbid computed tables to shrink: the student's own, narrower table holds other numbers.

        Tables that are only added, or contracted with a weight, are not frozen: the student keeps the indices that
        match its own table. Tables that multiply (rotary positions) or are used as indices are.
        """
        for tensor in operands:
            if (name := self._from_tables.get(tensor)) is not None:
                self.freeze_each(self.dims(tensor), f"meets buffer `{name}`")

    def _freeze_waiting(self, used: Sequence[Tensor]) -> None:
        """Freeze the dimensions that had to wait until one of `used` is used."""
        for tensor in used:
            for dim, why in self._waiting.pop(tensor, ()):
                freeze(dim, why)

    @contextmanager
    def following_modules(self, model: nn.Module) -> Iterator[None]:
        """Keep the name of the module that runs, so that reasons can name it.

        The hooks are global because a forward may exchange modules (BigBird does with its attention).
        """
        names: dict[nn.Module, str] = {}

        def name_of(module: nn.Module) -> str | None:
            if module not in names:
                names.update({module: name for name, module in model.named_modules()})
            return names.get(module)

        def enter(module: nn.Module, args: Any) -> None:
            if (name := name_of(module)) is not None:
                self._times_called[name] += 1
                self._calls.append((name, self._times_called[name]))

        def leave(module: nn.Module, args: Any, output: Any) -> None:
            if (name := name_of(module)) is not None:
                self._calls.pop()
                tensors = _tensors_in(output)
                if tensors and tensors[0] in self._dims:
                    self.module_outputs[name] = self._dims[tensors[0]]

        with ExitStack() as stack:
            stack.callback(register_module_forward_pre_hook(enter).remove)
            stack.callback(register_module_forward_hook(leave, always_call=True).remove)
            yield

    def run(self, example: Example, *, optional: bool = False) -> bool:
        """Watch one more forward; return whether it counts as an example.

        Args:
            example: what runs.
            optional: do not count it if its outputs were computed from no weight that is not reached already.

        Raises:
            Exception: whatever the forward raises; couplings that it revealed until then stay, but the weights
                that it reached count as not reached.
        """
        called = Counter(self._times_called)
        rolled = self._rolled(example)
        self._flow = Flow(chain(self.weights.items(), rolled.items()))
        for name in example.streams:
            self._note_stream(example.inputs[name])
        try:
            with (
                quiet_forward(self.model),
                sdpa_kernel(SDPBackend.MATH),  # composite: the rules of its parts cover every mask and grouping
                self.following_modules(self.model),
                _Watch(self),
            ):
                output = call(self.model, example.part, example.inputs, rolled)
        except Exception:
            self._forget_calls(called)
            raise
        outputs = output_tensors(output)
        reached = self._flow.reached(outputs)
        self._touched |= self._flow.touched
        if optional and reached <= self.reached:
            self._forget_calls(called)
            return False
        self.stream_dims |= {(len(self.examples), name): self._dims[example.inputs[name]] for name in example.streams}
        for name in example.streams:
            self._record.note_stream(len(self.examples), name, example.inputs[name])
        self.examples.append(example)
        self._freeze_waiting(outputs)
        self.output_dims += [self.dims(tensor) for tensor in outputs]
        self._record.note_outputs(outputs)
        if example.part:
            self._freeze_loose_ends(outputs)
        self.reached |= reached
        return True

    def _rolled(self, example: Example) -> dict[str, Tensor]:
        """Return the weights with rolled rows, known to this trace as the same weights with the same dimensions."""
        rolled = {name: self.weights[name].detach().roll(by, 0) for name, by in example.rolled.items()}
        for name, tensor in rolled.items():
            self._dims[tensor] = self.weight_dims[name]
            self._names[tensor] = name
        return rolled

    def _note_stream(self, stream: Tensor) -> None:
        outer = self.frozen_each(stream.shape[:-1], "is the batch or the length of an input")
        self._dims[stream] = (*outer, Dim(stream.shape[-1]))
        self._computed[stream] = True

    def _forget_calls(self, called: Counter[str]) -> None:
        """Drop the steps of a forward that does not count; the next forward uses the numbers of its calls."""
        for late in [at for at in self.steps if at[1] > called[at[0]]]:
            del self.steps[late]
        self._times_called = called

    def _freeze_loose_ends(self, outputs: Sequence[Tensor]) -> None:
        """Freeze the leaves that only a part's outputs have: how the whole model uses them was not seen."""
        known = self._leaves_of(self.reached)
        for tensor in outputs:
            for dim in self.dims(tensor):
                if known.isdisjoint(leaves(dim)):
                    freeze(dim, Reason("", "", "is returned by a part of the model that only an example calls"))

    @property
    def unreached(self) -> list[str]:
        """Names of weights of which no example showed how they are coupled.

        No example used such a weight, or its result was dropped and one of its dimensions belongs to no other weight.
        A dimension of several weights counts as known even if the result is dropped, since observed operations
        coupled it: BigBird computes a pooled token under every head, and LXMERT the last layer of a stream that is not
        returned. Other inputs might use such a result; that is not seen.

        A buffer whose entries are all equal is left out: no optimizer makes them differ, so it does not matter which
        a student keeps.
        """
        return list(self._unknown())

    def finish(self) -> None:
        """Freeze the dimensions of which no example showed how they are coupled: other inputs may couple them.

        No example can be run after this: the observed tensors are freed.
        """
        for dims in self._unknown().values():
            for leaf in dims:
                freeze(leaf, NOT_REACHED)
        self._noted, self._flow = [], Flow(())

    @property
    def landmarks(self) -> Landmarks:
        """Return the landmarks seen so far."""
        return self._record.landmarks()

    def _unknown(self) -> dict[str, set[Dim]]:
        """Return for each weight that no example reached those of its leaves that no other weight has."""
        known = self._leaves_of(self.reached)
        inside = {name: self._leaves_of([name]) for name in self._missed()}
        holders = Counter(chain.from_iterable(inside.values()))
        shared = {leaf for leaf, count in holders.items() if count > 1 or leaf.size == 1}
        alone = {name: own - known - (shared if name in self._touched else set()) for name, own in inside.items()}
        return {name: own for name, own in alone.items() if own}

    def _missed(self) -> list[str]:
        """Return the names of the weights that no example reached, apart from numbers and uniform buffers."""
        missed = {name: weight for name, weight in self.weights.items() if name not in self.reached}
        return [name for name, weight in missed.items() if weight.numel() > 1 and not _is_uniform_buffer(weight)]

    def _leaves_of(self, weights: Iterable[str]) -> set[Dim]:
        return {leaf for name in weights for dim in self.weight_dims[name] for leaf in leaves(dim)}


def _tensors_in(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _fitting(given: Any, results: Sequence[Tensor]) -> list[Dims] | None:
    """Return one tuple of dimensions per result, or None where what the rule returned does not fit."""
    if given is None:
        return None
    listed = [dims for dims in given if dims is not None] if isinstance(given, list) else [given]
    sizes = [tuple(dim.size for dim in dims) for dims in listed]
    return listed if sizes == [tuple(tensor.shape) for tensor in results] else None


class _Watch(TorchDispatchMode):
    """Passes every operation that runs to a trace."""

    def __init__(self, trace: Trace) -> None:
        super().__init__()
        self.trace = trace

    def __torch_dispatch__(
        self, func: OpOverload, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        self.trace.observe(func, args, kwargs or {}, out)
        return out


def trace(model: nn.Module, inputs: Mapping[str, Any], further: Sequence[Example] = ()) -> Trace:
    """Run `model(**inputs)` once, and `further` examples, and return the dimensions of everything in it.

    The model is left as it was: parameters, buffers, training mode and the random state do not change.

    Args:
        model: any module whose weights are not on the meta device.
        inputs: keyword arguments of its forward; small sizes suffice.
        further: forwards that reach weights which this one leaves out.
    """
    seen = Trace(model)
    for example in (Example(inputs), *further):
        seen.run(example)
    seen.finish()
    return seen


class _Part(nn.Module):
    """A part of a model that is called directly, with the whole model's names for its weights."""

    def __init__(self, model: nn.Module, part: str) -> None:
        super().__init__()
        self.model = model
        self.part = part

    def forward(self, **inputs: Any) -> Any:
        return self.model.get_submodule(self.part)(**inputs)


def call(model: nn.Module, part: str, inputs: Mapping[str, Any], weights: Mapping[str, Tensor]) -> Any:
    """Return what `part` of `model` gives for `inputs` with some of the model's weights replaced, ties included."""
    if not weights:
        return model.get_submodule(part)(**inputs)
    named = {f"model.{name}": tensor for name, tensor in weights.items()}
    return functional_call(_Part(model, part), named, kwargs=dict(inputs), tie_weights=True)


@contextmanager
def quiet_forward(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; training mode of every module and the random state come back."""
    modes = [(module, module.training) for module in model.modules()]
    devices = {p.device for p in model.parameters() if p.device.type == "cuda"}
    forget(model)
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=list(devices)):
            yield
    finally:
        forget(model)
        for module, training in modes:
            module.training = training


def forget(model: nn.Module) -> None:
    """Put `model` into evaluation mode and drop what it stored there of other weights.

    LeViT computes attention biases once per evaluation; going to training mode drops them.
    """
    model.train()
    model.eval()


def _is_uniform_buffer(weight: Tensor) -> bool:
    return not isinstance(weight, nn.Parameter) and bool((weight == weight.flatten()[0]).all())


def saved_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return every tensor of `model` under every name that a checkpoint has for it."""
    # Parameters that transformers computes on loading (Marian's positions) are constants; only this list says so.
    computed = getattr(model, "_keys_to_ignore_on_save", None) or ()
    tensors = model.state_dict(keep_vars=True).items()
    return {name: t for name, t in tensors if isinstance(t, Tensor) and name not in computed}


def named_weights(model: nn.Module) -> dict[str, Tensor]:
    """Return what a checkpoint of `model` holds, each tensor once under its first name."""
    saved = saved_tensors(model)
    return {name: saved[name] for name, first in aliases(model).items() if name == first}


def aliases(model: nn.Module) -> dict[str, str]:
    """Return for every name in a checkpoint of `model` the first name of the same tensor: its ties."""
    first: dict[int, str] = {}
    return {name: first.setdefault(id(tensor), name) for name, tensor in saved_tensors(model).items()}


def output_tensors(output: Any) -> list[Tensor]:
    """Return all tensors in a model's output, in a fixed order."""
    return _tensors_in(_plain(output))


def _plain(output: Any) -> Any:
    # Model outputs register themselves with pytree only where torch.export is used: unpack them by hand.
    if isinstance(output, Mapping):
        return [_plain(value) for value in output.values()]
    if isinstance(output, (list, tuple)):
        return [_plain(value) for value in output]
    return output

"""Watch one tiny forward of a model and give every tensor symbolic dimensions.

Takes a model and example inputs, gives a `Trace`: the dimension trees of all weights, of all module
outputs and of the model's outputs. `plan` reads it; `rules` write it while the forward runs.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from . import rules as _rules  # noqa: F401  (importing it registers the rules)
from .carrier import Carrier
from .dims import Dim, Reason, freeze, leaves, unify
from .reads import Read, contraction, is_linear
from .registry import rule_for

NOT_REACHED = Reason("", "", "was not reached by the example inputs")
Dims = tuple[Dim, ...]
Call = tuple[str, int]  # a module's name and the how-manieth call of it in this forward


@dataclass(frozen=True)
class Step:
    """One operation: its name, the dimensions of its results, and, for a product with a number, which one.

    `carrier` names the weights to rescale should the student multiply by another number.
    """

    operation: str
    dims: tuple[Dims, ...]
    factor: float | None = None
    carrier: Carrier | None = None


class Trace:
    """What one forward revealed about a model's dimensions."""

    def __init__(self, model: nn.Module) -> None:
        self.weights: dict[str, Tensor] = named_weights(model)
        self.aliases: dict[str, str] = aliases(model)
        self.weight_dims: dict[str, Dims] = {}
        self.steps: dict[Call, list[Step]] = defaultdict(list)
        self.module_outputs: dict[str, Dims] = {}
        self.output_dims: list[Dims] = []
        self.carried_by: dict[Carrier, Carrier] = {}
        self.tables: list[set[str]] = []
        self.reads: list[Read] = []
        self.looked_up_tables: set[str] = set()
        self._aligned: list[Dim] = []
        self._dims = WeakIdKeyDictionary()
        self._carriers = WeakIdKeyDictionary()
        self._sums = WeakIdKeyDictionary()
        self._names = WeakIdKeyDictionary()
        self._waiting = WeakIdKeyDictionary()
        self._reached: set[int] = set()  # identities of all operands; weights live on, so theirs are not reused
        self._computed = WeakIdKeyDictionary()
        self._calls: list[Call] = [("", 1)]
        self._times_called: Counter[str] = Counter()
        self._operation = ""
        self._pending_factor: tuple[float | None, Carrier | None] = (None, None)
        self._constants = {id(tensor): name for name, tensor in chain(model.named_buffers(), model.named_parameters())}
        for name, tensor in self.weights.items():
            self.weight_dims[name] = tuple(Dim(size) for size in tensor.shape)
            self._dims[tensor] = self.weight_dims[name]
            self._names[tensor] = name
            self._constants.pop(id(tensor), None)

    # What rules use.

    def dims(self, tensor: Tensor) -> Dims:
        """Return the dimensions of `tensor`; one never seen before is a constant and arrives frozen."""
        if tensor not in self._dims:
            name = self._constants.get(id(tensor))
            what = f"meets buffer `{name}`" if name else "meets an input or a constant"
            self._dims[tensor] = tuple(Dim(size, self.reason(what)) for size in tensor.shape)
        return self._dims[tensor]

    def unify(self, a: Dim, b: Dim) -> None:
        """Demand that `a` and `b` are one dimension."""
        unify(a, b, self.reason("has two structures that cannot be reconciled"))

    def freeze(self, dim: Dim, text: str) -> None:
        """Forbid `dim` to shrink because of the current operation."""
        freeze(dim, self.reason(text))

    def freeze_if_used(self, result: Tensor, dim: Dim, text: str) -> None:
        """Forbid `dim` to shrink as soon as anything is computed from `result` (some models ask for its shape only)."""
        self._waiting[result] = (dim, self.reason(text))

    def frozen(self, size: int, text: str) -> Dim:
        """Return a new dimension of `size` that cannot shrink."""
        return Dim(size, self.reason(text))

    def reason(self, text: str) -> Reason:
        """Return `text` with the current module and operation."""
        return Reason(self._calls[-1][0], self._operation, text)

    def weight_name(self, tensor: Tensor) -> str | None:
        """Return the name of the weight that `tensor` is, or None."""
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
        self.looked_up_tables |= tables

    def lookups(self, tensor: Tensor) -> set[str]:
        """Return the tables whose rows are summed in `tensor`."""
        return self._sums.get(tensor, set())

    @property
    def aligned(self) -> set[Dim]:
        """Every leaf whose indices mean something by themselves: a non-linear or element-wise operation met it."""
        return {leaf for dim in self._aligned for leaf in leaves(dim)}

    # What the dispatch mode and the module hooks use.

    def observe(self, operation: OpOverload, args: Sequence[Any], kwargs: Mapping[str, Any], out: Any) -> None:
        """Apply the rule of `operation` to its result, or freeze all that it touches."""
        self._operation = str(operation)
        self._pending_factor = (None, None)
        operands = [tensor for tensor in tree_leaves((args, dict(kwargs))) if isinstance(tensor, Tensor)]
        self._used(operands)
        self._reached.update(map(id, operands))
        results = [tensor for tensor in tree_leaves(out) if isinstance(tensor, Tensor)]
        rule = rule_for(operation)
        given = rule(self, out, *args, **kwargs) if rule is not None else None
        dims = self._checked(given, results)
        if dims is None:
            text = "meets an operation without a rule" if rule is None else "has a structure the rule cannot follow"
            for tensor in operands:
                for dim in self.dims(tensor):
                    self.freeze(dim, text)
            dims = [tuple(self.frozen(size, text) for size in tensor.shape) for tensor in results]
        for tensor, its_dims in zip(results, dims, strict=True):
            self._dims[tensor] = its_dims
        self._note_read(operation, args)
        if not is_linear(operation, args):
            self._aligned += [dim for tensor in operands for dim in self.dims(tensor) if dim.size > 1]
        if any(self.depends_on_weights(tensor) for tensor in operands):
            for tensor in results:
                self._computed[tensor] = True
        self.steps[self._calls[-1]].append(Step(str(operation), tuple(dims), *self._pending_factor))

    def _note_read(self, operation: OpOverload, args: Sequence[Any]) -> None:
        """Remember a product of a weight with a tensor that is none."""
        if (product := contraction(operation, args)) is None:
            return
        for (read, _), (weight, place) in (product.operands, product.operands[::-1]):
            name = self.weight_name(weight)
            if name is None or self.weight_name(read) is not None:
                continue
            axis = next((at for at, dim in enumerate(self.weight_dims[name]) if dim is self.dims(weight)[place]), None)
            bias = self.weight_name(product.bias) if product.bias is not None else None
            if axis is not None:
                self.reads.append(Read(name, axis, bias, self.carrier(read), product.routed))

    def _used(self, tensors: Sequence[Tensor]) -> None:
        for tensor in tensors:
            if tensor in self._waiting:
                freeze(*self._waiting.pop(tensor))

    def _checked(self, given: Any, results: list[Tensor]) -> list[Dims] | None:
        """Return one tuple of dimensions per result, or None where the rule gave none that fit."""
        if given is None:
            return None
        listed = [dims for dims in given if dims is not None] if isinstance(given, list) else [given]
        fits = len(listed) == len(results) and all(
            tuple(dim.size for dim in dims) == tuple(tensor.shape) for dims, tensor in zip(listed, results, strict=True)
        )
        return listed if fits else None

    @contextmanager
    def following_modules(self, model: nn.Module) -> Iterator[None]:
        """Keep the name of the module that runs, so that reasons can tell where."""
        with ExitStack() as stack:
            for name, module in model.named_modules():
                stack.callback(module.register_forward_pre_hook(self._enter(name)).remove)
                stack.callback(module.register_forward_hook(self._leave(name), always_call=True).remove)
            yield

    def _enter(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any) -> None:
            self._times_called[name] += 1
            self._calls.append((name, self._times_called[name]))

        return hook

    def _leave(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            self._calls.pop()
            tensors = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
            if tensors and tensors[0] in self._dims:
                self.module_outputs[name] = self._dims[tensors[0]]

        return hook

    def finish(self, output: Any) -> None:
        """Keep the dimensions of the model's outputs and drop everything that refers to tensors."""
        outputs = output_tensors(output)
        self._used(outputs)
        for name, weight in self.weights.items():
            if id(weight) not in self._reached:  # an expert that got no token: nothing is known about it
                for dim in self.weight_dims[name]:
                    freeze(dim, NOT_REACHED)
        self.output_dims = [self.dims(tensor) for tensor in outputs]


class _Watch(TorchDispatchMode):
    def __init__(self, trace: Trace) -> None:
        super().__init__()
        self.trace = trace

    def __torch_dispatch__(
        self, func: OpOverload, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        self.trace.observe(func, args, kwargs or {}, out)
        return out


def trace(model: nn.Module, inputs: Mapping[str, Any]) -> Trace:
    """Run `model(**inputs)` once and return the dimensions of everything in it.

    The model is left as it was: parameters, buffers, training mode and the random state do not change.

    Args:
        model: any module whose weights are not on the meta device.
        inputs: keyword arguments of its forward; small sizes suffice.
    """
    seen = Trace(model)
    with (
        quiet_forward(model),
        sdpa_kernel(SDPBackend.MATH),  # composite: the rules of its parts cover every mask and grouping
        seen.following_modules(model),
        _Watch(seen),
    ):
        output = model(**inputs)
    seen.finish(output)
    return seen


@contextmanager
def quiet_forward(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; training mode of every module and the random state come back."""
    modes = [(module, module.training) for module in model.modules()]
    devices = {p.device for p in model.parameters() if p.device.type == "cuda"}
    model.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=list(devices)):
            yield
    finally:
        for module, training in modes:
            module.training = training


def saved_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return every tensor of `model` under every name that a checkpoint has for it."""
    # What transformers computes anew on loading (Marian's positions) is a constant; it says so only here.
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
    return [leaf for leaf in tree_leaves(_plain(output)) if isinstance(leaf, Tensor)]


def _plain(output: Any) -> Any:
    # Model outputs register themselves with pytree only where torch.export is used: unpack them by hand.
    if isinstance(output, Mapping):
        return [_plain(value) for value in output.values()]
    if isinstance(output, (list, tuple)):
        return [_plain(value) for value in output]
    return output

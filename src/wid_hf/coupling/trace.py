"""Watch tiny forwards of a model and give every tensor symbolic dimensions.

Takes a model and example inputs, gives a `Trace`: the dimension trees of all weights, of all module
outputs and of the model's outputs. `plan` reads it; `rules` write it while the forwards run.
"""

from __future__ import annotations

import inspect
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from . import rules as _rules  # noqa: F401  (importing it registers the rules)
from .carrier import Carrier
from .dims import NO_RULE, Dim, Reason, freeze, leaves, unify
from .reads import Read, contraction, is_linear
from .registry import rule_for

NOT_REACHED = Reason("", "", "was not reached by the example inputs")
# What a table may meet: sums, and products in which its indices are summed over.
ADDITIVE = {"aten.add.Tensor", "aten.add_.Tensor", "aten.mm.default", "aten.addmm.default", "aten.bmm.default"}
Dims = tuple[Dim, ...]
Call = tuple[str, int]  # a module's name and the how-manieth call of it in this trace


@dataclass(frozen=True)
class Example:
    """One forward: of the model, or of a part of it that the model's own forward does not use in full.

    Attributes:
        inputs: keyword arguments of the forward.
        part: name of the submodule that runs; "" is the model itself.
        streams: names of inputs that are hidden states of another model, such as an encoder's: their last
            axis may shrink together with the weights that read it.
    """

    inputs: Mapping[str, Any]
    part: str = ""
    streams: frozenset[str] = field(default_factory=frozenset)


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
        carried_by: carriers that stand in for others.
        tables: groups of embedding tables whose rows are summed.
        twins: weights that no example reached and that follow a weight of a sibling module, by name.
        idle: weights that no code reads.
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
        self.twins: dict[str, str] = {}
        self.idle: list[str] = []
        self.carried_by: dict[Carrier, Carrier] = {}
        self.tables: list[set[str]] = []
        self.reads: list[Read] = []
        self.looked_up_tables: set[str] = set()
        self.reduced: dict[str, list[Dim]] = defaultdict(list)
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
        """Return the dimensions of `tensor`; one never seen before is a constant and arrives frozen."""
        if tensor not in self._dims:
            why = self.reason("meets an input or a constant")
            self._dims[tensor] = tuple(Dim(size, why) for size in tensor.shape)
        return self._dims[tensor]

    def unify(self, a: Dim, b: Dim) -> None:
        """Demand that `a` and `b` are one dimension."""
        unify(a, b, self.reason("has two structures that cannot be reconciled"))

    def freeze(self, dim: Dim, text: str) -> None:
        """Forbid `dim` to shrink because of the current operation."""
        freeze(dim, self.reason(text))

    def freeze_if_used(self, result: Tensor, dim: Dim, text: str) -> None:
        """Forbid `dim` to shrink as soon as anything is computed from `result` (some models ask for its shape only)."""
        self._waiting.setdefault(result, []).append((dim, self.reason(text)))

    def frozen(self, size: int, text: str) -> Dim:
        """Return a new dimension of `size` that cannot shrink."""
        return Dim(size, self.reason(text))

    def reason(self, text: str) -> Reason:
        """Return `text` with the current module and operation."""
        return Reason(self._calls[-1][0], self._operation, text)

    def note_reduction(self, dim: Dim) -> None:
        """Record that the current operation combines all indices of `dim` into one number."""
        self.reduced[self._calls[-1][0]].append(dim)

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
        of_weights = any(self.depends_on_weights(tensor) for tensor in operands)
        tables = [name for tensor in operands if (name := self._from_tables.get(tensor)) is not None]
        if tables and of_weights and str(operation) not in ADDITIVE:
            self._freeze_tables(operands)
        results = [tensor for tensor in tree_leaves(out) if isinstance(tensor, Tensor)]
        rule = rule_for(operation)
        given = rule(self, out, *args, **kwargs) if rule is not None else None
        dims = self._checked(given, results)
        if dims is None:
            text = NO_RULE if rule is None else "has a structure the rule cannot follow"
            for tensor in operands:
                for dim in self.dims(tensor):
                    self.freeze(dim, text)
            dims = [tuple(self.frozen(size, text) for size in tensor.shape) for tensor in results]
        for tensor, its_dims in zip(results, dims, strict=True):
            self._dims[tensor] = its_dims
        self._note_read(operation, args)
        if not is_linear(operation, args):
            self._aligned += [dim for tensor in operands for dim in self.dims(tensor) if dim.size > 1]
        for tensor in results:
            if of_weights:
                self._computed[tensor] = True
                self._from_tables.pop(tensor, None)
            elif tables:
                self._from_tables[tensor] = tables[0]
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

    def _freeze_tables(self, operands: Sequence[Tensor]) -> None:
        """Forbid computed tables to shrink: the student's own, narrower one holds other numbers.

        Only a sum forgives that: the student's table is added in its place, or read by a weight, at indices
        chosen to suit. A product of entries (rotary positions) or a look-up by them does not.
        """
        for tensor in operands:
            if (name := self._from_tables.get(tensor)) is not None:
                for dim in self.dims(tensor):
                    self.freeze(dim, f"meets buffer `{name}`")

    def _used(self, tensors: Sequence[Tensor]) -> None:
        for tensor in tensors:
            if tensor in self._waiting:
                for dim, why in self._waiting.pop(tensor):
                    freeze(dim, why)

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
        """Keep the name of the module that runs, so that reasons can tell where.

        The hooks are global because a forward may put other modules in place (BigBird swaps its attention).
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
                tensors = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
                if tensors and tensors[0] in self._dims:
                    self.module_outputs[name] = self._dims[tensors[0]]

        with ExitStack() as stack:
            stack.callback(register_module_forward_pre_hook(enter).remove)
            stack.callback(register_module_forward_hook(leave, always_call=True).remove)
            yield

    def run(self, example: Example) -> None:
        """Watch one more forward.

        Raises:
            Exception: whatever the forward raises; couplings that it revealed until then stay, but the weights
                that it reached count as not reached.
        """
        called, reached = Counter(self._times_called), set(self._reached)
        part = self.model.get_submodule(example.part)
        for name in example.streams:
            stream = example.inputs[name]
            dims = [self.frozen(size, "is the batch or the length of an input") for size in stream.shape[:-1]]
            self._dims[stream] = (*dims, Dim(stream.shape[-1]))
            self._computed[stream] = True
        try:
            with (
                quiet_forward(self.model),
                sdpa_kernel(SDPBackend.MATH),  # composite: the rules of its parts cover every mask and grouping
                self.following_modules(self.model),
                _Watch(self),
            ):
                output = part(**example.inputs)
        except Exception:
            for call in [call for call in self.steps if call[1] > called[call[0]]]:
                del self.steps[call]
            self._times_called, self._reached = called, reached
            raise
        self.stream_dims |= {(len(self.examples), name): self._dims[example.inputs[name]] for name in example.streams}
        self.examples.append(example)
        outputs = output_tensors(output)
        self._used(outputs)
        self.output_dims += [self.dims(tensor) for tensor in outputs]
        if example.part:
            self._freeze_loose_ends(outputs, reached)

    def _freeze_loose_ends(self, outputs: Sequence[Tensor], reached: set[int]) -> None:
        """Freeze what a part returns that no earlier forward knows: where the whole model uses it was not seen."""
        names = [name for name, weight in self.weights.items() if id(weight) in reached]
        known = {leaf for name in names for dim in self.weight_dims[name] for leaf in leaves(dim)}
        for tensor in outputs:
            for dim in self.dims(tensor):
                if known.isdisjoint(leaves(dim)):
                    freeze(dim, Reason("", "", "is returned by a part of the model that only an example calls"))

    @property
    def unreached(self) -> list[str]:
        """Names of weights that no forward has touched and whose indices differ (a mask embedding of zeros is free)."""
        return [
            name
            for name, weight in self.weights.items()
            if id(weight) not in self._reached and weight.numel() > 1 and bool((weight != weight.flatten()[0]).any())
        ]

    def finish(self) -> None:
        """Give weights that no forward reached the dimensions of a sibling's, or freeze them.

        Those that no code reads stay free: whichever of their indices are kept, no forward can tell.
        """
        unreached = self.unreached
        code = _code_of(self.model) if unreached else ""
        for name in unreached:
            twin = self._twin(name)
            if twin is None and self._is_idle(name, code):
                self.idle.append(name)
                continue
            if twin is None:
                for dim in self.weight_dims[name]:
                    freeze(dim, NOT_REACHED)
                continue
            self.twins[name] = twin
            for mine, theirs in zip(self.weight_dims[name], self.weight_dims[twin], strict=True):
                unify(mine, theirs, NOT_REACHED)

    def _is_idle(self, name: str, code: str) -> bool:
        """Return whether no code reads a weight or a module around it: the name stands only where it is made."""
        for attribute in name.split("."):
            uses = re.findall(rf"\b{re.escape(attribute)}\b(.?.?.?)", code)
            if len(uses) == 1 and uses[0].startswith(" = "):
                return True
        return False

    def _twin(self, name: str) -> str | None:
        """Return the same weight of a sibling module, for an expert that got no token where another got some.

        Siblings are the modules of one list or dictionary that are of one class and shape. Nothing is known
        where none of them, or a part of this one, was called.
        """
        parts = name.split(".")
        for at in range(len(parts) - 1, 0, -1):
            container = self.model.get_submodule(".".join(parts[:at]))
            children = dict(container.named_children())  # a parametrization's list holds weights as well
            if not isinstance(container, (nn.ModuleList, nn.ModuleDict)) or parts[at] not in children:
                continue
            mine = children[parts[at]]
            if any(id(parameter) in self._reached for parameter in mine.parameters()):
                return None
            for key, sibling in children.items():
                other = ".".join([*parts[:at], key, *parts[at + 1 :]])
                if type(sibling) is type(mine) and other in self.weights and id(self.weights[other]) in self._reached:
                    same = self.weights[other].shape == self.weights[name].shape
                    return other if same else None
        return None


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
    """Put `model` into evaluation mode, without what it keeps there of other weights.

    LeViT computes attention biases once per evaluation; going to training mode drops them.
    """
    model.train()
    model.eval()


def _code_of(model: nn.Module) -> str:
    """Return the source of every class in `model` and of their bases, torch's own left out.

    "" where it cannot tell what is read: a class without a source file, as one made in a notebook, or code that
    asks for attributes of itself by computed names.
    """
    kinds = {kind for module in model.modules() for kind in type(module).__mro__}
    try:
        files = {inspect.getsourcefile(k) for k in kinds if k.__module__.split(".")[0] not in ("torch", "builtins")}
        code = "\n".join(Path(file or "").read_text(encoding="utf-8") for file in sorted(files, key=str))
    except (TypeError, OSError):
        return ""
    return "" if re.search(r"getattr\(\s*self\s*,\s*f[\"']", code) else code


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

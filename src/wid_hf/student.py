"""From a teacher and a `WidConfig` to the plan, the student's config and an empty stock student.

`tuner` calls `plan_student` and fills the student; `wid-hf plan` prints what comes out. Everything that can
be refused is refused before the student is allocated, and the teacher is never touched.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass
from itertools import product
from math import gcd
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights

from .config import WidConfig
from .coupling import Plan, Trace, make_plan, verify
from .coupling.trace import saved_tensors
from .errors import ConfigError, PlanError, TeacherError
from .inputs import on_device
from .kept_examples import unpacked
from .teacher_check import PARAMETRIZED, check_teacher
from .tracing import plain_attention, trace_student, trace_teacher

LAYERS = "per_layer_config"  # transformers' name for sizes that differ from layer to layer


@dataclass(frozen=True)
class Planned:
    """A plan together with what it was made from and the student that it describes.

    Attributes:
        plan: the coupled dimensions with their sizes.
        trace: the teacher's trace.
        student: an instance of the teacher's class with the student's config; its weights are zeros.
    """

    plan: Plan
    trace: Trace
    student: PreTrainedModel


def plan_student(
    teacher: PreTrainedModel,
    config: WidConfig,
    *,
    inputs: Mapping[str, Any] | None = None,
    proof: bool = False,
) -> Planned:
    """Find the student that `config` asks for, or refuse with every reason.

    Args:
        teacher: a stock transformers model with real weights.
        config: the sizes wanted.
        inputs: keyword arguments for one forward of the teacher; by default those that `config` holds, else made
            from the teacher's config.
        proof: also run the permutation proof on the teacher.

    Raises:
        TeacherError: the teacher is no plain `PreTrainedModel` with weights.
        ConfigError: a size or name that its config does not have, or that is not smaller.
        PlanError: sizes that contradict each other or shrink a frozen dimension.
        ProofError: the permutation proof failed.
    """
    check_teacher(teacher)
    inputs = on_device(teacher, unpacked(config.example_inputs)) if inputs is None else inputs
    candidates = list(_candidate_configs(teacher.config, config))
    teacher_trace, further = trace_teacher(teacher, inputs)
    if proof:
        with plain_attention(teacher):
            verify(teacher, teacher_trace)
    refusals = []
    for candidate in candidates:
        try:
            shapes = _weight_shapes(type(teacher), candidate, teacher_trace)
            make_plan(teacher_trace, shapes)  # finds contradictions before anything is allocated
            student = empty_student(teacher, candidate)
            plan = make_plan(teacher_trace, shapes, trace_student(student, inputs, further))
            if all(plan.shape(name) == tuple(w.shape) for name, w in teacher_trace.weights.items()):
                raise PlanError("- no weight of the student would be smaller than the teacher's")
        except PlanError as refusal:
            refusals.append(refusal)
        else:
            return Planned(plan, teacher_trace, student)
    raise PlanError(_refusal_text(teacher, config, str(refusals[0]))) from refusals[0]


def empty_student(teacher: PreTrainedModel, config: PretrainedConfig) -> PreTrainedModel:
    """Return `type(teacher)(config)` with weights of zero, on the teacher's device, in its dtypes and mode."""
    with no_init_weights(), torch.random.fork_rng(devices=[]):
        student = type(teacher)(deepcopy(config))
    student.tie_weights()  # skipped together with the initialisation
    own = dict(teacher.named_parameters()) | dict(teacher.named_buffers())
    for name, buffer in student.named_buffers():
        if name in own and own[name].is_floating_point():
            buffer.data = buffer.data.to(own[name].dtype)
    saved = saved_tensors(student)
    for name, parameter in student.named_parameters():
        if name in saved:
            parameter.data = _zeros(parameter.shape, own[name].dtype if name in own else parameter.dtype)
        elif parameter.shape == own[name].shape:  # computed from the config, which left its sizes alone
            parameter.data = own[name].data.to(parameter.device)
        else:
            _compute_anew(student, name)
            parameter.data = parameter.data.to(own[name].dtype)
    if teacher.can_generate():
        student.generation_config = deepcopy(teacher.generation_config)
    return student.to(teacher.device).train(teacher.training)


def _zeros(shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """Return zeros that take no memory until something is written: numpy leaves clearing them to the system."""
    if not shape.numel():
        return torch.zeros(shape, dtype=dtype)
    return torch.from_numpy(np.zeros(shape.numel() * dtype.itemsize, dtype=np.uint8)).view(dtype).view(shape)


def _compute_anew(student: PreTrainedModel, name: str) -> None:
    """Let the model fill a parameter that no checkpoint holds, as loading one does (Marian's positions)."""
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        student._init_weights(student.get_submodule(name.rpartition(".")[0]))


def _weight_shapes(
    model_class: type[PreTrainedModel], config: PretrainedConfig, teacher: Trace
) -> dict[str, tuple[int, ...]]:
    """Return the shape of every weight of the student, by the teacher's name of it, without allocating."""
    try:
        with no_init_weights(), torch.device("meta"):
            skeleton = model_class(deepcopy(config))
    except Exception as refusal:  # whatever a class raises for numbers that do not go together
        raise PlanError(f"- {model_class.__name__} itself refuses this config: {refusal}") from refusal
    saved = saved_tensors(skeleton)
    if any(".parametrizations." in name and name not in saved for name in teacher.weights):
        raise TeacherError(PARAMETRIZED)
    return {name: tuple(t.shape) for name, t in saved.items() if teacher.aliases.get(name, name) == name}


def _candidate_configs(teacher: PretrainedConfig, wanted: WidConfig) -> Iterator[PretrainedConfig]:
    """Yield the configs that `wanted` may mean, the likeliest first.

    Raises:
        ConfigError: lists every name and size that cannot be.
    """
    problems = _size_problems(teacher, wanted.requested)
    if problems:
        raise ConfigError(_joined(teacher, problems))
    for sizes in _alternatives(teacher, wanted.requested, wanted.head_strategy):
        try:
            yield _rewritten(teacher, sizes)
        except ValueError as refusal:  # a config that checks its entries as they are written
            raise ConfigError(_joined(teacher, [f"the config itself refuses these sizes: {refusal}"])) from refusal


def _alternatives(config: PretrainedConfig, requested: Mapping[str, Any], strategy: str) -> list[dict[str, Any]]:
    """Return what `requested` may mean together with the sizes that follow from it, parts of `config` included."""
    parts = {name: sizes for name, sizes in requested.items() if isinstance(sizes, Mapping) and name != LAYERS}
    inside = [_alternatives(getattr(config, name), sizes, strategy) for name, sizes in parts.items()]
    return [
        {**twins, **expanded, **following, **requested, **dict(zip(parts, chosen, strict=True))}
        for twins in _twins(config, requested)
        for expanded in _expanded_heads(config, requested, strategy)
        for chosen in product(*inside)
        for following in _head_sizes(config, requested, strategy)
    ]


def _twins(config: PretrainedConfig, requested: Mapping[str, Any]) -> list[dict[str, int]]:
    """Return what else may have to change: nothing, or every other size that equals the old hidden size.

    Some models have a projection only where their embedding size differs from the hidden size; where the two
    were equal, the plan refuses a hidden size that shrinks alone.
    """
    old = _stated(config, "hidden_size")
    new = _lookup(config, requested, "hidden_size", old)
    own = config.attribute_map.get("hidden_size", "hidden_size")
    same = {name for name, value in vars(config).items() if type(value) is int and value == old}
    names = {name for name in same if any(word in name for word in ("size", "dim", "width", "d_"))}
    names -= {own, "vocab_size", *requested}
    return [{}, dict.fromkeys(names, new)] if names and new != old else [{}]


def _expanded_heads(config: PretrainedConfig, requested: Mapping[str, Any], strategy: str) -> list[dict[str, int]]:
    """Return what becomes of heads that fill a multiple of the hidden size, as those of state spaces do.

    `expand * hidden_size = heads * head width` is an equation of Mamba 2 and its kin that their configs do not
    solve: nothing follows by itself. As the strategy says, heads become narrower or fewer; or they stay.
    """
    old = getattr(config, "hidden_size", None)
    new = _lookup(config, requested, "hidden_size", old)
    sizes = {name: size for name, size in vars(config).items() if type(size) is int and size > 0}
    expand = next((size for name, size in sizes.items() if name.split("_")[-1] == "expand"), None)
    if expand is None or not isinstance(old, int) or new == old:
        return [{}]
    counts = {name for name in sizes if "heads" in name}
    widths = {name for name in sizes if "head" in name} - counts
    filling = [
        (n, w) for n in counts for w in widths if sizes[n] * sizes[w] == expand * old and not {n, w} & {*requested}
    ]
    found = {name: sizes[name] * new // old for pair in filling for name in pair if sizes[name] * new % old == 0}
    by_width = {name: size for name, size in found.items() if name in widths}
    by_count = {name: size for name, size in found.items() if name in counts}
    ways = (by_width, by_count) if strategy == "dim" else (by_count, by_width)
    return [*(way for way in ways if way), {}]


def _rewritten(config: PretrainedConfig, sizes: Mapping[str, Any]) -> PretrainedConfig:
    new = deepcopy(config)
    new.name_or_path = ""  # the student is not what its teacher's name loads
    if hasattr(new, "quantization_config"):  # of a file that was dequantized on loading, such as GGUF
        del new.quantization_config
    _write(new, sizes)
    with suppress(Exception):  # a config that its own class refuses: the plan will say so
        _settle(new, type(new).from_dict(new.to_dict()))
    return new


def _settle(config: PretrainedConfig, loaded: PretrainedConfig) -> None:
    """Give `config` the numbers that it has once saved and loaded, where its class computes some from others."""
    for name, value in vars(loaded).items():
        own = vars(config).get(name)
        if isinstance(own, PretrainedConfig):
            _settle(own, value)
        elif own != value and type(own) is type(value) and isinstance(value, (int, float, list)):
            setattr(config, name, value)


def _write(config: PretrainedConfig, sizes: Mapping[str, Any]) -> None:
    for name, size in sizes.items():
        if name == LAYERS:
            own = {int(layer): inside for layer, inside in (config.to_dict().get(LAYERS) or {}).items()}
            asked = {int(layer): {**own.get(int(layer), {}), **inside} for layer, inside in size.items()}
            config.per_layer_config = {**own, **asked}
        elif isinstance(size, Mapping):
            _write(getattr(config, name), size)
        else:
            old = _stated(config, name)
            setattr(config, name, type(old)(size) if isinstance(old, (list, tuple)) else size)  # configs check types


def _size_problems(config: PretrainedConfig, sizes: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Return what is wrong with each size taken by itself: unknown, wider, or all of them equal."""
    problems = []
    smaller = False
    seen: dict[str, str] = {}
    for name, size in sizes.items():
        if name == LAYERS and isinstance(size, Mapping):
            problems += _layer_problems(config, size, prefix)
            smaller = True
            continue
        if name not in {*vars(config), *config.attribute_map}:
            problems.append(_unknown_name(config, name, prefix))
            continue
        old = _stated(config, name)
        twin = seen.setdefault(config.attribute_map.get(name, name), name)
        if twin != name:
            problems.append(f"{prefix}{twin} and {prefix}{name} are one size; give one of them")
        if isinstance(size, Mapping):
            if isinstance(old, PretrainedConfig):
                problems += _size_problems(old, size, f"{prefix}{name}.")
            else:
                problems.append(f"{prefix}{name} is not a nested config of {type(config).__name__}")
            smaller = True
        elif isinstance(old, (list, tuple)) or isinstance(size, (list, tuple)):
            faults = _list_problems(f"{prefix}{name}", old, size)
            problems += faults
            smaller = smaller or (not faults and list(size) != list(old))
        elif old is None:
            smaller = True  # derived from another size by the model, as n_inner in GPT-2
        elif isinstance(old, bool) or not isinstance(old, int):
            problems.append(f"{prefix}{name} is no size: the teacher's value is {old!r}")
        elif size > old:
            problems.append(f"{prefix}{name}={size} is wider than the teacher's {old}; a student can only be narrower")
        smaller = smaller or (isinstance(old, int) and isinstance(size, int) and size < old)
    if not problems and not smaller:
        problems.append("every size equals the teacher's; ask for at least one smaller size")
    return problems


def _list_problems(name: str, old: object, sizes: object) -> list[str]:
    """Return what is wrong with a list of sizes, such as the widths of the stages of a hierarchical model."""
    if not isinstance(old, (list, tuple)):
        return [f"{name}={sizes!r} is a list, the teacher's is {old!r}; give one number"]
    if not isinstance(sizes, (list, tuple)) or len(sizes) != len(old):
        return [f"{name}={sizes!r} is not a list of {len(old)} sizes, as the teacher's {list(old)} is"]
    if not all(type(of) is int for of in old):
        return [f"{name} is no list of sizes: the teacher's value is {old!r}"]
    wider = [at for at, (size, of) in enumerate(zip(sizes, old, strict=True)) if size > of]
    return [
        f"{name}[{at}]={sizes[at]} is wider than the teacher's {old[at]}; a student can only be narrower"
        for at in wider
    ]


def _layer_problems(config: PretrainedConfig, layers: Mapping[Any, Any], prefix: str) -> list[str]:
    """Return what is wrong with sizes asked for single layers, by the number of the layer."""
    problems = []
    own = list(config.per_layer_config) if config.to_dict().get(LAYERS) else []
    for layer, sizes in layers.items():
        where = f"{prefix}{LAYERS}[{layer}]"
        if not own:
            problems.append(f"{where}: the layers of this {type(config).__name__} have no sizes of their own")
        elif not str(layer).isdigit() or int(layer) >= len(own):
            problems.append(f"{where}: the layers are 0 to {len(own) - 1}")
        elif not isinstance(sizes, Mapping):
            problems.append(f"{where} is {sizes!r}; give a dictionary of sizes")
        else:
            problems += _size_problems(own[int(layer)], sizes, f"{where}.")
    return problems


def _unknown_name(config: PretrainedConfig, name: str, prefix: str) -> str:
    own = {key for key, value in vars(config).items() if isinstance(value, int) and not isinstance(value, bool)}
    nested = [key for key, value in vars(config).items() if isinstance(value, PretrainedConfig)]
    names = sorted((own | set(config.attribute_map)) - {"transformers_version"})
    names = [known for known in names if not known.startswith("_") and not known.endswith("_id")]
    hint = f"; for parts of it use overrides={{{nested[0]!r}: {{...}}}}" if nested else ""
    return f"{type(config).__name__} has no {prefix}{name}; its sizes are {', '.join(names)}{hint}"


def _head_sizes(config: PretrainedConfig, requested: Mapping[str, Any], strategy: str) -> list[dict[str, int]]:
    """Return the head sizes that follow from the hidden size, as alternatives in order of preference.

    Where the config states a head width of its own and heads stay, the width is scaled first; if the plan
    refuses that because the width is frozen (rotary positions), it stays.

    Raises:
        ConfigError: the sizes do not divide; names the nearest that do.
    """
    old_hidden, old_heads = _stated(config, "hidden_size"), _stated(config, "num_attention_heads")
    if not isinstance(old_hidden, int) or not isinstance(old_heads, int):
        return [{}]
    hidden = _lookup(config, requested, "hidden_size", old_hidden)
    own_width = _stated(config, "head_dim") if "head_dim" in {*vars(config), *config.attribute_map} else None
    old_groups = _stated(config, "num_key_value_heads")
    heads = _lookup(config, requested, "num_attention_heads", None)
    if heads is None and strategy == "head" and hidden != old_hidden:
        groups = old_groups if old_groups != 1 else None  # a single one is shared by however many heads are left
        divisor = gcd(old_hidden, old_heads, groups or 0)
        if old_heads * hidden % old_hidden or (groups or 0) * hidden % old_hidden:
            raise ConfigError(_joined(config, [_indivisible(
                hidden, old_hidden // divisor, old_hidden,
                f"keeps heads of width {own_width or old_hidden // old_heads} only in steps of {old_hidden // divisor}",
            )]))  # fmt: skip
        following = {"num_attention_heads": old_heads * hidden // old_hidden}
        if groups:
            following["num_key_value_heads"] = groups * hidden // old_hidden
        return [following]
    count = heads or old_heads
    if own_width is None:
        if hidden % count:
            raise ConfigError(
                _joined(config, [_indivisible(hidden, count, old_hidden, f"does not divide into {count} heads")])
            )
        return [{}]
    if "head_dim" in requested or hidden == old_hidden or own_width * hidden % old_hidden:
        return [{}]
    return [{"head_dim": own_width * hidden // old_hidden}, {}]


def _stated(config: PretrainedConfig, name: str) -> Any:
    """Return an entry of `config`, None where it has none; one that layers override is what it is for the others.

    A config with `per_layer_config` raises when such an entry is read as an attribute.
    """
    own = config.attribute_map.get(name, name)
    return vars(config)[own] if own in vars(config) else getattr(config, name, None)


def _lookup(config: PretrainedConfig, requested: Mapping[str, Any], name: str, default: Any) -> Any:
    """Return a requested size under its common name or the teacher's own."""
    return requested.get(name, requested.get(config.attribute_map.get(name, name), default))


def _indivisible(hidden: int, step: int, below: int, problem: str) -> str:
    lower, upper = hidden // step * step, (hidden // step + 1) * step
    nearest = [size for size in (lower, upper) if 0 < size < below]
    return f"hidden_size={hidden} {problem}; nearest legal: {', '.join(map(str, nearest)) or 'none'}"


def _joined(config: PretrainedConfig, problems: list[str]) -> str:
    return f"No student of this {type(config).__name__}:\n" + "\n".join(f"- {problem}" for problem in problems)


def _refusal_text(teacher: PreTrainedModel, config: WidConfig, problems: str) -> str:
    sizes = ", ".join(f"{name}={size}" for name, size in config.requested.items())
    hint = ""
    if config.head_strategy == "dim" and "because it meets" in problems:
        hint = '\nRotary positions fix the width of heads: try head_strategy="head", which drops whole heads.'
    return (
        f"{type(teacher).__name__} cannot become a student with {sizes}, head_strategy={config.head_strategy!r}:\n"
        f"{problems}{hint}\nKeep the sizes named, or see docs/architectures.md for how to read this."
    )

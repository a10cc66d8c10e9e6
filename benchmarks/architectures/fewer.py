"""Students of one family with one layer fewer, and with half of the tokens.

Takes a family and its model class, gives a `Fewer`. Called by `__main__` for all families and by the tests for a
sample. Whether an entry of a config counts layers is asked of the library; entries whose names say so, and that make
another model with a smaller number, are refusals where the library does not see it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from check import Wrong, equal, limited, line_of
from tiny import WORDS_OF_DEPTH, tiny_model
from torch import Tensor, nn
from transformers import GenerationConfig, PretrainedConfig, PreTrainedModel

from wid_hf import ConfigError, WidConfig, WidError, get_wid_model
from wid_hf.calibration.bypass import bypassed
from wid_hf.config import COUNT, SIZES
from wid_hf.coupling import Example
from wid_hf.coupling.trace import output_tensors, quiet_forward, saved_tensors
from wid_hf.planning.depth import Stack, fits, requested_stacks, spread_layers
from wid_hf.planning.depth.shallow_config import Entry, count_of, shallow_config
from wid_hf.planning.depth.shallow_teacher import dropped_layers
from wid_hf.planning.depth.stacks import LISTS, skeleton
from wid_hf.planning.fewer_tokens.token_ids import NAMED
from wid_hf.planning.sizes.config_names import is_list, is_size, own_name
from wid_hf.planning.sizes.student_config import with_sizes
from wid_hf.planning.tracing import accepted_example
from wid_hf.vocabulary import with_fewer_tokens

LAYERS = 4  # enough for two of a kind where kinds take turns
ROUNDING = 1e-5  # of files, which are mapped at other alignments than memory is allocated at

# Sizes that `WidConfig` has fields for; layers that shorten sound, each in its own way, before there is a stream.
OTHERS = {*SIZES, "num_feat_extract_layers"}

Asked = dict[str, Any]  # of a `WidConfig`


@dataclass(frozen=True)
class Found:
    """What came out of one check.

    Attributes:
        status: `works`, `partly`, `refused`, `wrong`, or `none` where there is nothing to have fewer of.
        reason: why something was refused or wrong.
        entries: what counts layers, of those that work.
    """

    status: str
    reason: str = ""
    entries: tuple[str, ...] = ()


@dataclass(frozen=True)
class Fewer:
    """What came out for one family.

    Attributes:
        family: its `model_type`.
        task: the auto mapping it was taken from.
        model: the model class.
        layers: of a student with one layer fewer in each stack.
        tokens: of a model with half of the tokens.
    """

    family: str
    task: str
    model: str
    layers: Found
    tokens: Found


def check_fewer(family: str, task: str, class_name: str) -> Fewer:
    """Check one family, within the time that `check` has."""

    def too_slow(reason: str) -> Fewer:
        return Fewer(family, task, class_name, Found("not built", reason), Found("not built", reason))

    return limited(lambda: fewer_verdict(family, task, class_name), too_slow)


def fewer_verdict(family: str, task: str, class_name: str) -> Fewer:
    """Check one family; what another library's classes raise on the way to a model is `not built`."""
    try:
        teacher = tiny_model(family, class_name, layers=LAYERS)
        accepted_example(teacher, None)
    except Exception as cause:
        not_built = Found("not built", line_of(cause))
        return Fewer(family, task, class_name, not_built, not_built)
    return Fewer(family, task, class_name, _found(fewer_layers, teacher), _found(fewer_tokens, teacher))


def _found(check: Callable[[PreTrainedModel], Found], teacher: PreTrainedModel) -> Found:
    try:
        return check(teacher)
    except Exception as cause:
        return Found("wrong", f"{type(cause).__name__}: {line_of(cause)}")


def fewer_layers(teacher: PreTrainedModel) -> Found:
    """Take one layer from every stack at once; from each on its own if that is refused."""
    counts, reasons = _counts(teacher)
    if not counts and not reasons:
        return Found("none")
    works: list[Entry] = []
    for entries in [[*counts], *([[entry] for entry in counts] if len(counts) > 1 else [])] if counts else []:
        try:
            _one_layer_fewer(teacher, asked(teacher.config, entries))
        except WidError as refusal:
            reasons.append(line_of(refusal))
        else:
            works += entries
        if len(works) == len(counts):
            break
    status = "works" if works and not reasons else "partly" if works else "refused"
    return Found(status, reasons[0] if reasons else "", tuple(".".join(map(str, entry)) for entry in works))


def asked(config: PretrainedConfig, entries: Sequence[Entry]) -> Asked:
    """Return the request for one layer fewer by each of these entries."""
    request: Asked = {}
    for entry in entries:
        old = count_of(config, entry)
        if entry == (own_name(config, COUNT),):
            request[COUNT] = old - 1
            continue
        *above, last = entry[:-1] if isinstance(entry[-1], int) else entry
        inside, part = request.setdefault("overrides", {}), config
        for name in above:
            inside, part = inside.setdefault(name, {}), getattr(part, str(name))
        if isinstance(entry[-1], int):
            inside.setdefault(last, list(vars(part)[last]))[entry[-1]] = old - 1
        else:
            inside[last] = old - 1
    return request


def _counts(teacher: PreTrainedModel) -> tuple[list[Entry], list[str]]:
    """Return the entries that count layers, and reasons against those that only seem to."""
    example = accepted_example(teacher, None)
    lengths = {len(module) for module in teacher.modules() if isinstance(module, LISTS)}
    found: list[Entry] = []
    unseen: list[str] = []
    for entry, value in _numbers(teacher.config):
        name = next(word for word in reversed(entry) if isinstance(word, str))
        is_named = name.endswith(WORDS_OF_DEPTH)
        if value not in lengths and not is_named:
            continue
        reason = "it is not seen to count layers"
        stacks: Sequence[Stack] = ()
        try:
            stacks = requested_stacks(teacher, WidConfig(**asked(teacher.config, [entry])))
        except ConfigError as refusal:
            reason = line_of(refusal)
        sure = is_named and all(each.lists for each in stacks)  # others may count stages, or nothing
        if stacks and (sure or fits(teacher, spread_layers(teacher, stacks, example), example)):
            found.append(entry)
        elif is_named and _matters(teacher, entry):
            unseen.append(f"{'.'.join(map(str, entry))}: {reason}")
    return found, unseen


def _numbers(config: PretrainedConfig, path: Entry = ()) -> Iterator[tuple[Entry, int]]:
    """Yield all numbers above 1 of a config, those of its parts and those in lists, with their places."""
    for name, value in vars(config).items():
        if name.startswith("_") or name in OTHERS:
            continue
        if isinstance(value, PretrainedConfig):
            yield from _numbers(value, (*path, name))
        elif is_list(value):  # with a 0 it holds layers' numbers
            yield from (((*path, name, at), each) for at, each in enumerate(value) if each > 1)
        elif is_size(value) and value > 1:
            yield (*path, name), value


def _matters(teacher: PreTrainedModel, entry: Entry) -> bool:
    """Return whether the class makes a model with fewer weights of a smaller number, or refuses it in any case."""
    request = asked(teacher.config, [entry])
    sizes = request.get("overrides") or {own_name(teacher.config, COUNT): request[COUNT]}
    fewer = range(count_of(teacher.config, entry) - 1)
    for make in (lambda: with_sizes(teacher.config, sizes), lambda: shallow_config(teacher.config, entry, fewer)):
        try:
            return not saved_tensors(teacher).keys() <= saved_tensors(skeleton(type(teacher), make())).keys()
        except Exception:  # each class checks its config in its own way
            continue
    return True


def _one_layer_fewer(teacher: PreTrainedModel, request: Asked) -> None:
    """Make the student without calibration, which must be the teacher past its other layers, and with it.

    Raises:
        Wrong: something does not hold.
        WidError: a refusal.
    """
    example = accepted_example(teacher, None)
    batches = [dict(example.inputs), dict(example.inputs)]
    plain = {"init": "identity", "selection": "variance"}
    model = get_wid_model(teacher, WidConfig(**request, **plain), calibration_data=batches)
    stacks = model.base_model.stacks
    if any(each.new != each.old - 1 or len(each.kept or ()) != each.new for each in stacks):
        raise Wrong("another number of layers went than was asked for")
    if all(each.lists for each in stacks):
        with bypassed(teacher, dropped_layers(stacks)):
            expected = _outputs(teacher, example)
        if not equal(expected, _outputs(model.merge_and_unload(), example), ROUNDING):
            raise Wrong("the student is not the teacher past the other layers")
    kept = {each.title: list(each.kept or ()) for each in stacks if each.lists}
    given = {"layers": kept} if kept else request
    model = get_wid_model(teacher, WidConfig(**given), calibration_data=batches).eval()
    student = model.merge_and_unload()
    if not equal(_outputs(model.base_model.model, example), _outputs(student, example)):
        raise Wrong("merging changed the outputs")
    _save_and_load(student, example)


def fewer_tokens(teacher: PreTrainedModel) -> Found:
    """Take every other token that the config does not name."""
    size = getattr(teacher.config.get_text_config(decoder=True), "vocab_size", None)
    if not isinstance(size, int) or not _reads_tokens(teacher):
        return Found("none")
    special = set(_named_tokens(teacher)) & set(range(size))
    others = [token for token in range(size) if token not in special]
    gone = min(size // 2, len(others) - 2)
    kept = sorted(special | set(others[: len(others) - 2 * gone]) | set(others[len(others) - 2 * gone :: 2]))
    try:
        smaller = with_fewer_tokens(teacher, kept)
    except WidError as refusal:
        return Found("refused", line_of(refusal))
    example = accepted_example(smaller, None)
    wanted = _outputs(teacher, _in_old_numbers(example, kept))
    given = _outputs(smaller, example)
    if not equal([_of_kept(old, new, kept) for old, new in zip(wanted, given, strict=True)], given, ROUNDING):
        raise Wrong("outputs differ for the same tokens")
    _save_and_load(smaller, example)
    return Found("works")


def _reads_tokens(model: PreTrainedModel) -> bool:
    try:
        return isinstance(model.get_input_embeddings(), nn.Embedding)
    except NotImplementedError:  # of images, sound or characters
        return False


def _named_tokens(model: PreTrainedModel) -> Iterator[int]:
    """Yield the numbers of tokens that the configs of a model name."""
    waiting: list[Any] = [model.config, getattr(model, "generation_config", None)]
    while waiting:
        config = waiting.pop()
        if not isinstance(config, (PretrainedConfig, GenerationConfig)):
            continue
        waiting += vars(config).values()
        for name, value in vars(config).items():
            if NAMED.search(name):
                yield from (token for token in _leaves(value) if isinstance(token, int))


def _leaves(value: Any) -> list[Any]:
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else None
    return [value] if parts is None else [leaf for part in parts for leaf in _leaves(part)]


def _in_old_numbers(example: Example, kept: Sequence[int]) -> Example:
    old = torch.tensor(kept)
    return Example({n: old[v] if n.endswith("input_ids") else v for n, v in example.inputs.items()}, example.part)


def _of_kept(old: Tensor, new: Tensor, kept: Sequence[int]) -> Tensor:
    """Return scores of the kept tokens alone."""
    for axis, sizes in enumerate(zip(old.shape, new.shape, strict=True)):
        if sizes[0] != sizes[1]:
            old = old.index_select(axis, torch.tensor(kept))
    return old


def _save_and_load(model: PreTrainedModel, example: Example) -> None:
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        loaded = type(model).from_pretrained(Path(folder))
    saved, read = model.state_dict(), loaded.state_dict()
    if saved.keys() != read.keys() or not all(torch.equal(saved[name], read[name]) for name in saved):
        raise Wrong("reloading changed a weight")
    if not equal(_outputs(model, example), _outputs(loaded, example), ROUNDING):
        raise Wrong("reloading changed the outputs")


def _outputs(model: nn.Module, example: Example) -> list[Tensor]:
    # With gradients: torch.matmul takes another path for weights that record none, with other rounding.
    with quiet_forward(model), torch.enable_grad():
        torch.manual_seed(0)  # some models draw masks in evaluation as well
        return [tensor.detach() for tensor in output_tensors(model(**example.inputs))]

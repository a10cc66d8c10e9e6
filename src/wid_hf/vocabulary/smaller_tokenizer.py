"""A tokenizer with fewer tokens: its `tokenizer.json` without the others, and with the new numbers.

Takes a fast tokenizer and the numbers of the tokens to keep; gives one as if it were loaded from a folder. The file is
edited here, and not by a library for that: those number the tokens by rules of their own, and know nothing of what
transformers keeps beside the file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from transformers import PreTrainedTokenizerBase

from ..errors import ConfigError, TeacherError
from .pieces import Pieces, read_backend, special_tokens

FILE = "tokenizer.json"
NAMED = 5  # tokens in a message


def smaller_tokenizer(tokenizer: PreTrainedTokenizerBase, kept: Sequence[int]) -> PreTrainedTokenizerBase:
    """Return a tokenizer with only the tokens `kept`, without changing the one given.

    Args:
        tokenizer: a fast one, of words, WordPiece, BPE or Unigram.
        kept: numbers of tokens in ascending order, such as `kept_tokens` gives; token `kept[i]` is `i` from now on.
            BPE needs the tokens that merges make on the way to a token: without them it does not find it.

    Returns:
        a tokenizer of the same class, as saving and loading gives it: with its special tokens, chat template, lengths
        and sides. Its file always says how `tokenizer` cuts and pads now: a file of transformers says how texts were
        cut and padded in the last call before it was saved, and other programs go by that.

    Raises:
        ConfigError: a number that no token has; or a special or added token, or a byte, is left out.
        TeacherError: a slow tokenizer, or one whose class does not load these tokens as they were saved.
    """
    backend = read_backend(tokenizer)
    numbers = tokenizer.get_vocab()
    names = {number: token for token, number in numbers.items()}
    if list(kept) != sorted(set(kept)):
        raise ConfigError("kept must be numbers of tokens in ascending order, each once.")
    if unknown := [number for number in kept if number not in names]:
        raise ConfigError(
            f"kept has {unknown[0]}, which is no token of the tokenizer; it has {len(names):,}. "
            "kept_tokens(tokenizer, ...) gives numbers that fit."
        )
    new = {names[number]: place for place, number in enumerate(kept)}
    _refuse_lack(tokenizer, backend, {names[number] for number in Pieces(tokenizer).always} - new.keys())
    with TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        (Path(folder) / FILE).write_text(json.dumps(_smaller(backend, new), ensure_ascii=False), encoding="utf-8")
        smaller = type(tokenizer).from_pretrained(folder)
    smaller.name_or_path = smaller.init_kwargs["name_or_path"] = tokenizer.name_or_path  # not the folder that has gone
    for side in ("padding_side", "truncation_side"):
        setattr(smaller, side, getattr(tokenizer, side))
        smaller.init_kwargs[side] = getattr(tokenizer, side)  # of which only those that are there are saved
    if smaller.get_vocab() != new:
        raise TeacherError(
            f"{type(tokenizer).__name__} gives its tokens other numbers when it is loaded from a file, or adds "
            "some, so that none can go. Load the tokenizer as PreTrainedTokenizerFast, or keep all tokens."
        )
    made: Any = smaller
    made._at_rest = _cutting_and_padding(smaller)
    made.save_pretrained = partial(save_pretrained, smaller)  # not a method, which pickle would look up in the class
    return smaller


def _refuse_lack(tokenizer: PreTrainedTokenizerBase, backend: Mapping[str, Any], missing: set[str]) -> None:
    """Raise ConfigError if tokens that every text may need are missing."""
    if not missing:
        return
    special = missing & special_tokens(tokenizer, backend)
    kind = "special or added tokens" if special else "bytes and others by which any text can be read"
    raise ConfigError(
        f"kept leaves out {kind}: {_listed(sorted(special or missing))}. Add their numbers; kept_tokens(tokenizer, "
        "...) always has them."
    )


def _listed(tokens: Sequence[str]) -> str:
    more = f" and {len(tokens) - NAMED} more" if tokens[NAMED:] else ""
    return ", ".join(tokens[:NAMED]) + more


def save_pretrained(self: Any, save_directory: Any, *args: Any, **kwargs: Any) -> Any:
    """Save a smaller tokenizer as its class does, cutting and padding as when it was made."""
    now = _cutting_and_padding(self)
    _set_cutting_and_padding(self, *self._at_rest)
    try:
        return type(self).save_pretrained(self, save_directory, *args, **kwargs)
    finally:
        _set_cutting_and_padding(self, *now)


def _cutting_and_padding(tokenizer: Any) -> tuple[Any, Any]:
    """Return what a call leaves behind in a tokenizer."""
    return tokenizer.backend_tokenizer.truncation, tokenizer.backend_tokenizer.padding


def _set_cutting_and_padding(tokenizer: Any, truncation: Any, padding: Any) -> None:
    backend = tokenizer.backend_tokenizer
    backend.no_truncation() if truncation is None else backend.enable_truncation(**truncation)
    backend.no_padding() if padding is None else backend.enable_padding(**padding)


def _smaller(backend: Mapping[str, Any], new: Mapping[str, int]) -> dict[str, Any]:
    """Return the content of a `tokenizer.json` with the tokens `new` and their numbers."""
    smaller = {**backend, "model": _model(backend["model"], new)}
    smaller["added_tokens"] = [{**token, "id": new[token["content"]]} for token in backend["added_tokens"]]
    smaller["added_tokens"].sort(key=lambda token: token["id"])
    smaller["post_processor"] = _post_processor(backend["post_processor"], new)
    if padding := backend["padding"]:
        smaller["padding"] = {**padding, "pad_id": new.get(padding["pad_token"], padding["pad_id"])}
    return smaller


def _model(model: Mapping[str, Any], new: Mapping[str, int]) -> dict[str, Any]:
    """Return the model's tokens in the order of their numbers, and its merges of kept tokens."""
    smaller = dict(model)
    if model["type"] == "Unigram":
        smaller["vocab"] = [entry for entry in model["vocab"] if entry[0] in new]
        smaller["unk_id"] = None if model["unk_id"] is None else new[model["vocab"][model["unk_id"]][0]]
        return smaller
    smaller["vocab"] = {token: new[token] for token in model["vocab"] if token in new}
    if "merges" in model:
        prefix = model.get("continuing_subword_prefix") or ""
        smaller["merges"] = [
            [left, right]
            for left, right in model["merges"]
            if {left, right, left + right.removeprefix(prefix)} <= new.keys()
        ]
    return smaller


def _post_processor(step: Any, new: Mapping[str, int]) -> Any:
    """Return a post-processor with the new numbers of the tokens that it puts around texts."""
    if step is None:
        return None
    changed = dict(step)
    for name in {"sep", "cls"} & step.keys():
        changed[name] = [step[name][0], new[step[name][0]]]
    if entries := step.get("special_tokens"):
        changed["special_tokens"] = {
            name: {**entry, "ids": [new[token] for token in entry["tokens"]]} for name, entry in entries.items()
        }
    if steps := step.get("processors"):
        changed["processors"] = [_post_processor(part, new) for part in steps]
    return changed

"""Numbers of tokens in a model's configs, after some tokens have gone.

Takes the configs of a copy of a model, its generation config among them; changes their entries. Which entries hold
numbers of tokens is told by their names, which transformers spells alike for all models.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from torch.utils._pytree import tree_leaves
from transformers import GenerationConfig, PretrainedConfig

from ...errors import ConfigError

# `eos_token_id`, `image_token_index`, XLM's `pad_index`, `vision_start_id`; Whisper's `lang_to_id` and `task_to_id`.
NAMED = re.compile(
    r"(^|_)token_(ids?|index)$|^(bos|eos|pad|unk|sep|cls|mask)_(id|index|idx)$|_(start|end)_id$|_to_id$|^force_words_ids$"
)
NO_TIMESTAMPS = "no_timestamps_token_id"  # transformers counts timestamps from the row behind it
SUPPRESSED = re.compile(r"suppress_tokens$|^bad_words_ids$")


def numbers_in(configs: Iterable[PretrainedConfig | GenerationConfig], size: int) -> set[int]:
    """Return the numbers of tokens that these configs need, of those that have a vocabulary of this size."""
    entries: list[Any] = []
    for config in configs:
        if getattr(config, "vocab_size", size) == size:
            entries += [value for name, value in vars(config).items() if NAMED.search(name)]
            entries += [token for _, token in getattr(config, "forced_decoder_ids", None) or []]
            entries += _from_timestamps(getattr(config, NO_TIMESTAMPS, None), size)
    return {number for number in tree_leaves(entries) if type(number) is int and number in range(size)}


def _from_timestamps(before: int | None, size: int) -> range:
    """Return the numbers of the token before the timestamps, and of all of these; the tokenizer may not name them."""
    return range(0) if before is None else range(before, size)


class _GoneError(Exception):
    """A token that a config needs was not kept."""


class Numbers:
    """The new numbers of tokens by the old ones.

    Args:
        kept: old numbers, ascending; the new number of each is its place.
        size: of the vocabulary so far.
    """

    def __init__(self, kept: Sequence[int], size: int) -> None:
        self.kept = kept
        self.size = size
        self._new = {old: new for new, old in enumerate(kept)}

    def write(self, configs: Iterable[PretrainedConfig | GenerationConfig]) -> None:
        """Write the new numbers and the new size of the vocabulary into `configs`, each given once.

        Lists of what must not be generated lose what has gone, and are None if nothing is left: transformers refuses
        empty ones. A config with a vocabulary of another size is left alone, and so are numbers that no token has,
        such as -1.

        Raises:
            ConfigError: a config names a token that has gone.
        """
        missing: dict[str, None] = {}
        for config in configs:
            if getattr(config, "vocab_size", self.size) != self.size:
                continue
            for name, value in [item for item in vars(config).items() if item[1] is not None]:
                try:
                    setattr(config, name, self._entry(name, value))
                except _GoneError:
                    missing[f"{name}={value}"] = None
        if missing:
            raise ConfigError(
                f"kept leaves out tokens that the model's config names: {', '.join(missing)}. Add their numbers to "
                "kept: kept_tokens(tokenizer, ...) has all special tokens of the tokenizer, others with tokens=[...]."
            )

    def _entry(self, name: str, value: Any) -> Any:
        """Return an entry of a config as it is now: with new numbers if its name says that it holds some.

        Raises:
            _GoneError: it needs a token that has gone.
        """
        if "vocab_size" in name and value == self.size:
            return len(self.kept)
        if name == NO_TIMESTAMPS:
            return self._changed([*_from_timestamps(value, self.size)])[0]
        if NAMED.search(name):
            return self._changed(value)
        if name == "forced_decoder_ids":
            return [[position, self._changed(token)] for position, token in value]
        if SUPPRESSED.search(name):
            return [self._changed(tokens) for tokens in value if self._has(tokens)] or None
        if name == "sequence_bias":
            return self._biases(value)
        return value

    def _biases(self, value: Any) -> Any:
        """Return what is added to the scores of sequences, without those that cannot occur any more."""
        pairs = value.items() if isinstance(value, dict) else value
        left = [[self._changed(tokens), bias] for tokens, bias in pairs if self._has(tokens)]
        return ({tuple(tokens): bias for tokens, bias in left} if isinstance(value, dict) else left) or None

    def _changed(self, value: Any) -> Any:
        """Return a number, or numbers in lists and dictionaries, with the new ones.

        Raises:
            _GoneError: one has gone.
        """
        if isinstance(value, dict):
            return {key: self._changed(part) for key, part in value.items()}
        if isinstance(value, (list, tuple)):
            return type(value)(self._changed(part) for part in value)
        if not isinstance(value, int) or value not in range(self.size):
            return value
        if value not in self._new:
            raise _GoneError
        return self._new[value]

    def _has(self, value: Any) -> bool:
        try:
            self._changed(value)
        except _GoneError:
            return False
        return True

"""Numbers of tokens in a model's configs, after some tokens have gone.

Takes the configs of a copy of a model, its generation config among them; changes their entries. Which entries hold
numbers of tokens is told by their names, which transformers spells alike for all models.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from torch.utils._pytree import tree_leaves
from transformers import GenerationConfig, PretrainedConfig

from ...errors import ConfigError, WidWarning

# `eos_token_id`, `image_token_index`, XLM's `pad_index`, `vision_start_id`; Whisper's `lang_to_id` and `task_to_id`,
# SeamlessM4T's `text_decoder_lang_to_code_id`, Chameleon's `vocabulary_map`.
NAMED = re.compile(
    r"(^|_)token_(ids?|index)$|^(bos|eos|pad|unk|sep|cls|mask)_(id|index|idx)$|_(start|end)_id$|"
    r"^(lang|task)_to_id$|_lang_to_code_id$|^vocabulary_map$|^force_words_ids$"
)
NO_TIMESTAMPS = "no_timestamps_token_id"  # transformers counts timestamps from the row behind it
FORCED = "forced_decoder_ids"
SUPPRESSED = re.compile(r"suppress_tokens$|^bad_words_ids$")
# Names of many things: of tokens (`image_patch_id`, Bark's `semantic_pad_token`), of codes of sounds (`codec_pad_id`),
# of units (`t2u_lang_code_to_id`) or of tags (`tag_pad_id`). Others say that they number something else.
POSSIBLE = re.compile(r"_(ids?|idx|index|token)$")
OTHERS = re.compile(r"(^|_)(layers?|head|hook|label|ignore|speaker)_")
SIZE = "vocab_size"
TOLD = 60  # characters of a value in a message


def numbers_in(configs: Iterable[PretrainedConfig | GenerationConfig], size: int) -> set[int]:
    """Return the numbers of tokens that these configs need, of those that have a vocabulary of this size."""
    found: list[Any] = []
    for config in _of_size(configs, size):
        found += [value for name, value in _entries(vars(config)) if _is_named(config, name, size)]
        found += [token for _, token in getattr(config, FORCED, None) or []]
        found += _from_timestamps(getattr(config, NO_TIMESTAMPS, None), size)
    return _tokens(found, size)


def _of_size(
    configs: Iterable[PretrainedConfig | GenerationConfig], size: int
) -> Iterator[PretrainedConfig | GenerationConfig]:
    yield from (config for config in configs if getattr(config, SIZE, size) == size)


def _entries(entries: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield entries by name, and those of dictionaries such as `task_specific_params`, unless these are numbers."""
    for name, value in entries.items():
        if _is_nested(name, value):
            yield from _entries(value)
        else:
            yield name, value


def _is_nested(name: str, value: Any) -> bool:
    is_settings = type(value) is dict and all(isinstance(key, str) for key in value)
    return is_settings and not NAMED.search(name) and not POSSIBLE.search(name)


def _is_named(config: PretrainedConfig | GenerationConfig, name: str, size: int) -> bool:
    """Return whether an entry holds numbers of tokens of a vocabulary of this size.

    Those of `t2u_pad_token_id` are of another one, if there is a `t2u_vocab_size`.
    """
    own = (other.removesuffix(SIZE) for other, value in vars(config).items() if other.endswith(SIZE) and value != size)
    return bool(NAMED.search(name)) and not any(start and name.startswith(start) for start in own)


def _tokens(values: Any, size: int) -> set[int]:
    """Return what may be numbers of tokens in a value of a config: not -1, which no token has, nor True."""
    return {number for number in tree_leaves(values) if type(number) is int and number in range(size)}


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
        such as -1. A warning names entries that may or may not hold numbers of tokens, which are left alone too.

        Raises:
            ConfigError: a config names a token that has gone.
        """
        missing: dict[str, None] = {}
        unsure: dict[str, None] = {}
        for config in _of_size(configs, self.size):
            unsure |= dict.fromkeys(self._unsure(config))
            for name, value in [item for item in vars(config).items() if item[1] is not None]:
                try:
                    setattr(config, name, self._entry(config, name, value))
                except _GoneError:
                    missing[_told(name, value)] = None
        if missing:
            raise ConfigError(
                f"kept leaves out tokens that the model's config names: {', '.join(missing)}. Add their numbers to "
                "kept: kept_tokens(tokenizer, ...) has all special tokens of the tokenizer, others with tokens=[...]."
            )
        if unsure:
            warnings.warn(
                f"The model's config has {', '.join(unsure)}. Their names do not say whether they are numbers of "
                "tokens, so they stay as they are. If they are, keep these tokens and write their new numbers into the "
                "config: token kept[i] is i.",
                WidWarning,
                stacklevel=4,
            )

    def _unsure(self, config: PretrainedConfig | GenerationConfig) -> Iterator[str]:
        """Yield entries that may hold numbers of tokens, if these would be others now."""
        for name, value in _entries(vars(config)):
            known = NAMED.search(name) or OTHERS.search(name) or SUPPRESSED.search(name) or name == FORCED
            if name.startswith("_") or known or not POSSIBLE.search(name):
                continue
            if any(self._new.get(token) != token for token in _tokens(value, self.size)):
                yield _told(name, value)

    def _entry(self, config: PretrainedConfig | GenerationConfig, name: str, value: Any) -> Any:
        """Return an entry of a config as it is now: with new numbers if its name says that it holds some.

        Raises:
            _GoneError: it needs a token that has gone.
        """
        if SIZE in name and value == self.size:
            return len(self.kept)
        if name == NO_TIMESTAMPS:
            return self._changed([*_from_timestamps(value, self.size)])[0]
        if _is_named(config, name, self.size):
            return self._changed(value)
        if _is_nested(name, value):
            return {key: part if part is None else self._entry(config, key, part) for key, part in value.items()}
        return self._rules(name, value)

    def _rules(self, name: str, value: Any) -> Any:
        """Return an entry that says which tokens generation must take, must not, or likes; others as they are.

        Raises:
            _GoneError: it needs a token that has gone.
        """
        if name == FORCED:
            return [[position, self._changed(token)] for position, token in value]
        if SUPPRESSED.search(name):
            return [self._changed(tokens) for tokens in value if self._has(tokens)] or None
        return self._biases(value) if name == "sequence_bias" else value

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


def _told(name: str, value: Any) -> str:
    """Return an entry in a message; a map of a whole vocabulary is long."""
    text = str(value)
    return f"{name}={text if len(text) <= TOLD else f'{text[:TOLD]}...'}"

"""The tokens of a fast tokenizer: which others each of them needs, and which of them texts have.

Takes a tokenizer; reads what its `tokenizer.json` holds. `kept_tokens` asks what must stay.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from itertools import islice, pairwise
from typing import Any

from transformers import PreTrainedTokenizerBase

from ..errors import DataError, TeacherError

BATCH = 1000  # texts at once
BYTE = re.compile(r"<0x[0-9A-F]{2}>")


def read_backend(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Return the content of the tokenizer's `tokenizer.json`.

    Raises:
        TeacherError: it has none, or has parts in Python that no file can hold.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise TeacherError(
            f"{type(tokenizer).__name__} is a slow tokenizer: it has no tokenizer.json from which tokens could go. "
            "Pass a fast one: AutoTokenizer.from_pretrained(...) converts most, if sentencepiece is installed."
        )
    try:
        return json.loads(backend.to_str())
    except Exception as cause:  # the tokenizers library raises plain exceptions
        raise TeacherError(
            f"{type(tokenizer).__name__} cannot be written as a tokenizer.json ({cause}), so that no tokens can go. "
            "Pass a tokenizer without parts in Python."
        ) from cause


def special_tokens(tokenizer: PreTrainedTokenizerBase, backend: Mapping[str, Any]) -> set[str]:
    """Return the tokens that have a meaning of their own: special, added, unknown, and those put around texts.

    Args:
        tokenizer: a fast one.
        backend: what `read_backend` gives for it.
    """
    model = backend["model"]
    tokens = {*tokenizer.all_special_tokens, *(token["content"] for token in backend["added_tokens"])}
    tokens |= _around(backend["post_processor"] or {})
    if model["type"] == "Unigram":
        return tokens | ({model["vocab"][model["unk_id"]][0]} if model["unk_id"] is not None else set())
    return tokens | ({model["unk_token"]} if model["unk_token"] else set())


def _around(step: Mapping[str, Any]) -> set[str]:
    """Return the tokens that a post-processor puts around texts."""
    tokens = {step[name][0] for name in ("sep", "cls") if name in step}
    tokens |= {token for entry in step.get("special_tokens", {}).values() for token in entry["tokens"]}
    return tokens.union(*map(_around, step.get("processors", ())))


def tokens_of(
    tokenizer: PreTrainedTokenizerBase, texts: Iterable[str], *, special: bool = False
) -> Iterator[list[int]]:
    """Yield the tokens of each text, however long it is, with those around it if `special`.

    Raises:
        DataError: `texts` is one text instead of several.
    """
    if isinstance(texts, str):
        raise DataError('texts is a single text. Pass several: texts=["...", "..."].')
    tokenizer, texts = deepcopy(tokenizer), iter(texts)  # a call changes the tokenizer's truncation and padding
    while batch := list(islice(texts, BATCH)):
        yield from tokenizer(
            batch, add_special_tokens=special, truncation=False, padding=False, verbose=False
        ).input_ids


class Pieces:
    """What a tokenizer says about its tokens, which are numbers here.

    Args:
        tokenizer: a fast one.

    Attributes:
        numbers: every token with its number, added ones too.
        always: special and added tokens, the unknown token, bytes; and the least likely token of a Unigram model, by
            which it scores what is unknown.
        characters: for each character the tokens that are this character alone; none in a model of whole words.
        has_bytes: whether any text can be spelled in bytes.

    Raises:
        TeacherError: the tokenizer has no `tokenizer.json`.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        backend = read_backend(tokenizer)
        model = backend["model"]
        self.numbers: dict[str, int] = tokenizer.get_vocab()
        self._names = {number: token for token, number in self.numbers.items()}
        self._prefix: str = model.get("continuing_subword_prefix") or ""  # WordPiece's "##"
        self._suffix: str = model.get("end_of_word_suffix") or ""  # CLIP's "</w>"
        self._ranks = {tuple(pair): rank for rank, pair in enumerate(model.get("merges", ()))}
        whole_words = model["type"] == "WordLevel"
        self.characters = {} if whole_words else _alone(self.numbers, self._prefix, self._suffix)
        in_bytes = _is_byte_level(backend)
        self.has_bytes: bool = in_bytes or model.get("byte_fallback", False)
        stay = special_tokens(tokenizer, backend) | _least_likely(model)
        if self.has_bytes:
            stay |= {token for token in self.numbers if BYTE.fullmatch(token)}
        self.always = {self.numbers[token] for token in stay & self.numbers.keys()}
        self.always |= set().union(*self.characters.values()) if in_bytes else set()

    def needed(self, number: int) -> set[int]:
        """Return a token with all that must stay for it to be found in a text as before.

        These are the tokens that merges make on the way to it, and its single characters: where such a character has
        gone, a Unigram model would take it for unknown, and could prefer that.
        """
        token = self._names[number]
        characters = (self.characters.get(character, set()) for character in set(token))
        return {number, *(self.numbers[part] for part in self._merged(token))}.union(*characters)

    def _merged(self, token: str) -> set[str]:
        """Return the tokens that merges make of the text of `token` on the way to it; none if they do not reach it.

        The same merges make it within a longer word: none of them reaches over the ends of a token found in the end.
        """
        symbols = self._symbols(token)
        made = set(symbols)
        while at := min(self._merges(symbols), default=None):
            symbols[at[1] : at[1] + 2] = [symbols[at[1]] + symbols[at[1] + 1].removeprefix(self._prefix)]
            made.add(symbols[at[1]])
        return made if symbols == [token] else set()

    def _merges(self, symbols: Sequence[str]) -> Iterator[tuple[int, int]]:
        """Yield the rank and the place of each merge that is possible."""
        for at, pair in enumerate(pairwise(symbols)):
            if pair in self._ranks:
                yield self._ranks[pair], at

    def _symbols(self, token: str) -> list[str]:
        """Return the characters of a token, with the signs of their places in a word: what merges start from."""
        inner = token.removeprefix(self._prefix)
        bare = inner.removesuffix(self._suffix)
        if not bare:
            return [token]
        symbols = [self._prefix + character for character in bare]
        symbols[0] = token[: len(token) - len(inner)] + bare[0]
        symbols[-1] += inner[len(bare) :]
        return symbols


def _least_likely(model: Mapping[str, Any]) -> set[str]:
    if model["type"] != "Unigram":
        return set()
    return {min(model["vocab"], key=lambda entry: entry[1])[0]}


def _alone(numbers: Mapping[str, int], prefix: str, suffix: str) -> dict[str, set[int]]:
    """Return each character with the tokens that are nothing else, but for the signs of their place in a word."""
    characters: dict[str, set[int]] = {}
    for token, number in numbers.items():
        if len(character := token.removeprefix(prefix).removesuffix(suffix)) == 1:
            characters.setdefault(character, set()).add(number)
    return characters


def _is_byte_level(backend: Mapping[str, Any]) -> bool:
    """Return whether texts become bytes, each with a character that stands for it, before the model sees them."""
    steps = [backend["normalizer"], backend["pre_tokenizer"]]
    while steps:
        step = steps.pop() or {}
        if step.get("type") == "ByteLevel":
            return True
        steps += [*step.get("normalizers", ()), *step.get("pretokenizers", ())]
    return False

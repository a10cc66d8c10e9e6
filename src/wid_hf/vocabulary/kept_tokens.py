"""Which tokens to keep: those that texts use, the most used ones, or those of a list, with all that these need.

Takes a tokenizer and texts; gives numbers of tokens in ascending order, for `smaller_tokenizer` and
`with_fewer_tokens`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from transformers import PreTrainedTokenizerBase

from ..errors import ConfigError
from .pieces import Pieces, tokens_of

NAMED = 5  # tokens in a message


def kept_tokens(
    tokenizer: PreTrainedTokenizerBase,
    *,
    texts: Iterable[str] | None = None,
    size: int | None = None,
    tokens: Sequence[str] = (),
    any_text: bool = True,
) -> list[int]:
    """Return the numbers of the tokens to keep, in ascending order.

    These always stay: special and added tokens, the unknown token, bytes. With a token stay the tokens that merges make
    on the way to it, and its single characters. So a text of kept tokens is divided into the same tokens as before,
    except that words which were unknown may no longer be.

    Args:
        tokenizer: a fast one, of any model.
        texts: all tokens that they use are kept; with `size` the most used ones.
        size: how many tokens to keep at most. Where the texts use fewer, those with the lowest numbers fill up.
        tokens: these are kept, as the vocabulary spells them ("##ing", "Ġthe").
        any_text: keep every single character, unless there are bytes, so that each text which can be divided into known
            tokens now still can be. False keeps the characters of `texts` and `tokens` only: to take one language out
            of a vocabulary of many. In a model of whole words, words that go are unknown in either case.

    Raises:
        ConfigError: neither texts nor tokens were given; there are no such tokens; or `size` is less than what must
            stay, or more than there is.
        TeacherError: a slow tokenizer.
    """
    pieces = Pieces(tokenizer)
    if texts is None and (size is not None or not tokens):
        raise ConfigError(
            "Nothing says which tokens to keep. Pass texts=[...], with a size if you like, or tokens=[...] without "
            "a size."
        )
    uses = Counter(number for text in tokens_of(tokenizer, texts or ()) for number in text)
    must = _all_needed(pieces, _numbers_of(tokens, pieces)) | pieces.always
    if not pieces.has_bytes:
        alphabet = set().union(*pieces.characters.values())
        must |= alphabet if any_text else alphabet & _all_needed(pieces, uses)
    return sorted(must | _all_needed(pieces, uses) if size is None else _filled(must, size, uses, pieces))


def _filled(must: set[int], size: int, uses: Mapping[int, int], pieces: Pieces) -> set[int]:
    """Return `must` with the most used tokens, as many as there is room for with all that each of them needs.

    Raises:
        ConfigError: the size is too small or too large.
    """
    if size not in range(len(must), len(pieces.numbers) + 1):
        raise ConfigError(
            f"size={size} is not possible: {len(must):,} tokens must stay (fewer with any_text=False, if single "
            f"characters are among them), and the tokenizer has {len(pieces.numbers):,}. Pass a size from the one to "
            "the other."
        )
    kept = set(must)
    for number in sorted(pieces.numbers.values(), key=lambda number: (-uses[number], number)):
        if len(kept) == size:
            break
        more = pieces.needed(number) - kept
        if len(kept) + len(more) <= size:
            kept |= more
    return kept


def _numbers_of(tokens: Sequence[str], pieces: Pieces) -> list[int]:
    if unknown := [token for token in tokens if token not in pieces.numbers]:
        named = ", ".join(map(repr, unknown[:NAMED])) + (f" and {len(unknown) - NAMED} more" if unknown[NAMED:] else "")
        raise ConfigError(
            f"The tokenizer has no tokens {named}. Write tokens as its vocabulary does: tokenizer.tokenize(text)."
        )
    return [pieces.numbers[token] for token in tokens]


def _all_needed(pieces: Pieces, numbers: Iterable[int]) -> set[int]:
    return set().union(*map(pieces.needed, numbers))

"""Answers to questions: the best span of a text from logits of its windows, and how right it is.

Takes logits and the places of tokens in the text; gives the characters of the answer. Exact match and F1 are those of
SQuAD's official script: lower case, without punctuation and articles, against the best of several right answers.
Called by the objective and by the evaluation task of question answering.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

ARTICLES = re.compile(r"\b(a|an|the)\b")
PUNCTUATION = str.maketrans("", "", string.punctuation)
N_BEST = 20  # first and last tokens that are paired in each window
MAX_ANSWER_TOKENS = 30


@dataclass(frozen=True)
class Window:
    """One window over a text, `s` tokens wide.

    Attributes:
        start_logits: `(s,)` or longer, of each token being the answer's first; what is beyond `s` is padding.
        end_logits: the same for its last.
        offsets: for each token its characters in the text, begin and end, or `(-1, -1)` if it is not in the text.
        null: the token that means "not answered here".
    """

    start_logits: np.ndarray
    end_logits: np.ndarray
    offsets: Sequence[Sequence[int]]
    null: int


@dataclass(frozen=True)
class Span:
    """Characters `begin` to `end` of a text and the sum of the logits of their first and last token."""

    begin: int
    end: int
    score: float


def best_span(windows: Sequence[Window], n_best: int, max_answer_tokens: int) -> Span | None:
    """Return the span with the largest score in any window; None where no window holds a token of the text.

    In each window the `n_best` best first and last tokens are paired; a pair counts if it runs forwards and is at most
    `max_answer_tokens` long.
    """
    best = None
    for window in windows:
        span = _best_in(window, n_best, max_answer_tokens)
        if span is not None and (best is None or span.score > best.score):
            best = span
    return best


def null_score(windows: Sequence[Window]) -> float:
    """Return the score of "no answer": the smallest of all windows, for it must be absent from each."""
    return min(float(window.start_logits[window.null] + window.end_logits[window.null]) for window in windows)


def answer(
    context: str,
    windows: Sequence[Window],
    *,
    n_best: int = N_BEST,
    max_answer_tokens: int = MAX_ANSWER_TOKENS,
    null_threshold: float | None,
) -> str:
    """Return the answer in `context`, empty for no answer.

    Args:
        context: the text.
        windows: over all of it.
        n_best: first and last tokens that are paired in each window.
        max_answer_tokens: the longest answer.
        null_threshold: "no answer" is given where its score is larger than the best span's by more than this; None
            where every question has an answer.
    """
    span = best_span(windows, n_best, max_answer_tokens)
    if span is None or (null_threshold is not None and null_score(windows) - span.score > null_threshold):
        return ""
    return context[span.begin : span.end]


def answers(
    contexts: Sequence[str],
    windows: Iterable[Window],
    questions: Iterable[int],
    *,
    n_best: int = N_BEST,
    max_answer_tokens: int = MAX_ANSWER_TOKENS,
    null_threshold: float | None,
) -> list[str]:
    """Return the `answer` of each question in its text.

    Args:
        contexts: the text of each question.
        windows: over all of them.
        questions: which question each window belongs to.
        n_best: as for `answer`.
        max_answer_tokens: as for `answer`.
        null_threshold: as for `answer`.
    """
    of_question: list[list[Window]] = [[] for _ in contexts]
    for question, window in zip(questions, windows, strict=True):
        of_question[question].append(window)
    how: Any = {"n_best": n_best, "max_answer_tokens": max_answer_tokens, "null_threshold": null_threshold}
    return [answer(context, its_own, **how) for context, its_own in zip(contexts, of_question, strict=True)]


def normalized(text: str) -> str:
    """Return `text` in lower case without punctuation and articles, with single blanks."""
    return " ".join(ARTICLES.sub(" ", text.lower().translate(PUNCTUATION)).split())


def exact_match(predicted: str, right: str) -> float:
    """Return 1.0 if both are the same when normalized, else 0.0."""
    return float(normalized(predicted) == normalized(right))


def token_f1(predicted: str, right: str) -> float:
    """Return F1 of the words of both when normalized; if either has none, whether both have none."""
    ours, theirs = normalized(predicted).split(), normalized(right).split()
    if not ours or not theirs:
        return float(ours == theirs)
    common = sum((Counter(ours) & Counter(theirs)).values())
    return 2 * common / (len(ours) + len(theirs))


def squad_scores(predicted: Sequence[str], right: Sequence[Sequence[str]]) -> dict[str, float]:
    """Return mean `f1` and `exact_match`, 0 to 1, of one predicted answer and the right ones for each question.

    A question without right answers is answered rightly by the empty text.
    """
    pairs = [
        (text, [each for each in answers if normalized(each)] or [""])
        for text, answers in zip(predicted, right, strict=True)
    ]
    return {
        "f1": sum(max(token_f1(text, each) for each in answers) for text, answers in pairs) / len(pairs),
        "exact_match": sum(max(exact_match(text, each) for each in answers) for text, answers in pairs) / len(pairs),
    }


def _best_in(window: Window, n_best: int, max_answer_tokens: int) -> Span | None:
    context = np.array([place for place, (begin, end) in enumerate(window.offsets) if 0 <= begin < end], dtype=int)
    if not len(context):
        return None
    firsts = context[np.argsort(-window.start_logits[context], kind="stable")[:n_best]]
    lasts = context[np.argsort(-window.end_logits[context], kind="stable")[:n_best]]
    scores = window.start_logits[firsts][:, None] + window.end_logits[lasts][None, :]
    tokens = lasts[None, :] - firsts[:, None] + 1
    scores = np.where((tokens > 0) & (tokens <= max_answer_tokens), scores, -np.inf)
    if not np.isfinite(scores).any():
        return None
    first, last = np.unravel_index(scores.argmax(), scores.shape)
    return Span(window.offsets[firsts[first]][0], window.offsets[lasts[last]][1], float(scores[first, last]))

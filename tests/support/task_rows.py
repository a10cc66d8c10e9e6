"""Rows of a few words for tasks that are about more than one text."""

from __future__ import annotations

import random
from typing import Any

from toys import WORDS, texts


def questions(count: int, answered: bool = True, seed: int = 0) -> dict[str, list[Any]]:
    """Questions of two words on texts of 8 to 16, and the two words that answer them; one in four has no answer."""
    chance = random.Random(seed)
    rows: dict[str, list[Any]] = {"question": [], "context": [], "answers": []}
    for number in range(count):
        words = chance.choices(WORDS, k=chance.randint(8, 16))
        at = chance.randrange(len(words) - 1)
        begin = len("".join(f"{word} " for word in words[:at]))
        found = number % 4 != 3
        rows["question"].append(" ".join(chance.choices(WORDS, k=2)))
        rows["context"].append(" ".join(words))
        rows["answers"].append({"text": [" ".join(words[at : at + 2])] * found, "answer_start": [begin] * found})
    return rows if answered else {name: rows[name] for name in ("question", "context")}


def prompts(count: int, labelled: bool = True, seed: int = 0) -> dict[str, list[Any]]:
    """Prompts with three choices, of which one is right."""
    chance = random.Random(seed)
    choices = texts(3 * count, seed + 1)
    rows: dict[str, list[Any]] = {
        "question": texts(count, seed),
        "choices": [choices[3 * at : 3 * at + 3] for at in range(count)],
        "label": [chance.randrange(3) for _ in range(count)],
    }
    return rows if labelled else {name: rows[name] for name in ("question", "choices")}


def sources(count: int, targeted: bool = True, seed: int = 0) -> dict[str, list[Any]]:
    """Texts and others that are to be written about them."""
    return {"text": texts(count, seed)} | ({"target": texts(count, seed + 1)} if targeted else {})

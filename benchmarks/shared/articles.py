"""Sentences of articles."""

from __future__ import annotations

import re


def first_sentences(text: str, count: int = 1) -> list[str]:
    """Return the first sentences, each up to a full stop, question or exclamation mark that a space follows."""
    return re.split(r"(?<=[.?!])\s", text.strip(), maxsplit=count)[:count]

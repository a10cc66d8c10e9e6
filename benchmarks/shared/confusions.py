"""Words that people confuse, put into sound text.

Takes text, gives text with errors that a tagger of edits should find.
"""

from __future__ import annotations

import random
import re

CONFUSED = (
    ("their", "there", "they're"),
    ("than", "then"),
    ("its", "it's"),
    ("to", "too"),
    ("your", "you're"),
    ("whose", "who's"),
    ("lose", "loose"),
    ("past", "passed"),
    ("effect", "affect"),
    ("whether", "weather"),
    ("led", "lead"),
    ("taken", "took"),
    ("seen", "saw"),
    ("gone", "went"),
    ("come", "came"),
    ("given", "gave"),
    ("known", "knew"),
    ("written", "wrote"),
    ("begun", "began"),
    ("have", "has"),
    ("a", "an"),
)
OTHERS = {word: [other for other in group if other != word] for group in CONFUSED for word in group}


def confused(text: str, seed: int) -> str:
    """Return the text with half of the words in `OTHERS`, drawn with this seed, exchanged for one of the others."""
    draw = random.Random(seed)

    def exchanged(found: re.Match[str]) -> str:
        others = OTHERS.get(found[0])
        return draw.choice(others) if others and draw.random() < 0.5 else found[0]

    return re.sub(r"[A-Za-z']+", exchanged, text)

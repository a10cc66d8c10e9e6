"""Texts for students, written as JSON lines: sentences with confused words, sentences, questions.

Takes the data of `places`; gives `train.jsonl` and `held_out.jsonl` in a folder, the same at every call.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from articles import first_sentences
from confusions import confused
from datasets import Dataset
from once import write_rows
from places import DATA, WIKINEWS

from wid_hf.rows import load_rows

TRAIN, HELD_OUT = "train.jsonl", "held_out.jsonl"
TAGGED, TAGGED_HELD_OUT = 6000, 256
WORDS = 60  # of each text for a tagger
SENTENCES = 32_000
SHORTEST = 4  # words in a sentence: others are datelines and initials
STSB = DATA / "glue" / "stsb"
SQUAD = DATA / "squad"
TAUGHT, ASKED, ASKED_HELD_OUT = 9600, 8000, 600


def confused_texts(folder: Path) -> None:
    """Write beginnings of articles in which half of the words that people confuse are wrong."""
    write_rows(folder / HELD_OUT, _confused(0, TAGGED_HELD_OUT))
    write_rows(folder / TRAIN, _confused(TAGGED_HELD_OUT, TAGGED))


def _confused(first: int, count: int) -> Iterator[dict[str, Any]]:
    for number, text in enumerate(load_rows(str(WIKINEWS))["text"][first : first + count], start=first):
        yield {"text": confused(" ".join(text.split()[:WORDS]), number)}


def sentences(folder: Path) -> None:
    """Write sentences of STS-B's training pairs and the first two of each article; held out are those of its dev."""
    write_rows(folder / HELD_OUT, ({"text": text} for text in _of_pairs("dev")))
    write_rows(folder / TRAIN, ({"text": text} for text in _mixed()))


def _of_pairs(split: str) -> list[str]:
    pairs = load_rows(str(STSB / f"{split}.jsonl"))
    return list(dict.fromkeys(text for column in ("text_a", "text_b") for text in pairs[column]))


def _mixed() -> list[str]:
    pairs = _of_pairs("train")
    articles = load_rows(str(WIKINEWS))["text"]
    first = (sentence for text in articles for sentence in first_sentences(text, 2))
    news = dict.fromkeys(sentence for sentence in first if len(sentence.split()) >= SHORTEST)
    mixed = [*pairs, *islice(news, SENTENCES - len(pairs))]
    random.Random(0).shuffle(mixed)
    return mixed


def questions(folder: Path) -> None:
    """Write questions with answers for a teacher, others without for students, and held-out ones with answers."""
    write_rows(folder / "taught.jsonl", _answered("train", 0, TAUGHT))
    write_rows(folder / TRAIN, map(_asked, _answered("train", TAUGHT, ASKED)))
    write_rows(folder / HELD_OUT, _answered("dev", 0, ASKED_HELD_OUT))


def _answered(split: str, first: int, count: int) -> Iterator[dict[str, Any]]:
    rows: Dataset = load_rows(str(SQUAD / f"{split}.jsonl.gz")).shuffle(seed=0)
    yield from rows.select_columns(["question", "context", "answers"]).select(range(first, first + count))


def _asked(row: dict[str, Any]) -> dict[str, Any]:
    return {"question": row["question"], "context": row["context"]}

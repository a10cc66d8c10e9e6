"""What `python benchmarks/calibration start` measures: students of each teacher, and the texts that they start from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from articles import first_sentences
from places import DATA, WIKINEWS
from subject import Batch, Sizes, Subject, TextSubject
from subjects import ALL_HEADS, DECODER, SHARES, SMALL_GPT2, SMALL_VIT, SUBJECTS, TAGGER, widths

from wid_hf.rows import load_texts

CalibrationTexts = Callable[[Subject], list[Batch]]


@dataclass(frozen=True)
class Case:
    """A teacher with students and calibration texts, all of which go with all.

    Attributes:
        subject: the teacher.
        sizes: the students, by what tables call them.
        texts: what makes batches to calibrate on, by what tables call them.
    """

    subject: Subject
    sizes: Mapping[str, Sizes]
    texts: Mapping[str, CalibrationTexts]


def drawn(*counts: int) -> dict[str, CalibrationTexts]:
    """Return as many texts (or pictures) of the teacher's training set, drawn with seed 0."""
    return {str(count): lambda subject, count=count: subject.calibration(0, count) for count in counts}


def sentences(wikinews: int, stsb: int = 0) -> CalibrationTexts:
    """Return the first sentences of the first Wikinews articles, and the first sentences of STS-B's training pairs."""

    def made(subject: Subject) -> list[Batch]:
        articles = load_texts(str(WIKINEWS))["text"][:wikinews]
        pairs = load_texts(str(DATA / "glue" / "stsb" / "train.jsonl"), column="text_a")["text"][:stsb]
        assert isinstance(subject, TextSubject)
        return subject.calibration_on([*(text for each in articles for text in first_sentences(each)), *pairs], seed=0)

    return made


CASES: dict[str, Case] = {
    "reaction-bert": Case(SUBJECTS["reaction-bert"], widths(256, 512, SHARES | {"1/8": 1 / 8}), drawn(256, 768)),
    "minilm": Case(
        SUBJECTS["minilm"],
        widths(384, 1536, {"1/2": 1 / 2, "1/4": 1 / 4}),
        {
            "256 Wikinews": sentences(256),
            "512 Wikinews": sentences(512),
            "768 Wikinews, 768 STS-B": sentences(768, 768),
        },
    ),
    "tagger": Case(TAGGER, TAGGER.sizes, drawn(256, 512)),
    "small-gpt2": Case(SMALL_GPT2, SMALL_GPT2.sizes, drawn(256)),
    "small-vit": Case(SMALL_VIT, SMALL_VIT.sizes, drawn(256)),
    "smollm2": Case(
        replace(DECODER, calibration_texts=256),
        {
            "hidden size 432": {"hidden_size": 432, "intermediate_size": 1536, **ALL_HEADS},
            "432, FFN 1152": {"hidden_size": 432, "intermediate_size": 1152, **ALL_HEADS},
        },
        drawn(100, 256),
    ),
}

"""The students that `python benchmarks/compressions` makes."""

from __future__ import annotations

from pathlib import Path

import further
import texts
from case import Case
from places import TEACHERS
from pooled import with_first_token

ENCODER = (
    "--train {cache}/sentences/train.jsonl --validation {cache}/sentences/held_out.jsonl --validation-texts 1000 "
    "--hidden-size 192 --intermediate-size 768 --batch-size 32 --set train_sampling_strategy=group_by_length"
)
MIXED = "Sentences of STS-B's training pairs and the first two of each Wikinews article, without labels"


def cls_sentences(cache: Path) -> None:
    """Write sentences, and MiniLM with another pooling."""
    texts.sentences(cache / "sentences")
    with_first_token(TEACHERS / "minilm", cache / "sentences-cls" / "teacher")


CASES = {
    case.name: case
    for case in (
        Case(
            "classifier",
            "{teachers}/reaction-classifier --train {data}/uspto50k/train.jsonl.gz --column text=rxn "
            "--validation {data}/uspto50k/valid.jsonl.gz --validation-texts 1000 --hidden-size 128 "
            "--intermediate-size 256 --steps 1000 --batch-size 16 --set train_sampling_strategy=group_by_length",
            told="Reactions without labels; the classifier has probably seen some of those held out.",
        ),
        Case(
            "tagger",
            "{teachers}/tagger --train {cache}/tagger/train.jsonl --validation {cache}/tagger/held_out.jsonl "
            "--validation-texts 256 --hidden-size 384 --override hidden_dim=1536 --steps 300 --batch-size 16",
            make=lambda cache: texts.confused_texts(cache / "tagger"),
            told="Beginnings of Wikinews articles, 60 words each, with half of the words that people confuse (their, "
            "there; its, it's) exchanged. `agreement on rarer classes` is the share of the teacher's edits that a "
            "student makes, too.",
        ),
        Case(
            "sentences",
            f"{{teachers}}/minilm {ENCODER} --steps 1000",
            make=lambda cache: texts.sentences(cache / "sentences"),
            further=further.of_sentences,
            told=f"{MIXED}.",
        ),
        Case(
            "sentences-cls",
            f"{{cache}}/sentences-cls/teacher {ENCODER} --steps 300",
            make=cls_sentences,
            further=further.of_sentences,
            told=f"{MIXED}. The teacher's vectors are those of its first token, for which it was not trained.",
        ),
    )
}

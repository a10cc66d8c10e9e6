"""What is compared: teachers, the sizes that students may have, and what was measured elsewhere at these sizes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from subject import TextSubject
from subjects import DECODER, SUBJECTS

ISSUE, DESIGN = "issue 22", "../shared/design.md, section 3"


@dataclass(frozen=True)
class Quoted:
    """A student that was measured elsewhere.

    Attributes:
        method: what made it.
        parameters: in all, as the source writes them.
        figure: the contest's, as the source writes it.
        source: where it stands.
    """

    method: str
    parameters: str
    figure: str
    source: str


@dataclass(frozen=True)
class Contest:
    """A teacher whose students are compared at several sizes, none of them trained.

    Attributes:
        subject: the teacher with its data.
        figure: which of the subject's figures the quoted ones are.
        targets: most parameters, by what tables call them.
        quoted: what was measured elsewhere at about that size.
        of_corpus: targets that are tried with the tokens of the training texts alone, too.
    """

    subject: TextSubject
    figure: str
    targets: Mapping[str, int | str]
    quoted: Mapping[str, tuple[Quoted, ...]] = field(default_factory=dict)
    of_corpus: tuple[str, ...] = ()


MINILM = Contest(
    SUBJECTS["minilm"],
    "Spearman",
    {"20 M": 20_000_000, "15 M": 15_000_000, "10 M": 10_000_000, "5 M": 5_000_000},
    {
        "20 M": (
            Quoted("5 of 6 layers", "20.9 M", "82.4", ISSUE),
            Quoted("4 of 6 layers, best choice", "19.2 M", "81.0", DESIGN),
        ),
        "15 M": (Quoted("width alone, 288/1152", "15.0 M", "81.1", ISSUE),),
        "10 M": (
            Quoted("width alone, 192/768", "8.7 M", "78.9", ISSUE),
            Quoted("low rank, embedding rank 160", "8.6 M", "76.4", DESIGN),
            Quoted("Torch-Pruning", "8.6 M", "70.2", DESIGN),
            Quoted("model2vec", "11.3 M", "65.9", DESIGN),
        ),
    },
    of_corpus=("5 M",),
)
REACTION_BERT = Contest(
    SUBJECTS["reaction-bert"],
    "accuracy",
    {share: share for share in ("75%", "50%", "25%", "10%")},
    {
        "75%": (Quoted("9 of 12 layers, greedy", "5.09 M", "94.4 %", ISSUE),),
        "50%": (
            Quoted("6 of 12 layers, greedy", "3.51 M", "83.2 %", DESIGN),
            Quoted("width alone, 184/368", "3.51 M", "94.9 %", ISSUE),
            Quoted("low rank", "3.50 M", "92.8 %", DESIGN),
        ),
        "25%": (
            Quoted("width alone, 128/256", "1.75 M", "92.7 %", ISSUE),
            Quoted("low rank", "1.71 M", "71.6 %", DESIGN),
            Quoted("Torch-Pruning", "1.82 M", "32 %", DESIGN),
        ),
        "10%": (Quoted("width alone", "0.48 M", "79.1 %", ISSUE),),
    },
)
SMOLLM2 = Contest(
    replace(DECODER, calibration_texts=256),
    "perplexity",
    {share: share for share in ("90%", "80%", "70%")},
    {
        "90%": (Quoted("3 of 30 layers out", "123.9 M", "40.2", ISSUE),),
        "80%": (Quoted("7 of 30 layers out", "109.7 M", "68.2", ISSUE),),
        "70%": (Quoted("width alone, hidden size 432", "100.9 M", "79.6", ISSUE),),
    },
)
CONTESTS = {contest.subject.name: contest for contest in (MINILM, REACTION_BERT, SMOLLM2)}

"""The teachers that are measured, with their students' sizes and their data."""

from __future__ import annotations

from classifiers import Classifier
from decoders import Decoder
from masked import Masked
from places import DATA, TEACHERS, WIKINEWS
from sentences import Sentences
from subject import TextSubject
from taggers import Tagger

SHARES = {"3/4": 3 / 4, "1/2": 1 / 2, "1/4": 1 / 4}


def widths(hidden: int, intermediate: int, shares: dict[str, float] = SHARES) -> dict[str, dict[str, int]]:
    """Return sizes of students with these shares of the teacher's hidden and intermediate size."""
    return {
        name: {"hidden_size": round(hidden * share), "intermediate_size": round(intermediate * share)}
        for name, share in shares.items()
    }


SUBJECTS: dict[str, TextSubject] = {
    "reaction-bert": Masked(
        "reaction-bert",
        TEACHERS / "reaction-bert",
        widths(256, 512),
        DATA / "uspto50k" / "train.jsonl.gz",
        DATA / "uspto50k" / "valid.jsonl.gz",
        calibration_texts=256,
        scored_texts=512,
        columns=("rxn",),
        max_length=128,
    ),
    "minilm": Sentences(
        "minilm",
        TEACHERS / "minilm",
        widths(384, 1536),
        DATA / "glue" / "stsb" / "train.jsonl",
        DATA / "glue" / "stsb" / "test.jsonl",
        calibration_texts=512,
        scored_texts=1379,
        columns=("text_a", "text_b"),
        max_length=64,
        validation=DATA / "glue" / "stsb" / "dev.jsonl",
    ),
}

# 3/4 of 9 heads, or of a head of 64 whose halves rotary positions tie to their places, is no whole number: either all
# heads stay or a third of them goes.
ALL_HEADS = {"num_attention_heads": 9, "num_key_value_heads": 3, "head_dim": 64}
DECODER = Decoder(
    "smollm2",
    TEACHERS / "smollm2",
    {
        "3/4, all heads": {"hidden_size": 432, "intermediate_size": 1152, **ALL_HEADS},
        "2/3, 6 heads": {"hidden_size": 384, "intermediate_size": 1024, "head_strategy": "head"},
    },
    WIKINEWS,
    WIKINEWS,
    calibration_texts=64,
    scored_texts=64,
    columns=("text",),
    max_length=128,
)
TAGGER = Tagger(
    "tagger",
    TEACHERS / "tagger",
    {"1/2": {"hidden_size": 384, "overrides": {"hidden_dim": 1536}}},
    WIKINEWS,
    WIKINEWS,
    calibration_texts=512,
    scored_texts=128,
    columns=("text",),
    max_length=128,
)
SMALL_GPT2 = Decoder(
    "small-gpt2",
    TEACHERS / "small-gpt2",
    {name: {"hidden_size": round(128 * share)} for name, share in SHARES.items()},  # the FFN is four times as wide
    WIKINEWS,
    WIKINEWS,
    calibration_texts=256,
    scored_texts=256,
    columns=("text",),
    max_length=128,
)
SMALL_VIT = Classifier(
    "small-vit",
    TEACHERS / "small-vit",
    widths(128, 512),
    DATA / "images" / "cifar10" / "train.jsonl.gz",
    DATA / "images" / "cifar10" / "test.jsonl.gz",
    calibration_texts=256,
    scored_texts=2000,
)

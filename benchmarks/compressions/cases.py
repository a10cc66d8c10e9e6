"""The students that `python benchmarks/compressions` makes."""

from __future__ import annotations

from pathlib import Path

import further
import media
import texts
from case import Case
from fine_tuned_teachers import ANSWERS, PARTS_OF_SPEECH
from places import DATA, TEACHERS
from pooled import with_first_token

ENCODER = (
    "--train {cache}/sentences/train.jsonl --validation {cache}/sentences/held_out.jsonl --validation-texts 1000 "
    "--hidden-size 192 --intermediate-size 768 --batch-size 32 --set train_sampling_strategy=group_by_length"
)
ANSWERER = (
    "{cache}/squad/teacher --train {cache}/squad/train.jsonl --validation {cache}/squad/held_out.jsonl "
    "--validation-texts 600 --max-length 192 --steps 500 --batch-size 16"
)
ASKED = (
    "8,000 questions of SQuAD with their texts, without answers; held out are 600 of its dev with answers. The teacher "
    "is MiniLM, fine-tuned for 400 steps of 24 on 9,600 other questions."
)
UD = DATA / "pos" / "ud_ewt"
MIXED = "Sentences of STS-B's training pairs and the first two of each Wikinews article, without labels"


def cls_sentences(cache: Path) -> None:
    """Write sentences, and MiniLM with another pooling."""
    texts.sentences(cache / "sentences")
    with_first_token(TEACHERS / "minilm", cache / "sentences-cls" / "teacher")


def answerer(cache: Path) -> None:
    """Write questions, and train MiniLM to answer some of them."""
    texts.questions(cache / "squad")
    ANSWERS.train(TEACHERS / "minilm", cache / "squad" / "taught.jsonl", cache / "squad" / "teacher")


def parts_of_speech(cache: Path) -> None:
    """Train the tagger to tell parts of speech."""
    PARTS_OF_SPEECH.train(TEACHERS / "tagger", UD / "train.jsonl.gz", cache / "parts-of-speech" / "teacher")


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
            "parts-of-speech",
            "{cache}/parts-of-speech/teacher --train {data}/pos/ud_ewt/train.jsonl.gz "
            "--validation {data}/pos/ud_ewt/test.jsonl.gz --validation-texts 2077 --max-length 96 "
            "--hidden-size 384 --override hidden_dim=1536 --steps 300 --batch-size 16",
            make=parts_of_speech,
            told="Words of UD English EWT with their parts of speech, the test split held out. The teacher is the "
            "tagger, fine-tuned for 300 steps of 16 on the training split; the student learns from labels and teacher.",
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
        Case(
            "squad-three-quarters", f"{ANSWERER} --hidden-size 288 --intermediate-size 1152", make=answerer, told=ASKED
        ),
        Case("squad-half", f"{ANSWERER} --hidden-size 192 --intermediate-size 768", make=answerer, told=ASKED),
        Case(
            "smollm2",
            "{teachers}/smollm2 --train {data}/wikinews/wikinews_en_clean.jsonl.gz --validation-texts 64 "
            "--hidden-size 432 --intermediate-size 1152 --num-attention-heads 9 --num-key-value-heads 3 --head-dim 64 "
            "--steps 500 --batch-size 4",
            further=further.of_decoder,
            told="Wikinews, 128 tokens of each article.",
        ),
        Case(
            "whisper",
            "{teachers}/whisper --train {cache}/whisper/train --validation {cache}/whisper/test "
            "--validation-split train --override encoder_ffn_dim=1024 --override decoder_ffn_dim=1024 "
            "--steps 100 --batch-size 4",
            make=lambda cache: media.digits(cache / "whisper"),
            further=further.of_digits,
            told="Strings of five spoken digits of FSDD at 8 kHz: 200 without transcripts, for which the teacher "
            "writes them, and 60 held out with them, as digits. The "
            "word error rate counts digits that are written as words, or without blanks, as errors.",
        ),
        Case(
            "vit",
            "{teachers}/small-vit --train {cache}/vit/pictures --validation {cache}/vit/pictures --validation-split "
            "test --validation-texts 2000 --hidden-size 64 --intermediate-size 256 --steps 300 --batch-size 32",
            make=lambda cache: media.pictures(cache / "vit" / "pictures"),
            told="Folders of CIFAR-10, one for each class: 10,000 pictures with labels, and 2,000 held out.",
        ),
    )
}

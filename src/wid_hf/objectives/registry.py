"""Which objective a teacher has: found from its class, or named by the user."""

from __future__ import annotations

import inspect

from transformers import PreTrainedModel

from ..errors import ConfigError, TeacherError
from ..inputs import READABLE
from .audio_classification import AudioClassification
from .causal_lm import CausalLM
from .ctc import CTC
from .features import Features
from .image_classification import ImageClassification
from .masked_lm import MaskedLM
from .multiple_choice import MultipleChoice
from .objective import Objective
from .question_answering import QuestionAnswering
from .sentence_vectors import SentenceVectors
from .seq2seq import Seq2Seq
from .sequence_classification import SequenceClassification
from .speech_seq2seq import SpeechSeq2Seq
from .token_classification import TokenClassification

AUTO = "auto"
OBJECTIVES: dict[str, type[Objective]] = {
    kind.name: kind
    for kind in (
        MaskedLM,
        SequenceClassification,
        TokenClassification,
        QuestionAnswering,
        MultipleChoice,
        Seq2Seq,
        SpeechSeq2Seq,
        CausalLM,
        ImageClassification,
        AudioClassification,
        CTC,
        SentenceVectors,
        Features,
    )
}
INSTEAD = "Use get_wid_model and WidTrainer with your own data collator for it."


def refuse_unknown_task(task: str) -> None:
    """Raise ConfigError if `task` is neither "auto" nor the name of an objective."""
    if task not in {AUTO, *OBJECTIVES}:
        raise ConfigError(f"task={task!r} is unknown. Legal: {', '.join([AUTO, *OBJECTIVES])}.")


def may_be_headless(task: str) -> bool:
    """Return whether `task` may be that of a model without a head."""
    return task in {AUTO, SentenceVectors.name, Features.name}


def find_objective(teacher: PreTrainedModel, task: str = AUTO) -> type[Objective]:
    """Return the objective of `teacher`.

    Args:
        teacher: the model.
        task: name of an objective, or "auto" for the one that fits the teacher's class.

    Raises:
        ConfigError: `task` is unknown.
        TeacherError: no objective fits the teacher, or `task` does not.
    """
    refuse_unknown_task(task)
    _refuse_unsupported(teacher)
    name = type(teacher).__name__
    fitting = (kind for kind in OBJECTIVES.values() if kind.fits(teacher))  # the first ones look at the class alone
    if task == AUTO:
        found = next(fitting, None)
        if found is None:
            raise TeacherError(_why_none(teacher))
        return found
    if not OBJECTIVES[task].fits(teacher):
        legal = " or ".join(f"task={kind.name}" for kind in fitting) or "none of the others"
        raise TeacherError(f"task={task} is for {OBJECTIVES[task].title}, and {name} is none of them. It fits {legal}.")
    return OBJECTIVES[task]


def _why_none(teacher: PreTrainedModel) -> str:
    """Return why no objective fits, and what to do instead."""
    name = type(teacher).__name__
    if teacher.config.is_encoder_decoder and teacher.base_model is teacher:
        return (
            f"{name} is an encoder-decoder without a head, so nothing that it writes can be compared. Save it with its "
            "head (...ForConditionalGeneration), or compress its encoder alone: "
            "model.get_encoder().save_pretrained(folder)."
        )
    titles = ", ".join(kind.title for kind in OBJECTIVES.values())
    return f"compress trains {titles}; {name} is none of these. {INSTEAD}"


def _refuse_unsupported(teacher: PreTrainedModel) -> None:
    """Raise TeacherError for a kind of model that no objective is for, with what to do instead."""
    name, config = type(teacher).__name__, teacher.config
    taken = inspect.signature(teacher.forward).parameters
    if teacher.main_input_name not in READABLE and "input_ids" not in taken:
        kinds = "texts, images or sounds"
        raise TeacherError(f"compress trains models of {kinds}, and {name} takes {teacher.main_input_name}. {INSTEAD}")
    read = sorted(READABLE.keys() & taken.keys())
    if len(read) > 1 and teacher.base_model is teacher and not teacher.can_generate():
        raise TeacherError(
            f"{name} takes {' and '.join(read)} together, which compress does not. Compress the model of one of them "
            f"alone, or use get_wid_model and WidTrainer with your own data collator."
        )
    reads_forward = getattr(config, "is_decoder", False) or getattr(config, "causal", False)
    if reads_forward and not teacher.can_generate():
        raise TeacherError(
            f"This {name} reads from left to right (is_decoder or causal in its config) and has no head that predicts "
            f"the next token. {INSTEAD}"
        )

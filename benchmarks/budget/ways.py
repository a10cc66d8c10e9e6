"""Ways to a student of so many parameters: width alone, depth alone, and the best shape that a search finds.

Takes a teacher, a target and calibration batches; gives a `Chosen`. What the library offers for budgets is called here
and nowhere else in this folder.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from subject import Batch, TextSubject
from transformers import PreTrainedModel

from wid_hf import ConfigError, WidConfig
from wid_hf.budget import Target, propose, search
from wid_hf.config import COUNT
from wid_hf.hub.model_size import model_size
from wid_hf.planning.sizes.config_names import stated
from wid_hf.planning.student_plan import planned_teacher
from wid_hf.rows import load_texts
from wid_hf.vocabulary import kept_tokens, smaller_tokenizer, with_fewer_tokens


@dataclass(frozen=True)
class Chosen:
    """A student to make.

    Attributes:
        config: its sizes.
        told: what a table says of them, or why it was chosen.
    """

    config: WidConfig
    told: str


Way = Callable[[PreTrainedModel, Target, Sequence[Batch], float], Chosen]


def width_alone(teacher: PreTrainedModel, target: Target, batches: Sequence[Batch], seconds: float) -> Chosen:
    """All layers, each width smaller by one share."""
    front = propose(teacher, target, layers=[stated(teacher.config, COUNT)])
    shape = front.planned_guess().shape
    return Chosen(front.space.config(shape), _words(shape))


def depth_alone(teacher: PreTrainedModel, target: Target, batches: Sequence[Batch], seconds: float) -> Chosen:
    """As many layers as may stay, chosen greedily; those that stay are as they were."""
    return Chosen(WidConfig(**{COUNT: _layers(teacher, target)}, init="identity", selection="variance"), "no fit")


def depth_calibrated(teacher: PreTrainedModel, target: Target, batches: Sequence[Batch], seconds: float) -> Chosen:
    """As many layers as may stay, chosen greedily and fitted to what the whole teacher computes."""
    return Chosen(WidConfig(**{COUNT: _layers(teacher, target)}), "fitted")


def searched(teacher: PreTrainedModel, target: Target, batches: Sequence[Batch], seconds: float) -> Chosen:
    """The best of the shapes that fill the target, by their calibrated starts."""
    result = search(propose(teacher, target), batches, seconds=seconds)
    return Chosen(result.config, f"{_words(result.winner)}; {result.time_in_words}")


WAYS: dict[str, Way] = {
    "width alone": width_alone,
    "depth alone": depth_alone,
    "depth alone, calibrated": depth_calibrated,
    "search": searched,
}


def with_tokens_of_training_texts(subject: TextSubject, folder: Path) -> Path:
    """Save the teacher of a subject, with its tokenizer, without the tokens that its training texts lack."""
    columns = [load_texts(str(subject.train), column=column)["text"] for column in subject.columns]
    kept = kept_tokens(subject.tokenizer, texts=[text for texts in columns for text in texts])
    with_fewer_tokens(subject.teacher(), kept).save_pretrained(folder)
    smaller_tokenizer(subject.tokenizer, kept).save_pretrained(folder)
    return folder


def _layers(teacher: PreTrainedModel, target: Target) -> int:
    """Return the most layers with which the target is kept.

    Raises:
        ConfigError: there is no such number.
    """
    most = target.limits({"params": float(model_size(teacher).total)})["params"]
    for count in range(stated(teacher.config, COUNT) - 1, 0, -1):
        if model_size(planned_teacher(teacher, WidConfig(**{COUNT: count}))).total <= most:
            return count
    raise ConfigError(f"One layer alone, with the embeddings, has more than {most:,.0f} parameters.")


def _words(shape: dict[str, int]) -> str:
    return ", ".join(f"{name} {size}" for name, size in shape.items())

"""Taggers of tokens: a student learns the teacher's scores of every token, and tags if there are some."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from transformers import DataCollatorForTokenClassification, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES

from ..adapter.tuner import WidModel
from ..arithmetic import in_float64
from ..errors import TeacherError
from ..inputs import Batch, Columns
from ..rows.roles import TAGS, WORDS, Role
from ..scores.figures import accuracy, macro_f1
from ..training.labelled_positions import NO_LABEL
from ..training.losses.counting import mean_of
from .divergences import softmax_divergence
from .labels import Labels, names_of
from .logits import logits_of
from .objective import Figures, Objective


class TokenClassification(Objective):
    """Give each token scores of classes that exclude each other; tokens of padding do not count.

    Rows are texts, or lists of words, perhaps with a tag for each word. A word's first token has its tag; the loss of
    the model leaves its other tokens out.
    """

    name = "token-classification"
    title = "taggers of tokens"
    one = "a tagger of tokens"
    takes_labels = True
    figures_need_eval = True

    @classmethod
    def fits(cls, teacher: PreTrainedModel) -> bool:
        """Return whether the class is one of transformers' token classifiers."""
        return type(teacher).__name__ in MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES.values()

    @property
    def roles(self) -> tuple[Role, ...]:
        """A text or a list of words."""
        return (WORDS,)

    @property
    def target(self) -> Role:
        """A tag for each word."""
        return TAGS

    def why_unusable(self, row: Mapping[str, Any]) -> str | None:
        """Return a reason if a row does not have one tag for each word."""
        if TAGS.name not in row:
            return None
        words, tags = row[WORDS.name], row[TAGS.name]
        return None if isinstance(words, list) and len(words) == len(tags) else "there is not one tag for each word"

    @property
    def collator(self) -> Callable[[list[dict[str, Any]]], Any]:
        """Pads, tags too."""
        return DataCollatorForTokenClassification(self.inputs.processor)

    def features(self, rows: Dataset, max_length: int) -> Dataset:
        """Return tokens and, if there are some, tags.

        Raises:
            DataError: nothing can be read, or a tag is none of the teacher's.
            TeacherError: there are tags, and the tokenizer does not say which token belongs to which word.
        """
        if TAGS.name not in (rows.column_names or ()):
            return self.inputs.features(rows, max_length)
        if not self.inputs.processor.is_fast:
            raise TeacherError(
                f"Tags need the word of each token, which a {type(self.inputs.processor).__name__} does not give. Save "
                "a fast tokenizer (tokenizer.json) beside the model."
            )
        labels = Labels(self.teacher.config, names_of(rows, TAGS.name))

        def tagged(columns: Columns, made: Any) -> dict[str, list[Any]]:
            numbers = [[labels.number(tag) for tag in tags] for tags in columns[TAGS.name]]
            return {"labels": [on_first_tokens(made.word_ids(row), each) for row, each in enumerate(numbers)]}

        return self.inputs.features(rows, max_length, tagged)

    def wanted(self, batches: Sequence[Batch]) -> Tensor:
        """Return the teacher's scores `(tokens, classes)`."""
        return token_scores(self.teacher, batches)

    def score(self, model: Any, batches: Sequence[Batch], wanted: Tensor | None) -> Figures:
        """Return figures on tags, if there are some, the agreement with the teacher and the divergence from it.

        Agreement is over all tokens, with the teacher's most probable class; the divergence is in nats. Where most
        tokens have one class, agreement on the others says more: it is of the tokens to which the teacher gives another
        class than its most frequent one; 1 if there are none. On tags: accuracy, and mean F1 of the classes.
        """
        found = token_scores(model, batches)
        mine = found.argmax(-1)
        own = _on_tags(mine, batches)
        if wanted is None:
            return own
        classes = wanted.argmax(-1)
        same = in_float64(classes == mine)
        others = same[classes != classes.mode().values]
        return own | {
            "agreement": float(same.mean()),
            "agreement_on_rarer_classes": float(others.mean()) if len(others) else 1.0,
            "divergence": float(softmax_divergence(found, wanted).mean()),
        }

    def loss(self, wid: WidModel, student: Any, teacher: Any, inputs: Mapping[str, Any]) -> Tensor:
        """Return the mean divergence over tokens that are not padding."""
        attended = inputs["attention_mask"].bool()
        return mean_of(softmax_divergence(student.logits[attended], teacher.logits[attended]))


def on_first_tokens(words: Sequence[int | None], tags: Sequence[int]) -> list[int]:
    """Return the tag of each token: of the first one of each word, nothing for all others.

    Args:
        words: the word of each token, None for special tokens.
        tags: of each word.
    """
    before = [None, *words[:-1]]
    return [NO_LABEL if word is None or word == last else tags[word] for word, last in zip(words, before, strict=True)]


def token_scores(model: Any, batches: Sequence[Batch]) -> Tensor:
    """Return the scores `(tokens, classes)` of all tokens that are not padding, float32 on the CPU."""
    scored = zip(logits_of(model, batches), batches, strict=True)
    return torch.cat([logits[batch["attention_mask"].bool()] for logits, batch in scored])


def _on_tags(mine: Tensor, batches: Sequence[Batch]) -> Figures:
    """Return figures of the classes `(tokens,)` of all tokens that are not padding, on those that have a tag."""
    if not any("labels" in batch for batch in batches):
        return {}
    right = torch.cat([batch["labels"][batch["attention_mask"].bool()] for batch in batches])
    tagged = right != NO_LABEL
    pair = mine[tagged].numpy(), right[tagged].numpy()
    return {"accuracy": accuracy(*pair), "macro_f1": macro_f1(*pair)}

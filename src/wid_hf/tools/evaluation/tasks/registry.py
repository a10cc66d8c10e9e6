"""All tasks, by name: data, figures and head, and nothing else. A new task is one more entry here.

Local files have the keys `text`, or `text_a` and `text_b`, and `label`; the Hub has its own names.
"""

from __future__ import annotations

from collections.abc import Iterable

from ....errors import ConfigError
from .classification import Classification
from .fine_tuning import FineTuned
from .question_answering import QuestionAnswering
from .source import Origin, Source
from .task import Scored
from .untrained import MaskedTokens, NextTokens, Similarity

HUB_GLUE = "nyu-mll/glue"
GLUE_FILES = {"train": "train", "dev": "dev", "test": "test"}
GLUE_HUB = {"train": "train", "dev": "validation"}  # the labels of its test splits are secret
MNLI_FILES = {"train": "train", "dev": "dev", "mismatched": "dev_mismatched"}
MNLI_HUB = {"train": "train", "dev": "validation_matched", "mismatched": "validation_mismatched"}


def _glue(name: str, *texts: str, files: dict[str, str] = GLUE_FILES, hub: dict[str, str] = GLUE_HUB) -> Source:
    ours = ("text",) if len(texts) == 1 else ("text_a", "text_b")
    columns = [*ours, "label"]
    return Source(
        folder=f"glue/{name}",
        files=Origin(files, dict(zip(columns, columns, strict=True))),
        hub=(HUB_GLUE, name),
        hub_names=Origin(hub, dict(zip(columns, [*texts, "label"], strict=True))),
    )


STSB = _glue("stsb", "sentence1", "sentence2")
REACTIONS = Source(
    "uspto50k", Origin({"train": "train", "dev": "valid", "test": "test"}, {"text": "rxn", "label": "class"})
)

AnyTask = FineTuned | Scored
ALL: tuple[AnyTask, ...] = (
    Classification("cola", "CoLA", ("matthews",), 128, _glue("cola", "sentence")),
    Classification("sst2", "SST-2", ("accuracy",), 128, _glue("sst2", "sentence")),
    Classification("mrpc", "MRPC", ("f1", "accuracy"), 128, _glue("mrpc", "sentence1", "sentence2")),
    Classification("stsb", "STS-B", ("spearman", "pearson"), 128, STSB, classes=()),
    Classification("qqp", "QQP", ("f1", "accuracy"), 128, _glue("qqp", "question1", "question2")),
    Classification(
        "mnli",
        "MNLI",
        ("accuracy",),
        128,
        _glue("mnli", "premise", "hypothesis", files=MNLI_FILES, hub=MNLI_HUB),
        classes=(0, 1, 2),
    ),
    Classification("qnli", "QNLI", ("accuracy",), 128, _glue("qnli", "question", "sentence")),
    Classification("rte", "RTE", ("accuracy",), 128, _glue("rte", "sentence1", "sentence2")),
    Classification("wnli", "WNLI", ("accuracy",), 128, _glue("wnli", "sentence1", "sentence2")),
    QuestionAnswering(
        "squad",
        "SQuAD v1.1",
        ("f1", "exact_match"),
        384,
        {"train": "train-v1.1.json", "dev": "dev-v1.1.json"},
        "rajpurkar/squad",
    ),
    QuestionAnswering(
        "squad_v2",
        "SQuAD v2",
        ("f1", "exact_match"),
        384,
        {"train": "train-v2.0.json", "dev": "dev-v2.0.json"},
        "rajpurkar/squad_v2",
        may_lack_answers=True,
    ),
    Classification("reactions", "reaction classes", ("accuracy",), 256, REACTIONS, classes=tuple(range(1, 11))),
    Similarity("stsb-zero-shot", "STS-B, zero-shot", ("spearman", "pearson"), 128, STSB),
    MaskedTokens("masked-lm", "masked LM", ("accuracy", "loss"), 128),
    NextTokens("perplexity", "perplexity", ("perplexity", "loss"), 128),
)
TASKS: dict[str, AnyTask] = {task.name: task for task in ALL}


def find_tasks(names: Iterable[str]) -> list[AnyTask]:
    """Return the tasks of these names, each once.

    Raises:
        ConfigError: a name is unknown, or there is none.
    """
    names = list(dict.fromkeys(names))
    unknown = [name for name in names if name not in TASKS]
    if unknown or not names:
        given = f"there is no task {', '.join(map(repr, unknown))}" if unknown else "no task was named"
        raise ConfigError(f"{given}. Known: {', '.join(TASKS)}.")
    return [TASKS[name] for name in names]

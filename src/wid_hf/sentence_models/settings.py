"""How a sentence-transformers model reads texts, and by which similarity its vectors are compared.

Takes its settings files; gives texts as the model reads them. Called by the reader of pipelines; used by the objective.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from ..errors import TeacherError
from .files import ModelFiles
from .similarity import SIMILARITIES

MODEL = "config_sentence_transformers.json"
# Of the transformer; each of the others is the name of the same file beside old models.
TRANSFORMER = tuple(
    f"sentence_{kind}_config.json"
    for kind in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)


@dataclass(frozen=True)
class SentenceSettings:
    """Settings of a sentence-transformers model.

    Attributes:
        files: the settings files by name, as they are.
        max_length: texts are cut after so many tokens, if the model says so; otherwise its tokenizer does.
        lower_case: whether texts are lower-cased before they are tokenized.
        prompt: what stands before each text that comes without another prompt.
        similarity: a key of `SIMILARITIES`.
    """

    files: Mapping[str, Mapping[str, Any]]
    max_length: int | None = None
    lower_case: bool = False
    prompt: str = ""
    similarity: str = "cosine"

    @classmethod
    def read(cls, files: ModelFiles) -> SentenceSettings:
        """Return the settings beside a model.

        Raises:
            TeacherError: the default prompt is not among the prompts, or the similarity is unknown.
        """
        model = files.settings(MODEL)
        name, transformer = next(
            ((name, found) for name in TRANSFORMER if (found := files.settings(name))), (TRANSFORMER[0], {})
        )
        prompts, default = model.get("prompts") or {}, model.get("default_prompt_name")
        if default is not None and default not in prompts:
            raise TeacherError(
                f"default_prompt_name={default!r} in {MODEL} of {files.model} is not among its prompts: "
                f"{', '.join(prompts) or 'it has none'}. Correct the file."
            )
        similarity = model.get("similarity_fn_name") or "cosine"
        if similarity not in SIMILARITIES:
            raise TeacherError(
                f"similarity_fn_name={similarity!r} in {MODEL} of {files.model} is unknown. Legal: "
                f"{', '.join(SIMILARITIES)}. Correct the file."
            )
        return cls(
            {file: content for file, content in ((MODEL, model), (name, transformer)) if content},
            transformer.get("max_seq_length"),
            bool(transformer.get("do_lower_case", False)),
            prompts.get(default) or "",
            similarity,
        )

    def as_read(self, text: str) -> str:
        """Return a text as the tokenizer gets it: behind the prompt, in lower case if the model wants that."""
        text = self.prompt + text
        return text.lower() if self.lower_case else text

    def prompt_length(self, tokenizer: PreTrainedTokenizerBase) -> int:
        """Return how many tokens stand before the text: those of the prompt, and special ones before it."""
        if not self.prompt:
            return 0
        ids = tokenizer(self.as_read(""))["input_ids"]
        return len(ids) - (ids[-1] in tokenizer.all_special_ids)

"""A `Trainer` that generates in evaluations if its arguments are `Seq2SeqTrainingArguments`.

Takes what `Trainer` takes, so that one trainer serves both; `StudentTrainer` builds on it.
"""

from __future__ import annotations

from typing import Any

from peft import PeftModel
from torch import Tensor, nn
from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments, Trainer
from transformers.trainer_utils import PredictionOutput


class GeneratingTrainer(Seq2SeqTrainer):
    """`Seq2SeqTrainer` with `Seq2SeqTrainingArguments` (`predict_with_generate`, ...), `Trainer` with all others."""

    def __init__(self, *given: Any, **kwargs: Any) -> None:
        # Seq2SeqTrainer.__init__ lacks optimizer_cls_and_kwargs, and uses fields that only its own arguments have.
        Trainer.__init__(self, *given, **kwargs)
        self._take_generation_config(self.model)

    def call_model_init(self, trial: Any = None) -> nn.Module:
        """Return a new model by `model_init`, with the generation config of the arguments."""
        model = super().call_model_init(trial)
        self._take_generation_config(model)
        return model

    def evaluate(
        self,
        eval_dataset: Any = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
        **gen_kwargs: Any,
    ) -> dict[str, float]:
        """Evaluate like the trainer whose arguments these are."""
        if self._is_seq2seq:
            return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix, **gen_kwargs)
        return super(Seq2SeqTrainer, self).evaluate(eval_dataset, ignore_keys, metric_key_prefix, **gen_kwargs)

    def predict(
        self,
        test_dataset: Any,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "test",
        **gen_kwargs: Any,
    ) -> PredictionOutput:
        """Predict like the trainer whose arguments these are."""
        if self._is_seq2seq:
            return super().predict(test_dataset, ignore_keys, metric_key_prefix, **gen_kwargs)
        return super(Seq2SeqTrainer, self).predict(test_dataset, ignore_keys, metric_key_prefix, **gen_kwargs)

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
        **gen_kwargs: Any,
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Evaluate one batch like the trainer whose arguments these are."""
        if self._is_seq2seq:
            return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys, **gen_kwargs)
        return super(Seq2SeqTrainer, self).prediction_step(model, inputs, prediction_loss_only, ignore_keys)

    @property
    def _is_seq2seq(self) -> bool:
        return isinstance(self.args, Seq2SeqTrainingArguments)

    def _take_generation_config(self, model: nn.Module) -> None:
        """Give the stock model inside, which generates, the generation config of the arguments."""
        if self._is_seq2seq and self.args.generation_config is not None:
            stock: Any = model.get_base_model() if isinstance(model, PeftModel) else model
            stock.generation_config = self.load_generation_config(self.args.generation_config)

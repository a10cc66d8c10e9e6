"""A student trains without dropout where that is asked for; the model is as it was afterwards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from toys import texts, word_tokenizer
from training_runs import HALF, arguments
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForMaskedLM,
    DataCollatorForLanguageModeling,
    PreTrainedModel,
    Wav2Vec2Config,
    Wav2Vec2ForCTC,
)

from wid_hf import WidTrainer, get_wid_model
from wid_hf.inputs import tokenize
from wid_hf.training.dropout import without_dropout

BERT: dict[str, Any] = {
    "vocab_size": 15, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
    "max_position_embeddings": 32, "hidden_dropout_prob": 0.5, "attention_probs_dropout_prob": 0.5,
}  # fmt: skip
BART = BartConfig(
    vocab_size=15, d_model=16, encoder_layers=3, decoder_layers=3, encoder_attention_heads=2, decoder_attention_heads=2,
    encoder_ffn_dim=32, decoder_ffn_dim=32, dropout=0.5, attention_dropout=0.5, encoder_layerdrop=0.5,
    decoder_layerdrop=0.5, pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=2,
    forced_eos_token_id=2,
)  # fmt: skip
WAV = Wav2Vec2Config(
    vocab_size=10, hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=32, conv_dim=(8, 8),
    conv_kernel=(3, 3), conv_stride=(2, 2), num_feat_extract_layers=2, num_conv_pos_embeddings=4,
    num_conv_pos_embedding_groups=2, hidden_dropout=0.5, attention_dropout=0.5, layerdrop=0.5, mask_time_prob=0.5,
    mask_time_length=2, mask_feature_prob=0.5, mask_feature_length=2,
)  # fmt: skip
IDS = {"input_ids": torch.arange(3, 11)[None]}
MODELS: dict[str, tuple[type[PreTrainedModel], Any, dict[str, Any]]] = {
    "modules": (BertForMaskedLM, BertConfig(**BERT), IDS),
    "numbers in modules": (BartForConditionalGeneration, BART, IDS),
    "numbers in the config": (Wav2Vec2ForCTC, WAV, {"input_values": torch.linspace(-1, 1, 200)[None]}),
}


@pytest.mark.parametrize("name", MODELS)
def test_outputs_in_training_mode_are_those_of_evaluation(name: str) -> None:
    kind, config, inputs = MODELS[name]
    torch.manual_seed(0)
    model = kind(config)
    wanted = model.eval()(**inputs).logits
    model.train()
    assert not torch.allclose(model(**inputs).logits, wanted)
    with without_dropout(model):
        assert model.training
        torch.testing.assert_close(model(**inputs).logits, wanted)
    assert not torch.allclose(model(**inputs).logits, wanted)  # back again


def test_a_trainer_without_dropout_has_the_losses_of_a_model_without_any(tmp_path: Path) -> None:
    rows = tokenize(Dataset.from_dict({"text": texts(16)}), word_tokenizer(), max_length=12)
    losses = {}
    for probability, dropout in ((0.0, True), (0.5, False), (0.5, True)):
        torch.manual_seed(0)
        odds = {"hidden_dropout_prob": probability, "attention_probs_dropout_prob": probability}
        model = get_wid_model(BertForMaskedLM(BertConfig(**{**BERT, **odds})), HALF)
        args = arguments(tmp_path, max_steps=4, per_device_train_batch_size=4)
        collator = DataCollatorForLanguageModeling(word_tokenizer())
        trainer = WidTrainer(model, args, train_dataset=rows, data_collator=collator, dropout=dropout)
        trainer.train()
        losses[probability, dropout] = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        assert model.base_model.model.config.hidden_dropout_prob == probability
    assert losses[0.5, False] == pytest.approx(losses[0.0, True], rel=1e-6)
    assert losses[0.5, True] != pytest.approx(losses[0.0, True], rel=1e-3)

"""Which objective a teacher has, and who is refused."""

from __future__ import annotations

from typing import Any

import pytest
from toys import wav2vec2_config
from transformers import (
    AutoModelForCausalLM,
    BartConfig,
    BartForConditionalGeneration,
    BartForQuestionAnswering,
    BartForSequenceClassification,
    BertConfig,
    BertForMaskedLM,
    BertForMultipleChoice,
    BertForNextSentencePrediction,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertLMHeadModel,
    BertModel,
    CLIPConfig,
    CLIPModel,
    DeiTConfig,
    DeiTForImageClassificationWithTeacher,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2ForTokenClassification,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PatchTSTConfig,
    PatchTSTModel,
    PreTrainedModel,
    RobertaConfig,
    RobertaForMaskedLM,
    T5Config,
    T5ForConditionalGeneration,
    T5Model,
    ViTConfig,
    ViTForImageClassification,
    ViTForMaskedImageModeling,
    ViTModel,
    Wav2Vec2ForCTC,
    Wav2Vec2ForSequenceClassification,
    Wav2Vec2Model,
)

from wid_hf.errors import ConfigError, TeacherError
from wid_hf.objectives import OBJECTIVES, find_objective

BERT = {"vocab_size": 30, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
GPT2 = {"vocab_size": 30, "n_embd": 16, "n_layer": 1, "n_head": 2, "bos_token_id": 1, "eos_token_id": 1}
T5 = T5Config(vocab_size=30, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
BART = BartConfig(
    vocab_size=30, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2,
    encoder_ffn_dim=32, decoder_ffn_dim=32, max_position_embeddings=16,
)  # fmt: skip
IMAGES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
VIT = ViTConfig(**IMAGES)
CLIP = CLIPConfig(text_config={"num_hidden_layers": 1}, vision_config={"num_hidden_layers": 1})
FOUND: list[tuple[type[PreTrainedModel], Any, str]] = [
    (BertForMaskedLM, BertConfig(**BERT), "masked-lm"),
    (RobertaForMaskedLM, RobertaConfig(**BERT), "masked-lm"),
    (BertForSequenceClassification, BertConfig(**BERT), "sequence-classification"),
    (DistilBertForSequenceClassification, DistilBertConfig(vocab_size=30, dim=16, n_layers=1, n_heads=2, hidden_dim=32),
     "sequence-classification"),
    (GPT2ForSequenceClassification, GPT2Config(**GPT2), "sequence-classification"),
    (BertForTokenClassification, BertConfig(**BERT), "token-classification"),
    (GPT2ForTokenClassification, GPT2Config(**GPT2), "token-classification"),
    (GPT2LMHeadModel, GPT2Config(**GPT2), "causal-lm"),
    (LlamaForCausalLM, LlamaConfig(**BERT), "causal-lm"),
    (BertLMHeadModel, BertConfig(**BERT, is_decoder=True), "causal-lm"),
    (BertForQuestionAnswering, BertConfig(**BERT), "question-answering"),
    (BertForMultipleChoice, BertConfig(**BERT), "multiple-choice"),
    (T5ForConditionalGeneration, T5, "seq2seq"),
    (BartForConditionalGeneration, BART, "seq2seq"),
    (BartForSequenceClassification, BART, "sequence-classification"),
    (BartForQuestionAnswering, BART, "question-answering"),
    (BertModel, BertConfig(**BERT), "features"),
    (ViTForImageClassification, VIT, "image-classification"),
    (DeiTForImageClassificationWithTeacher, DeiTConfig(**IMAGES), "image-classification"),
    (Wav2Vec2ForSequenceClassification, wav2vec2_config(), "audio-classification"),
    (Wav2Vec2ForCTC, wav2vec2_config(), "ctc"),
    (ViTModel, VIT, "features"),
    (Wav2Vec2Model, wav2vec2_config(), "features"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "config", "name"), FOUND, ids=[f"{kind.__name__}" for kind, *_ in FOUND])
def test_the_objective_follows_from_the_class(kind: type[PreTrainedModel], config: Any, name: str) -> None:
    teacher = kind(config).eval()
    assert find_objective(teacher).name == find_objective(teacher, name).name == name
    others = [task for task in OBJECTIVES if task != name]
    for task in others:
        with pytest.raises(TeacherError, match=rf"task={task} is for .*{kind.__name__} is none.*fits task={name}"):
            find_objective(teacher, task)


def test_a_head_that_predicts_tokens_but_reads_both_ways_is_no_decoder() -> None:
    teacher = AutoModelForCausalLM.from_config(BertConfig(**BERT)).eval()
    assert type(teacher) is BertLMHeadModel
    with pytest.raises(TeacherError, match="BertLMHeadModel is none of these"):
        find_objective(teacher)


@pytest.mark.parametrize(
    ("teacher", "told"),
    [
        (BertForNextSentencePrediction(BertConfig(**BERT)), "BertForNextSentencePrediction is none of these"),
        (BertModel(BertConfig(**BERT, is_decoder=True)), r"reads from left to right .* no head"),
        (T5Model(T5), "T5Model is an encoder-decoder without a head"),
        (ViTForMaskedImageModeling(VIT), "ViTForMaskedImageModeling is none of these"),
        (CLIPModel(CLIP), "CLIPModel takes input_ids and pixel_values together"),
        (PatchTSTModel(PatchTSTConfig(d_model=8, num_hidden_layers=1)), "texts, images or sounds, .*takes past_values"),
    ],
    ids=lambda given: type(given).__name__ if isinstance(given, PreTrainedModel) else "",
)  # fmt: skip
def test_others_are_refused_by_name(teacher: PreTrainedModel, told: str) -> None:
    with pytest.raises(TeacherError, match=told):
        find_objective(teacher.eval())


def test_an_unknown_task_lists_all() -> None:
    with pytest.raises(
        ConfigError,
        match=r"task='tagging' is unknown. Legal: auto, masked-lm, .*sentence-vectors, features",
    ):
        find_objective(BertModel(BertConfig(**BERT)), "tagging")

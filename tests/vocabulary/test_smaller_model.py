"""A model with fewer tokens computes what it did: scores, ties, configs, generated texts, and its narrow students."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForMaskedLM,
    BertModel,
    CanineConfig,
    CanineModel,
    CLIPConfig,
    CLIPModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    RobertaConfig,
    RobertaModel,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTModel,
)
from vocabularies import SENTENCES, tiny_tokenizer

from wid_hf import WidConfig, get_wid_model
from wid_hf.errors import ConfigError, PlanError, WidWarning
from wid_hf.planning.fewer_tokens import named_tokens
from wid_hf.vocabulary import kept_tokens, smaller_tokenizer, with_fewer_tokens

SIZE = 90  # more than any other size of these models
KEPT = [*range(5), *range(7, 80, 3), 81]
SMALL = {"vocab_size": SIZE, "hidden_size": 24, "num_attention_heads": 4, "intermediate_size": 48}
BART = {
    "d_model": 24,
    **{f"{part}_{what}": n for part in ("encoder", "decoder") for what, n in (("layers", 1), ("attention_heads", 4))},
}


def tiny_bert() -> BertForMaskedLM:
    return BertForMaskedLM(BertConfig(**SMALL, num_hidden_layers=1))


def tiny_llama(tie: bool = True) -> LlamaForCausalLM:
    config = LlamaConfig(**SMALL, num_hidden_layers=1, pad_token_id=0, bos_token_id=2, eos_token_id=3)
    config.tie_word_embeddings = tie
    return LlamaForCausalLM(config)


def untied_llama() -> LlamaForCausalLM:
    return tiny_llama(tie=False)


def tiny_bart() -> BartForConditionalGeneration:
    return BartForConditionalGeneration(
        BartConfig(vocab_size=SIZE, **BART, encoder_ffn_dim=48, decoder_ffn_dim=48, max_position_embeddings=40)
    )


def tiny_t5() -> T5ForConditionalGeneration:
    sizes = {"d_model": 24, "d_kv": 6, "d_ff": 48, "num_layers": 1, "num_heads": 4}
    return T5ForConditionalGeneration(T5Config(vocab_size=SIZE, **sizes, decoder_start_token_id=0))


def headless() -> BertModel:
    return BertModel(BertConfig(**SMALL, num_hidden_layers=1, pad_token_id=3))


MAKERS = (tiny_bert, tiny_llama, untied_llama, tiny_bart, tiny_t5, headless)
Maker = Callable[[], PreTrainedModel]


def made(make: Maker) -> PreTrainedModel:
    """A model in which no two rows, biases or buffers are alike."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        model = make().eval()
        for tensor in chain(model.parameters(), model.buffers()):
            if tensor.is_floating_point() and not tensor.any():
                tensor.normal_()
    return model


def outputs(model: PreTrainedModel, ids: Tensor) -> Tensor:
    inputs = {"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}
    with torch.no_grad():
        return model(input_ids=ids, **inputs)[0]


def ties(model: nn.Module) -> list[int]:
    """For each name in a checkpoint the place of the first name of the same tensor."""
    tensors = [id(tensor) for tensor in model.state_dict(keep_vars=True).values()]
    return [tensors.index(tensor) for tensor in tensors]


@pytest.mark.parametrize("make", MAKERS)
def test_it_computes_the_same_for_kept_tokens(make: Maker, tmp_path: Path) -> None:
    teacher = made(make)
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    config = teacher.config.to_dict()
    smaller = with_fewer_tokens(teacher, KEPT)
    ids = torch.arange(len(KEPT) - 1, 0, -1).view(2, 15)
    expected = outputs(teacher, torch.tensor(KEPT)[ids])
    expected = expected[..., KEPT] if expected.shape[-1] == SIZE else expected
    torch.testing.assert_close(outputs(smaller, ids), expected, rtol=0, atol=1e-6)
    assert ties(smaller) == ties(teacher)
    assert smaller.config.vocab_size == len(KEPT)
    smaller.save_pretrained(tmp_path)
    loaded = type(teacher).from_pretrained(tmp_path).eval()
    assert torch.equal(outputs(loaded, ids), outputs(smaller, ids))
    assert teacher.config.to_dict() == config
    assert all(torch.equal(tensor, before[name]) for name, tensor in teacher.state_dict().items())


@pytest.mark.parametrize("make", MAKERS)
def test_only_tensors_of_tokens_are_new(make: Maker) -> None:
    teacher = made(make)
    smaller = with_fewer_tokens(teacher, KEPT)
    own = dict(teacher.named_parameters())
    for name, parameter in smaller.named_parameters():
        assert (parameter is own[name]) == (SIZE not in own[name].shape)
    assert set(smaller.state_dict()) == set(teacher.state_dict())
    assert type(smaller)(smaller.config).num_parameters() == smaller.num_parameters()
    tables = [module for module in smaller.modules() if isinstance(module, nn.Embedding)]
    assert all(table.weight.shape[0] == table.num_embeddings for table in tables)


@pytest.mark.parametrize("make", MAKERS)
def test_students_are_made_from_it(make: Maker) -> None:
    smaller = with_fewer_tokens(made(make), KEPT)
    config = WidConfig(hidden_size=12, init="identity", selection="first")
    student = get_wid_model(smaller, config).merge_and_unload()
    assert student.get_input_embeddings().weight.shape == (len(KEPT), 12)
    assert outputs(student, torch.arange(10).view(2, 5)).isfinite().all()


def test_numbers_of_tokens_follow_in_all_configs() -> None:
    teacher = made(tiny_llama)
    teacher.config.update({"pad_token_id": 81, "eos_token_id": [3, 7], "image_token_index": 10, "layer_id": 7})
    teacher.generation_config.update(
        eos_token_id=[3, 7],
        suppress_tokens=[5, 7, 13],
        begin_suppress_tokens=[6],
        bad_words_ids=[[7, 10], [5]],
        sequence_bias=[[[7, 10], 1.0], [[5], 2.0]],
        decoder_start_token_id=-1,
        max_new_tokens=7,
    )
    teacher.generation_config.forced_decoder_ids = [[1, 7], [2, None]]
    teacher.generation_config.lang_to_id = {"<|en|>": 10}
    teacher.config.inner = LlamaConfig(**SMALL, eos_token_id=10)  # a config that no module holds
    teacher.config.other = LlamaConfig(**{**SMALL, "vocab_size": 50}, eos_token_id=9)  # of another vocabulary
    smaller = with_fewer_tokens(teacher, KEPT)
    config, generation = smaller.config, smaller.generation_config
    assert (config.pad_token_id, config.eos_token_id, config.image_token_index) == (len(KEPT) - 1, [3, 5], 6)
    assert generation.eos_token_id == [3, 5]
    assert (generation.suppress_tokens, generation.begin_suppress_tokens) == ([5, 7], None)
    assert generation.bad_words_ids == [[5, 6]]
    assert generation.sequence_bias == [[[5, 6], 1.0]]
    assert generation.forced_decoder_ids == [[1, 5], [2, None]]
    assert generation.lang_to_id == {"<|en|>": 6}
    assert (generation.decoder_start_token_id, generation.max_new_tokens, config.layer_id) == (-1, 7, 7)
    assert (config.inner.vocab_size, config.inner.eos_token_id) == (len(KEPT), 6)
    assert (config.other.vocab_size, config.other.eos_token_id) == (50, 9)
    assert (teacher.generation_config.eos_token_id, teacher.config.inner.eos_token_id) == ([3, 7], 10)


def test_numbers_follow_in_settings_of_tasks_and_maps_but_not_those_of_other_vocabularies() -> None:
    teacher = made(tiny_llama)
    teacher.config.update(
        {
            "task_specific_params": {"summary": {"decoder_start_token_id": 10, "length": 10, "prefix": None}},
            "vocabulary_map": {"<image>": 13, "a": 3},
            "t2u_vocab_size": 40,
            "t2u_pad_token_id": 10,
            "image_token_id": 13,
        }
    )
    teacher.generation_config.text_decoder_lang_to_code_id = {"deu": 16}
    smaller = with_fewer_tokens(teacher, KEPT)
    assert smaller.config.task_specific_params == {
        "summary": {"decoder_start_token_id": KEPT.index(10), "length": 10, "prefix": None}
    }
    assert smaller.config.vocabulary_map == {"<image>": KEPT.index(13), "a": 3}
    assert (smaller.config.t2u_pad_token_id, smaller.config.image_token_id) == (10, KEPT.index(13))
    assert smaller.generation_config.text_decoder_lang_to_code_id == {"deu": KEPT.index(16)}
    assert named_tokens(teacher) >= {10, 13, 16}
    teacher.config.task_specific_params["summary"]["decoder_start_token_id"] = 11
    with pytest.raises(ConfigError, match="names: task_specific_params="):
        with_fewer_tokens(teacher, KEPT)


def test_entries_that_may_be_numbers_of_tokens_are_told_and_left() -> None:
    teacher = made(tiny_llama)
    unsure = {"image_patch_id": 10, "codec_bos_id": 11}
    teacher.config.update({**unsure, "first_layer_id": 10, "newline_id": 3, "ignore_index": 90, "use_task_id": True})
    teacher.generation_config.vocoder_lang_code_to_id = {"deu": 16}
    with pytest.warns(WidWarning) as told:
        smaller = with_fewer_tokens(teacher, KEPT)
    assert [str(each.message).partition(". ")[0] for each in told] == [
        "The model's config has image_patch_id=10, codec_bos_id=11, vocoder_lang_code_to_id={'deu': 16}"
    ]
    assert {name: getattr(smaller.config, name) for name in unsure} == unsure
    assert smaller.generation_config.vocoder_lang_code_to_id == {"deu": 16}


def test_the_row_of_the_padding_follows() -> None:
    teacher = BertModel(BertConfig(**SMALL, num_hidden_layers=1, pad_token_id=10)).eval()
    assert with_fewer_tokens(teacher, KEPT).embeddings.word_embeddings.padding_idx == KEPT.index(10)


@pytest.mark.parametrize("make", [tiny_llama, tiny_bart, tiny_t5])
def test_it_generates_the_same_text(make: Maker) -> None:
    tokenizer = tiny_tokenizer("Unigram")
    teacher = made(make)
    teacher.resize_token_embeddings(len(tokenizer))
    kept = kept_tokens(tokenizer, texts=SENTENCES[:3], any_text=False)
    forbidden = sorted(set(range(len(tokenizer))) - set(kept))
    teacher.generation_config.suppress_tokens = [*forbidden, kept[-1]]  # the teacher could say tokens that go
    smaller, fewer = with_fewer_tokens(teacher, kept), smaller_tokenizer(tokenizer, kept)
    assert smaller.generation_config.suppress_tokens == [len(kept) - 1]
    for text in SENTENCES[:3]:
        given = (used(text, return_tensors="pt").input_ids for used in (tokenizer, fewer))
        models = ((teacher, tokenizer), (smaller, fewer))
        said = [model.generate(ids, max_new_tokens=12) for (model, _), ids in zip(models, given, strict=True)]
        assert len(said[0][0]) > 3
        assert [kept[token] for token in said[1][0]] == said[0][0].tolist()
        assert tokenizer.decode(said[0][0]) == fewer.decode(said[1][0])


def test_vocabularies_of_composed_models_are_cut_where_they_are() -> None:
    text = {**SMALL, "num_hidden_layers": 1, "bos_token_id": 2, "eos_token_id": 3, "max_position_embeddings": 32}
    vision = {"hidden_size": 24, "num_attention_heads": 4, "intermediate_size": 48, "num_hidden_layers": 1}
    vision |= {"image_size": 8, "patch_size": 4}
    clip = made(lambda: CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)))
    smaller = with_fewer_tokens(clip, KEPT)
    assert (smaller.config.text_config.vocab_size, clip.config.text_config.vocab_size) == (len(KEPT), SIZE)
    ids = torch.tensor([[2, 8, 9, 3]])
    with torch.no_grad():
        features = [m.get_text_features(i) for m, i in ((smaller, ids), (clip, torch.tensor(KEPT)[ids]))]
    given, expected = (getattr(f, "pooler_output", f) for f in features)
    assert torch.equal(given, expected)


def test_what_cannot_go_is_refused_with_the_reason() -> None:
    llama = made(tiny_llama)
    with pytest.raises(ConfigError, match="eos_token_id=3"):
        with_fewer_tokens(llama, [0, 1, 2, *range(5, 40)])
    with pytest.raises(ConfigError, match="ascending"):
        with_fewer_tokens(llama, [0, 1, 2, 3, 3])
    with pytest.raises(ConfigError, match="ascending"):
        with_fewer_tokens(llama, [])
    with pytest.raises(ConfigError, match="kept has 90; the model has tokens 0 to 89"):
        with_fewer_tokens(llama, [0, 1, 2, 3, SIZE])
    images = {name: size for name, size in SMALL.items() if name != "vocab_size"}
    with pytest.raises(PlanError, match="no table of tokens"):
        with_fewer_tokens(ViTModel(ViTConfig(**images, num_hidden_layers=1)), KEPT)
    canine = CanineConfig(hidden_size=24, num_hidden_layers=1, num_attention_heads=4, intermediate_size=48)
    with pytest.raises(PlanError, match="no table of tokens"):
        with_fewer_tokens(CanineModel(canine), KEPT)


def test_positions_that_count_from_the_number_of_the_padding_are_refused() -> None:
    config = RobertaConfig(**SMALL, num_hidden_layers=1, max_position_embeddings=120, pad_token_id=10)
    with pytest.raises(PlanError, match="more with the numbers of tokens"):
        with_fewer_tokens(made(lambda: RobertaModel(config)), KEPT)
    config.pad_token_id = 1
    assert with_fewer_tokens(made(lambda: RobertaModel(config)), KEPT).config.vocab_size == len(KEPT)


class Bent(LlamaForCausalLM):
    """A head in two parts, as adaptive softmax has them: the second is not by tokens."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__(config)
        self.rare = nn.Linear(config.hidden_size, config.vocab_size // 2)


def test_a_tensor_that_has_not_one_row_for_each_token_is_refused() -> None:
    with pytest.raises(PlanError, match=r"`rare.weight` would have the shape \(15, 24\) in place of \(45, 24\)"):
        with_fewer_tokens(Bent(made(tiny_llama).config), KEPT)


@pytest.mark.parametrize(("name", "auto"), [("minilm", AutoModel), ("smollm2", AutoModelForCausalLM)])
def test_a_real_model_gives_the_same_for_texts_of_its_kept_tokens(
    name: str, auto: type, request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue(f"{name}_dir")
    teacher, tokenizer = auto.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    kept = kept_tokens(tokenizer, texts=SENTENCES)
    smaller, fewer = with_fewer_tokens(teacher, kept), smaller_tokenizer(tokenizer, kept)
    inputs = [used(SENTENCES[0], return_tensors="pt") for used in (tokenizer, fewer)]
    with torch.no_grad():
        expected, given = (model(**i)[0] for model, i in zip((teacher, smaller), inputs, strict=True))
    if name == "minilm":
        assert torch.equal(given, expected)
    else:
        torch.testing.assert_close(given, expected[..., kept], rtol=0, atol=1e-4)

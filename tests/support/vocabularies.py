"""Tiny tokenizers of each kind, trained on a few sentences."""

from __future__ import annotations

import json
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

SENTENCES = [
    "the cat sat on the mat and the dog sat on the log",
    "a small model reads fewer tokens than a large model does",
    "narrow students inherit the weights of their wide teachers",
    "the teachers teach and the students study what they were taught",
    "tokens that no text uses are rows that no batch reads",
    "dogs and cats and models and students, all of them sat there",
    "who knows what the log of the model would tell the teacher?",
    "naïve readers über-read 12 rows, 345 columns and 6789 tables!",
]
SPECIAL = ["<pad>", "<unk>", "<s>", "</s>", "<mask>"]
NAMES = ("pad_token", "unk_token", "bos_token", "eos_token", "mask_token")
KINDS = ("WordPiece", "BPE", "BPE with marks", "byte-level BPE", "BPE with bytes", "Unigram", "WordLevel")
SIZE = 160


def tiny_tokenizer(kind: str) -> PreTrainedTokenizerFast:
    """A tokenizer with `<s>` and `</s>` around texts, a chat template, and an added token beyond the model's own."""
    tokenizer, trainer = _untrained(kind)
    tokenizer.train_from_iterator(SENTENCES, trainer)
    if kind == "BPE with bytes":
        tokenizer = _with_bytes(tokenizer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> $B:1 </s>:1",
        special_tokens=[(name, tokenizer.token_to_id(name)) for name in ("<s>", "</s>")],
    )
    tokenizer.add_tokens(["<added>"])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=77,
        padding_side="left",
        chat_template="{{ messages[0].content }}",
        **dict(zip(NAMES, SPECIAL, strict=True)),
    )


def _untrained(kind: str) -> tuple[Tokenizer, Any]:
    given: dict[str, Any] = {"special_tokens": SPECIAL, "show_progress": False}
    if kind == "Unigram":
        tokenizer = Tokenizer(models.Unigram())
        tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
        return tokenizer, trainers.UnigramTrainer(vocab_size=SIZE, unk_token="<unk>", **given)
    if kind == "WordLevel":
        tokenizer = Tokenizer(models.WordLevel(unk_token="<unk>"))
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        return tokenizer, trainers.WordLevelTrainer(**given)
    if kind == "WordPiece":
        tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
        tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
        tokenizer.decoder = decoders.WordPiece()
        return tokenizer, trainers.WordPieceTrainer(vocab_size=SIZE, **given)
    if kind == "byte-level BPE":
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        return tokenizer, trainers.BpeTrainer(vocab_size=SIZE + 256, initial_alphabet=alphabet, **given)
    marks = {"continuing_subword_prefix": "##", "end_of_word_suffix": "</w>"} if kind == "BPE with marks" else {}
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, **marks))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace() if marks else pre_tokenizers.Metaspace()
    tokenizer.decoder = _decoder(marks)
    return tokenizer, trainers.BpeTrainer(vocab_size=SIZE, **marks, **given)


def _decoder(marks: dict[str, str]) -> decoders.Decoder:
    if marks:
        return decoders.Sequence([decoders.Replace("##", ""), decoders.BPEDecoder()])
    return decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])


def _with_bytes(tokenizer: Tokenizer) -> Tokenizer:
    """Give a BPE tokens for bytes, between its special tokens and the others, as Llama's has them."""
    content = json.loads(tokenizer.to_str())
    names = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256))]
    names += [token for token in content["model"]["vocab"] if token not in SPECIAL]
    content["model"] |= {"vocab": {token: number for number, token in enumerate(names)}, "byte_fallback": True}
    return Tokenizer.from_str(json.dumps(content))

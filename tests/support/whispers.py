"""A tiny Whisper with its processor, for sounds of `media`."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from datasets import Dataset, Features, Value
from imitations import made_strong
from media import tone, write_wav
from tokenizers import pre_tokenizers
from transformers import (
    AddedToken,
    PreTrainedModel,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperProcessor,
    WhisperTokenizer,
)

from wid_hf import WidConfig
from wid_hf.rows.sounds import StoredSound

HEARD = 16_000  # samples per second: the filters of Whisper reach so far
END, START, EMPTY = "<|endoftext|>", "<|startoftranscript|>", "<|notimestamps|>"
OTHERS = ["<|en|>", "<|translate|>", "<|transcribe|>", "<|startoflm|>", "<|startofprev|>", "<|nospeech|>"]
LETTERS = sorted(pre_tokenizers.ByteLevel.alphabet())
TOKENS = {token: number for number, token in enumerate([*LETTERS, END, START, EMPTY, *OTHERS])}
STAMPS = [f"<|{at / 50:.2f}|>" for at in range(6)]
SAID = ["ab a", "c", "ba cab", "b"]
HALF_WHISPER = WidConfig(overrides={"d_model": 12, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24}, init="identity")


@cache
def reading_processor(named_timestamps: bool = True) -> WhisperProcessor:
    """One with words of several letters, and with timestamps, which old tokenizers of Whisper do not name."""
    merges = [("a", "b"), ("ab", "c"), ("Ġ", "c"), ("c", "d"), ("Ġ", "b")]
    words = [*LETTERS, *("".join(pair) for pair in merges)]
    special = [START, *OTHERS, EMPTY]
    names = [*words, END, *special]
    tokens = {token: number for number, token in enumerate(names)}
    tokenizer = WhisperTokenizer(vocab=tokens, merges=merges, pad_token=END, additional_special_tokens=special)
    if named_timestamps:
        tokenizer.add_tokens([AddedToken(stamp, special=False, normalized=False) for stamp in STAMPS])
    return WhisperProcessor(processor().feature_extractor, tokenizer)


@cache
def processor() -> WhisperProcessor:
    """One token for each byte; a second of sound is 100 frames."""
    special = [START, EMPTY, *OTHERS]
    tokenizer = WhisperTokenizer(vocab=TOKENS, merges=[], pad_token=END, additional_special_tokens=special)
    extractor = WhisperFeatureExtractor(feature_size=8, sampling_rate=HEARD, hop_length=160, chunk_length=1)
    return WhisperProcessor(extractor, tokenizer)


def whisper(seed: int = 0, **settings: int) -> PreTrainedModel:
    numbers = {"vocab_size": len(TOKENS), "decoder_start_token_id": TOKENS[START]}
    numbers |= dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"), TOKENS[END])
    config = WhisperConfig(
        num_mel_bins=8, d_model=24, encoder_layers=1, decoder_layers=1,
        encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=48, decoder_ffn_dim=48, dropout=0.0,
        max_source_positions=50, max_target_positions=32, suppress_tokens=[], begin_suppress_tokens=None,
        **(numbers | settings),
    )  # fmt: skip
    return made_strong(WhisperForConditionalGeneration(config).eval(), seed)


def sounds(folder: Path, count: int, transcribed: bool) -> Dataset:
    """Sounds of several lengths, perhaps with what is said."""
    paths = [write_wav(folder / f"{number}.wav", tone(number, HEARD), HEARD) for number in range(count)]
    said = {"target": (SAID * count)[:count]} if transcribed else {}
    kept = dict.fromkeys(said, Value("string"))
    return Dataset.from_dict({"audio": [*map(str, paths)], **said}, Features({"audio": StoredSound(), **kept}))

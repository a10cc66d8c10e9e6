"""Students of Whisper with fewer tokens: its tokenizer stands in a processor, its configs name many tokens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from media import tone, write_wav
from transformers import AutoModelForSpeechSeq2Seq, AutoProcessor, GenerationConfig, PreTrainedModel, WhisperTokenizer
from whispers import EMPTY, END, HEARD, OTHERS, STAMPS, START, reading_processor, whisper

from wid_hf import ConfigError, DataError, WidConfig
from wid_hf.tools.compress import CompressSettings, compress

SETTINGS = CompressSettings(steps=2, batch_size=4, max_length=12, validation_texts=4)
SPOKEN = ("ab cab", "ab c", "c ab")  # never "cd", and no " b"
TASKS = ("transcribe", "translate")
GONE = {"cd", "Ġb", "abc"}


def save_whisper(folder: Path, *, named_timestamps: bool = True) -> Path:
    processor = reading_processor(named_timestamps)
    numbers = {name: number for number, name in enumerate(all_names())}
    model: Any = whisper(vocab_size=len(numbers), **special_numbers(numbers))
    told = {
        "no_timestamps_token_id": numbers[EMPTY],
        "lang_to_id": {"<|en|>": numbers["<|en|>"]},
        "task_to_id": {name: numbers[f"<|{name}|>"] for name in TASKS},
        "prev_sot_token_id": numbers["<|startofprev|>"],
        "forced_decoder_ids": [[1, None], [2, numbers["<|transcribe|>"]]],
        "suppress_tokens": [numbers["cd"], numbers["!"], numbers["<|nospeech|>"]],
        "begin_suppress_tokens": [numbers["Ġb"], numbers[END]],
        "is_multilingual": True,
    }
    model.generation_config = GenerationConfig(**told, **special_numbers(numbers))
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def all_names() -> list[str]:
    vocabulary = reading_processor().tokenizer.get_vocab()
    return sorted(vocabulary, key=lambda name: vocabulary[name])


def special_numbers(numbers: dict[str, int]) -> dict[str, int]:
    ends = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"), numbers[END])
    return {**ends, "decoder_start_token_id": numbers[START]}


def spoken(folder: Path, *, written: bool = True) -> Path:
    folder.mkdir()
    lines = []
    for number in range(16):
        write_wav(folder / f"{number}.wav", tone(number, HEARD), HEARD)
        text = {"text": SPOKEN[number % len(SPOKEN)]} if written else {}
        lines.append(json.dumps({"audio": f"{number}.wav", **text}))
    (folder / "rows.jsonl").write_text("\n".join(lines))
    return folder / "rows.jsonl"


def scores(model: PreTrainedModel, sound: torch.Tensor, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_features=sound, decoder_input_ids=torch.tensor([ids])).logits[0]


@pytest.mark.parametrize("named_timestamps", [True, False])
def test_a_whisper_keeps_what_is_said_and_all_that_its_configs_name(named_timestamps: bool, tmp_path: Path) -> None:
    teacher = save_whisper(tmp_path / "teacher", named_timestamps=named_timestamps)
    config = WidConfig(vocabulary="corpus", init="identity")

    report = compress(str(teacher), str(spoken(tmp_path / "d")), tmp_path / "s", config, SETTINGS)

    student, before = (AutoModelForSpeechSeq2Seq.from_pretrained(folder) for folder in (tmp_path / "s", teacher))
    processor, names = AutoProcessor.from_pretrained(tmp_path / "s"), all_names()
    kept = [number for number, name in enumerate(names) if name not in GONE]
    left = [names[number] for number in kept]
    assert isinstance(processor.tokenizer, WhisperTokenizer)
    assert student.config.vocab_size == len(left) == len(names) - len(GONE)
    numbers = {name: number for number, name in enumerate(left)}
    tokens = {name for name in left if named_timestamps or name not in STAMPS}
    assert processor.tokenizer.get_vocab() == {name: numbers[name] for name in tokens}
    for text in SPOKEN:
        old = reading_processor(named_timestamps).tokenizer(text).input_ids
        assert [kept[number] for number in processor.tokenizer(text).input_ids] == old
    assert processor.tokenizer.decode([numbers["ab"], numbers["Ġc"]]) == "ab c"
    generation = student.generation_config
    assert generation.lang_to_id == {"<|en|>": numbers["<|en|>"]}
    assert generation.task_to_id == {name: numbers[f"<|{name}|>"] for name in TASKS}
    assert generation.no_timestamps_token_id + 1 == numbers[STAMPS[0]]
    assert generation.prev_sot_token_id == numbers["<|startofprev|>"]
    assert generation.suppress_tokens == [numbers["!"], numbers["<|nospeech|>"]]
    assert generation.begin_suppress_tokens == [numbers[END]]
    assert (generation.eos_token_id, generation.decoder_start_token_id) == (numbers[END], numbers[START])
    assert set(OTHERS) <= set(processor.tokenizer.get_vocab())
    assert before.config.vocab_size == len(names)
    assert report.vocabulary is not None
    assert f"{len(names)} -> {len(left)} tokens; 0.0% of 16 texts" in report.vocabulary
    assert processor.feature_extractor.to_dict() == reading_processor().feature_extractor.to_dict()


def test_a_whisper_of_its_kept_tokens_gives_what_the_teacher_gives(tmp_path: Path) -> None:
    teacher = save_whisper(tmp_path / "teacher")
    config = WidConfig(vocabulary="corpus", init="identity")
    untrained = CompressSettings(steps=0, batch_size=4, max_length=12, validation_texts=4)

    compress(str(teacher), str(spoken(tmp_path / "d")), tmp_path / "s", config, untrained)

    student, before = (AutoModelForSpeechSeq2Seq.from_pretrained(folder) for folder in (tmp_path / "s", teacher))
    kept = [number for number, name in enumerate(all_names()) if name not in GONE]
    sound, ids = torch.randn(1, 8, 100), [len(kept) - 8, 64, 65, 256]
    expected = scores(before, sound, [kept[number] for number in ids])[:, kept]
    torch.testing.assert_close(scores(student, sound, ids), expected, rtol=0, atol=1e-5)
    told = {"language": "en", "task": "transcribe", "return_timestamps": True, "max_new_tokens": 8}
    made, wanted = (model.generate(input_features=sound, **told)[0].tolist() for model in (student, before))
    assert len(made) > 4
    assert [kept[number] for number in made] == wanted


def test_tokens_that_a_teacher_would_write_cannot_be_counted(tmp_path: Path) -> None:
    teacher = save_whisper(tmp_path / "teacher")

    with pytest.raises(DataError, match="no column for target: an encoder-decoder that writes down speech writes"):
        compress(
            str(teacher),
            str(spoken(tmp_path / "d", written=False)),
            tmp_path / "s",
            WidConfig(vocabulary="corpus", init="identity"),
            SETTINGS,
        )


def test_timestamps_stay_all_or_the_numbers_are_refused(tmp_path: Path) -> None:
    teacher = save_whisper(tmp_path / "teacher", named_timestamps=False)
    kept = [*range(len(all_names()) - 1)]

    with pytest.raises(ConfigError, match="leaves out tokens that the model's config names: no_timestamps_token_id"):
        compress(
            str(teacher),
            str(spoken(tmp_path / "d")),
            tmp_path / "s",
            WidConfig(vocabulary=kept, init="identity"),
            SETTINGS,
        )

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import wave
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any, NoReturn

import datasets
import pytest
from datasets import Dataset, DatasetDict, Features, IterableDataset, Value
from PIL import Image

from wid_hf.errors import DataError
from wid_hf.rows import load_rows, load_texts

TEXTS = ["one two", "three", "four five six"]
COMPRESS: dict[str, Callable[[bytes], bytes]] = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}


def write(path: Path, content: str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(COMPRESS.get(path.suffix, bytes)(content.encode()))
    return str(path)


def json_lines(rows: list[dict]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def write_wave(path: Path, frames: bytes, rate: int = 8000) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, rate, 0, "NONE", ""))
        file.writeframes(frames)
    return path


ROWS = [{"text": text, "label": number} for number, text in enumerate(TEXTS)]
CONTENTS = {
    ".txt": "\n".join(TEXTS) + "\n",
    ".jsonl": json_lines(ROWS),
    ".json": json.dumps(ROWS, indent=1),
    ".csv": "text,label\n" + "".join(f"{row['text']},{row['label']}\n" for row in ROWS),
    ".tsv": "text\tlabel\n" + "".join(f"{row['text']}\t{row['label']}\n" for row in ROWS),
}


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("compression", ["", ".gz", ".bz2", ".xz"])
@pytest.mark.parametrize("suffix", CONTENTS)
def test_files_of_every_kind_give_the_same_rows(tmp_path: Path, suffix: str, compression: str, streaming: bool) -> None:
    rows = load_rows(write(tmp_path / f"corpus{suffix}{compression}", CONTENTS[suffix]), streaming=streaming)
    assert isinstance(rows, IterableDataset if streaming else Dataset)
    assert list(rows) == [{"text": row["text"]} if suffix == ".txt" else row for row in ROWS]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("separator", [";", "\t", "|"])
@pytest.mark.parametrize("name", ["corpus.csv", "corpus.csv.gz", "folder/train.csv"])
def test_columns_of_csv_are_parted_as_in_the_header(tmp_path: Path, name: str, separator: str, streaming: bool) -> None:
    written = write(tmp_path / name, "\ufeff" + CONTENTS[".csv"].replace(",", separator))
    source = str(tmp_path / "folder") if "/" in name else written
    assert list(load_rows(source, streaming=streaming)) == ROWS


def test_a_semicolon_below_the_header_parts_nothing(tmp_path: Path) -> None:
    assert list(load_rows(write(tmp_path / "a.csv", "text\none; two\n"))) == [{"text": "one; two"}]


@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
def test_tables_of_arrow_are_read(tmp_path: Path, suffix: str) -> None:
    dataset = Dataset.from_list(ROWS)
    if suffix == ".parquet":
        dataset.to_parquet(tmp_path / "corpus.parquet")
    else:
        dataset.save_to_disk(tmp_path / "saved")
        next((tmp_path / "saved").glob("*.arrow")).rename(tmp_path / "corpus.arrow")
    assert list(load_rows(str(tmp_path / f"corpus{suffix}"))) == ROWS


def test_rows_are_mapped_from_disk_and_not_held_in_memory(tmp_path: Path) -> None:
    assert load_rows(write(tmp_path / "corpus.jsonl", CONTENTS[".jsonl"])).cache_files


def test_a_file_that_was_written_anew_is_read_anew(tmp_path: Path) -> None:
    for texts in (["old"], ["new", "newer"]):
        source = write(tmp_path / "corpus.txt.gz", "\n".join(texts))
        assert load_rows(source)["text"][:] == texts


@pytest.mark.parametrize("name", ["corpus.txt", "corpus.txt.gz"])
def test_a_text_file_gives_one_text_per_line_without_blank_ones(tmp_path: Path, name: str) -> None:
    texts = load_texts(write(tmp_path / name, "one two\n\nthree\r\n   \nfour five six"))
    assert texts.column_names == ["text"]
    assert texts["text"][:] == TEXTS


def test_a_mark_of_the_order_of_bytes_is_no_part_of_a_text(tmp_path: Path) -> None:
    for name, content in (("corpus.txt", "one"), ("corpus.jsonl", '{"text": "one"}')):
        assert load_rows(write(tmp_path / name, f"\ufeff{content}\n"))["text"][:] == ["one"]


def test_a_line_separator_inside_a_text_does_not_split_it(tmp_path: Path) -> None:
    source = write(tmp_path / "corpus.json", '{"text": "one\u2028two"}\n{"text": "three"}\n')
    assert load_rows(source)["text"][:] == ["one\u2028two", "three"]


@pytest.mark.parametrize("name", ["corpus.jsonl", "corpus.json.gz"])
def test_keys_that_only_some_objects_have_are_missing_in_the_others(tmp_path: Path, name: str) -> None:
    rows = load_rows(write(tmp_path / name, '{"text": "a"}\n\n{"text": null, "label": 1}\n'))
    assert list(rows) == [{"text": "a", "label": None}, {"text": None, "label": 1}]


@pytest.mark.parametrize("as_given", ["sequence", "commas", "pattern", "folder"])
def test_several_files_are_read_in_order(tmp_path: Path, as_given: str) -> None:
    one, two = (write(tmp_path / f"part-{n}.jsonl{end}", json_lines(ROWS[n:][:1])) for n, end in ((0, ""), (1, ".gz")))
    (tmp_path / "README.md").write_text("About these files\n")
    sources = {
        "sequence": [one, two],
        "commas": f"{one}, {two}",
        "pattern": str(tmp_path / "part-*"),
        "folder": str(tmp_path),
    }
    assert list(load_rows(sources[as_given])) == ROWS[:2]


def test_a_name_with_a_comma_or_brackets_is_that_of_one_file(tmp_path: Path) -> None:
    assert load_rows(write(tmp_path / "one,[2].txt", "a\n"))["text"][:] == ["a"]


def test_files_have_one_split_whose_name_does_not_matter_and_a_part_of_it_can_be_taken(tmp_path: Path) -> None:
    source = write(tmp_path / "corpus.txt", CONTENTS[".txt"])
    assert load_rows(source, split="validation")["text"][:] == TEXTS
    assert load_rows(source, split="train[1:]")["text"][:] == TEXTS[1:]


def test_names_of_files_in_a_folder_tell_their_split(tmp_path: Path) -> None:
    for name, row in (("train", ROWS[0]), ("dev", ROWS[1]), ("test", ROWS[2])):
        write(tmp_path / f"{name}.jsonl", json_lines([row]))
    assert list(load_rows(str(tmp_path))) == ROWS[:1]
    assert list(load_rows(str(tmp_path), split="validation", streaming=True)) == ROWS[1:2]
    with pytest.raises(DataError, match=r"has no split 'dev'\. Its splits: train, validation, test\."):
        load_rows(str(tmp_path), split="dev")


def test_a_saved_dataset_is_read_with_its_splits(tmp_path: Path) -> None:
    DatasetDict(train=Dataset.from_list(ROWS), test=Dataset.from_list(ROWS[:1])).save_to_disk(tmp_path / "splits")
    Dataset.from_list(ROWS).with_format("torch").save_to_disk(tmp_path / "one")
    assert list(load_rows(str(tmp_path / "splits"), split="test")) == ROWS[:1]
    assert list(load_rows(str(tmp_path / "one"), streaming=True)) == ROWS
    with pytest.raises(DataError, match=r"no split 'validation'\. Its splits: train, test\."):
        load_rows(str(tmp_path / "splits"), split="validation")


def write_image(path: Path, grey: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (2, 2), grey).save(path)


@pytest.mark.parametrize("pattern", ["", "*/*.png"])
@pytest.mark.parametrize("streaming", [False, True])
def test_images_in_a_folder_for_each_class_have_labels(tmp_path: Path, pattern: str, streaming: bool) -> None:
    write_image(tmp_path / "cat" / "0.png", 10)
    write_image(tmp_path / "dog" / "0.png", 20)
    rows = load_rows(str(tmp_path / pattern), streaming=streaming)
    assert rows.features["label"].names == ["cat", "dog"]
    assert [(row["image"].getpixel((0, 0)), row["label"]) for row in rows] == [(10, 0), (20, 1)]


def test_images_with_metadata_have_its_columns(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png", 10)
    write(tmp_path / "metadata.csv", "file_name,caption\na.png,grey\n")
    assert [(row["image"].size, row["caption"]) for row in load_rows(str(tmp_path))] == [((2, 2), "grey")]


@pytest.mark.parametrize("streaming", [False, True])
def test_sounds_in_a_folder_for_each_class_have_labels(tmp_path: Path, streaming: bool) -> None:
    paths = [write_wave(tmp_path / name / "0.wav", b"\0\1") for name in ("one", "two")]
    rows = load_rows(str(tmp_path), streaming=streaming)
    assert rows.features["label"].names == ["one", "two"]
    assert [(row["audio"]["path"], row["label"]) for row in rows] == [(str(path), n) for n, path in enumerate(paths)]


def test_sounds_with_metadata_have_its_columns(tmp_path: Path) -> None:
    path = write_wave(tmp_path / "train" / "a.wav", b"\0\1")
    write(tmp_path / "train" / "metadata.jsonl", json_lines([{"file_name": "a.wav", "transcription": "one"}]))
    rows = load_rows(str(tmp_path))
    assert list(rows) == [{"audio": {"bytes": None, "path": str(path)}, "transcription": "one"}]


def test_a_stream_reads_no_more_than_is_asked_for(tmp_path: Path) -> None:
    first = write(tmp_path / "1.jsonl", json_lines(ROWS))
    second = write(tmp_path / "2.jsonl", "not JSON at all")
    rows = load_rows([first, second], streaming=True)
    assert list(islice(rows, 3)) == ROWS
    with pytest.raises(DataError, match=r"2\.jsonl cannot be read: line 1 is not JSON"):
        load_rows([first, second])


@pytest.mark.parametrize("source", ["", " , ", []])
def test_no_source_is_refused(source: Any) -> None:
    with pytest.raises(DataError, match="No source of rows was named"):
        load_rows(source)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no file .*absent\.jsonl\.gz.*\.txt, \.jsonl, \.json, .*'name:config'"):
        load_rows(str(tmp_path / "absent.jsonl.gz"))
    there = write(tmp_path / "there.txt", "one\n")
    with pytest.raises(DataError, match=r"there is no file .*absent\.txt"):
        load_rows(f"{there},{tmp_path / 'absent.txt'}")
    with pytest.raises(DataError, match=r"no file matches '.*\*\.txt\.gz'"):
        load_rows(str(tmp_path / "*.txt.gz"))


@pytest.mark.parametrize("name", ["corpus.docx", "corpus", "corpus.gz"])
def test_a_file_of_another_kind_is_refused_with_the_legal_kinds(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match=rf"{name} is not a file wid_hf can read.*\.txt, \.jsonl, \.json"):
        load_rows(write(tmp_path / name, "one\n"))


def test_files_of_several_kinds_are_refused_with_one_of_each(tmp_path: Path) -> None:
    write(tmp_path / "a.csv", CONTENTS[".csv"])
    write(tmp_path / "b.tsv", CONTENTS[".tsv"])
    write(tmp_path / "c.csv", CONTENTS[".csv"])
    for source in (str(tmp_path), str(tmp_path / "*")):
        with pytest.raises(DataError, match=r"several kinds: \S*a\.csv, \S*b\.tsv\. Give files of one kind"):
            load_rows(source)


def test_a_folder_beside_files_and_one_without_rows_are_refused(tmp_path: Path) -> None:
    corpus = write(tmp_path / "corpus.txt", "one\n")
    (tmp_path / "folder").mkdir()
    with pytest.raises(DataError, match=r"folder is a folder, .* Give its files, as '.*folder/\*'"):
        load_rows([corpus, str(tmp_path / "folder")])
    with pytest.raises(DataError, match=r"folder holds no file wid_hf can read"):
        load_rows(str(tmp_path / "folder"))


@pytest.mark.parametrize("content", ["", "\n  \n\n"])
@pytest.mark.parametrize("name", ["corpus.txt", "corpus.txt.gz", "corpus.jsonl", "corpus.json", "corpus.csv"])
def test_an_empty_or_blank_file_is_refused(tmp_path: Path, name: str, content: str) -> None:
    with pytest.raises(DataError, match=r"corpus\..*(holds no row: it is empty|the text is blank \(3\))"):
        load_texts(write(tmp_path / name, content))


@pytest.mark.parametrize("content", ["text,label\n", "[]"])
def test_a_file_without_rows_is_refused(tmp_path: Path, content: str) -> None:
    with pytest.raises(DataError, match=r"corpus\..* holds no row: it is empty"):
        load_rows(write(tmp_path / ("corpus.json" if content == "[]" else "corpus.csv"), content))


@pytest.mark.parametrize("name", ["garbage.txt", "garbage.txt.gz", "garbage.jsonl", "garbage.json", "garbage.csv.xz"])
def test_binary_garbage_is_refused_with_the_cause_kept(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(bytes(range(128, 256)) * 8)
    with pytest.raises(DataError, match=r"garbage\..* cannot be read: .* download it again") as refusal:
        load_rows(str(tmp_path / name))
    assert isinstance(refusal.value.__cause__, UnicodeDecodeError | gzip.BadGzipFile | lzma.LZMAError)


@pytest.mark.parametrize("name", ["garbage.parquet", "garbage.arrow"])
def test_a_table_that_is_none_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match=rf"{name} cannot be read: .* kind that their suffix says"):
        load_rows(write(tmp_path / name, "PAR1"))


@pytest.mark.parametrize("streaming", [False, True])
def test_a_table_of_parquet_without_rows_is_refused(tmp_path: Path, streaming: bool) -> None:
    empty = Dataset.from_dict({"text": []}, features=Features({"text": Value("string")}))
    empty.to_parquet(tmp_path / "corpus.parquet")
    with pytest.raises(DataError, match=r"corpus\.parquet holds no row"):
        load_rows(str(tmp_path / "corpus.parquet"), streaming=streaming)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("suffix", [".txt", ".jsonl", ".csv"])
def test_an_empty_split_is_refused_by_its_file(tmp_path: Path, suffix: str, streaming: bool) -> None:
    write(tmp_path / f"train{suffix}", CONTENTS[suffix])
    write(tmp_path / f"validation{suffix}", "")
    with pytest.raises(DataError, match=rf"validation\{suffix} holds no row") as refused:
        load_rows(str(tmp_path), split="validation", streaming=streaming)
    assert "train" not in str(refused.value)


def test_zero_bytes_in_a_text_file_are_refused_by_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"2\.txt cannot be read: line 2 holds a zero byte"):
        load_rows([write(tmp_path / "1.txt", "one\n"), write(tmp_path / "2.txt", "one\nt\0wo\n")])


@pytest.mark.parametrize("streaming", [False, True])
def test_a_truncated_gzip_file_is_refused(tmp_path: Path, streaming: bool) -> None:
    path = tmp_path / "corpus.txt.gz"
    path.write_bytes(gzip.compress("\n".join(map(str, range(5000))).encode())[:-900])
    with pytest.raises(DataError, match=r"cannot be read: Compressed file ended .* complete file") as refusal:
        load_rows(str(path), streaming=streaming)
    assert isinstance(refusal.value.__cause__, EOFError)


@pytest.mark.parametrize(
    ("name", "content", "cause"),
    [
        ("corpus.jsonl", '{"text": "x"}\n{"text": \n', r"line 2 is not JSON"),
        ("corpus.jsonl", '{"text": "x"}\n"y"\n', r"line 2 is not a JSON object"),
        ("corpus.json", '[{"text": "x"}, 3]', r"entry 2 is not a JSON object"),
        ("corpus.json", '[{"text": "x"}', r"cannot be read: Expecting"),
        ("corpus.csv", "text,label\na,1\nb,2,3\n", r"Expected 2 fields in line 3, saw 3"),
    ],
)
def test_broken_rows_are_refused_with_the_place(tmp_path: Path, name: str, content: str, cause: str) -> None:
    with pytest.raises(DataError, match=cause):
        load_rows(write(tmp_path / name, content))


def test_files_whose_columns_do_not_fit_together_are_refused(tmp_path: Path) -> None:
    one, two = (write(tmp_path / f"{n}.jsonl", json_lines([{name: "x"}])) for n, name in enumerate(("text", "other")))
    with pytest.raises(DataError, match=r"0\.jsonl, .*1\.jsonl cannot be read: (?s:.*other.*) have the same columns"):
        load_rows([one, two])


@pytest.mark.parametrize(("source", "asked"), [("glue:sst2", ("glue", "sst2")), ("me/set", ("me/set", None))])
@pytest.mark.parametrize("streaming", [False, True])
def test_a_dataset_name_with_config_and_split_reaches_the_loader(
    source: str, asked: tuple[str, str | None], streaming: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple] = []

    def load_dataset(name: str, config: str | None, split: str, streaming: bool) -> Dataset:
        calls.append((name, config, split, streaming))
        return Dataset.from_list(ROWS)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert list(load_rows(source, split="validation", streaming=streaming)) == ROWS
    assert calls == [(*asked, "validation", streaming)]


def test_a_dataset_that_cannot_be_loaded_is_refused_with_the_cause_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    unreachable = ConnectionError("Couldn't reach the Hub")

    def load_dataset(*_: Any, **__: Any) -> NoReturn:
        raise unreachable

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(DataError, match=r"'no_such_set' is not a file .* Couldn't reach the Hub") as refusal:
        load_rows("no_such_set")
    assert refusal.value.__cause__ is unreachable

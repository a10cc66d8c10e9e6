"""The example pushes a whole student, card included, to a Hub on loopback."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_server import Hub, loopback_hub, run
from huggingface_hub import ModelCard
from toys import save_teacher, write_texts
from transformers import BertModel

from wid_hf import WidConfig
from wid_hf.tools.compress import CompressSettings, compress

SCRIPT = str(Path(__file__).parents[2] / "examples" / "push_student.py")
CONFIG = WidConfig(hidden_size=12, intermediate_size=24, init="identity")
SETTINGS = CompressSettings(steps=0, batch_size=8, max_length=12, validation_texts=8)


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("student")
    teacher = save_teacher(folder / "teacher", BertModel)
    compress(str(teacher), str(write_texts(folder / "train.txt")), folder / "small", CONFIG, SETTINGS)
    return folder / "small"


# One process, because importing torch and transformers takes most of the time.
PUSHES = """
import os, runpy, sys
script, student = sys.argv[1:]
for token, *words in (
    ("hf_token", "me/small", "--commit-message", "First"),
    ("hf_token", "me/public", "--public", "--revision", "v2"),
    ("hf_token", "me/public", "--create-pr"),
    ("hf_token", "me/public", "--create-pr", "--revision", "v2"),
    ("hf_wrong", "me/never"),
):
    os.environ["HF_TOKEN"], sys.argv = token, [script, student, *words]
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as ended:
        print("ended with", ended.code)
"""


@pytest.fixture(scope="module")
def pushed(student: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Hub, str]]:
    """A Hub and what the example said while it pushed to it."""
    with loopback_hub("hf_token") as hub:
        done = run(hub, tmp_path_factory.mktemp("home"), "-c", PUSHES, SCRIPT, str(student))
        assert done.returncode == 0, done.stderr
        yield hub, done.stdout + done.stderr


@pytest.mark.slow
def test_a_student_is_pushed_privately_with_tokenizer_and_a_card_under_its_new_name(
    pushed: tuple[Hub, str], student: Path
) -> None:
    hub, said = pushed
    commit = hub.head("me/small")
    assert f"Pushed: {hub.endpoint}/me/small/commit/{commit.sha}" in said
    assert hub.repositories["me/small"].private and commit.message == "First"
    assert {"README.md", "config.json", "model.safetensors", "tokenizer.json"} <= set(commit.files)
    assert commit.files["model.safetensors"] == (student / "model.safetensors").read_bytes()
    card = ModelCard(commit.files["README.md"].decode())
    assert card.text.count('from_pretrained("me/small")') == 2 and 'from_pretrained("small")' not in card.text
    assert not [name for name, content in commit.files.items() if str(student.parent).encode() in content]


def test_the_student_here_keeps_its_own_card(pushed: tuple[Hub, str], student: Path) -> None:
    assert (student / "README.md").read_text().count('from_pretrained("small")') == 2


def test_branch_pull_request_and_publicity_are_as_asked(pushed: tuple[Hub, str]) -> None:
    hub, said = pushed
    repository = hub.repositories["me/public"]
    assert not repository.private and set(repository.refs) == {"main", "v2", "refs/pr/1"}
    assert f"Pushed: {hub.endpoint}/me/public/discussions/1" in said
    assert "model.safetensors" not in hub.head("me/public").files
    assert "model.safetensors" in hub.head("me/public", "v2").files
    assert "ended with 2" in said and "leave --revision out" in said


def test_a_token_that_may_not_write_is_refused_in_words(pushed: tuple[Hub, str]) -> None:
    hub, said = pushed
    assert "me/never" not in hub.repositories and "ended with 1" in said
    assert "The Hub refused to take" in said and "hf auth whoami" in said
    assert "hf_wrong" not in said and "Traceback" not in said

"""Students and adapters go to a Hub and come back over HTTP; what was asked for on the way is what the Hub saw."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from subprocess import CompletedProcess

import pytest
import torch
from hub_server import Hub, loopback_hub, run
from huggingface_hub import ModelCard
from toys import write_texts

TOKEN = "hf_" + "loopbacktoken" * 3
IDS = "torch.arange(84).view(7, 12) % 10 + 5"

PUSH = f"""
import sys
import torch
from huggingface_hub import HfApi
from transformers import AutoModelForMaskedLM
from wid_hf import CalibrationConfig, WidConfig, get_wid_model
from wid_hf.tools.compress import CompressSettings, compress

home, ids = sys.argv[1], {IDS}
HfApi().create_repo("me/teacher", private=True)
HfApi().upload_folder(repo_id="me/teacher", folder_path=home + "/teacher")
calibration = CalibrationConfig(samples=40)
config = WidConfig(hidden_size=12, intermediate_size=24, calibration_config=calibration, revision="main")
settings = CompressSettings(steps=0, batch_size=8, max_length=12, validation_texts=8)
compress("me/teacher", home + "/train.txt", home + "/student", config, settings, revision="main")

teacher = AutoModelForMaskedLM.from_pretrained("me/teacher")
wid = get_wid_model(teacher, config, calibration_data=[{{"input_ids": ids}}])
optimizer = torch.optim.SGD(wid.parameters(), lr=0.1)
wid(input_ids=ids).logits.square().mean().backward()
optimizer.step()
student = wid.merge_and_unload()
torch.save(student(input_ids=ids).logits.detach(), home + "/logits.pt")

told = {{"commit_message": "Half as wide", "commit_description": "Loopback"}}
print(student.push_to_hub("me/student", private=True, revision="v1", **told))
print(student.push_to_hub("me/student", create_pr=True))
print(wid.push_to_hub("me/adapter", private=True, **told))
print(wid.push_to_hub("me/adapter", revision="v1", create_pr=True))
print(student.push_to_hub("me/open"))
"""

LOAD_STUDENT = f"""
import sys
sys.modules["wid_hf"] = None  # importing it fails
import torch
from transformers import AutoModelForMaskedLM
model = AutoModelForMaskedLM.from_pretrained("me/student", revision="v1").eval()
assert "peft" not in sys.modules
torch.save(model(input_ids={IDS}).logits.detach(), sys.argv[1])
"""

LOAD_ADAPTER = f"""
import sys
import torch
import wid_hf
from peft import PeftConfig, PeftModel
from transformers import AutoModelForMaskedLM
config = PeftConfig.from_pretrained("me/adapter")
teacher = AutoModelForMaskedLM.from_pretrained(config.base_model_name_or_path, revision=config.revision)
model = PeftModel.from_pretrained(teacher, "me/adapter").eval()
torch.save(model(input_ids={IDS}).logits.detach(), sys.argv[1])
torch.save(model.merge_and_unload()(input_ids={IDS}).logits.detach(), sys.argv[1] + "-merged")
"""


TURNED = """
import sys
import torch
sys.path.insert(0, sys.argv[2])
from wid_models import identity, tiny_encoder, turned
from wid_hf import load_output_map
model = turned(identity(tiny_encoder()))
student = model.merge_and_unload()
student.save_pretrained(sys.argv[1] + "/turned", push_to_hub=True, private=True)
student.push_to_hub("me/other")
for name in ("me/turned", "me/other"):
    assert torch.equal(load_output_map(name), model.base_model.output_map)
"""


def succeeded(done: CompletedProcess[str]) -> CompletedProcess[str]:
    assert done.returncode == 0, done.stderr[-3000:]
    return done


@pytest.fixture(scope="module")
def hub(home: Path, licensed_teacher: Path) -> Iterator[Hub]:
    """A Hub to which one process pushed a teacher, students and adapters; what it had cached is gone."""
    write_texts(home / "train.txt")
    with loopback_hub(TOKEN) as hub:
        hub.said = succeeded(run(hub, home, "-c", PUSH, str(home)))
        shutil.rmtree(home / "hub")
        yield hub


def test_a_pushed_student_loads_by_its_name_where_wid_hf_cannot_be_imported(hub: Hub, home: Path) -> None:
    succeeded(run(hub, home, "-c", LOAD_STUDENT, str(home / "student.pt")))
    assert torch.equal(torch.load(home / "student.pt"), torch.load(home / "logits.pt"))
    assert ("GET", "/api/models/me/student/revision/v1", True) in hub.requests


@pytest.mark.slow
def test_the_map_of_turned_outputs_goes_with_the_student_and_comes_back_by_its_name(hub: Hub, home: Path) -> None:
    support = Path(__file__).parents[1] / "support"
    succeeded(run(hub, home, "-c", TURNED, str(home), str(support)))
    files = set(hub.head("me/turned").files)
    assert files == {"README.md", "config.json", "model.safetensors", "output_map.safetensors"}
    assert hub.repositories["me/turned"].private


@pytest.mark.slow
def test_a_pushed_adapter_loads_by_its_name_onto_the_teacher_that_it_names(hub: Hub, home: Path) -> None:
    succeeded(run(hub, home, "-c", LOAD_ADAPTER, str(home / "adapter.pt")))
    for found in ("adapter.pt", "adapter.pt-merged"):
        assert torch.equal(torch.load(home / found), torch.load(home / "logits.pt"))
    config = json.loads(hub.head("me/adapter").files["adapter_config.json"])
    assert (config["base_model_name_or_path"], config["revision"]) == ("me/teacher", "main")


def test_private_revision_message_and_pull_requests_reach_the_hub(hub: Hub) -> None:
    student, adapter = hub.repositories["me/student"], hub.repositories["me/adapter"]
    assert student.private and adapter.private and not hub.repositories["me/open"].private
    assert set(student.refs) == {"main", "v1", "refs/pr/1"} and set(adapter.refs) == {"main", "v1", "refs/pr/2"}
    for commit in (hub.head("me/student", "v1"), hub.head("me/adapter")):
        assert (commit.message, commit.description) == ("Half as wide", "Loopback")
    assert not hub.head("me/student").files and "model.safetensors" in hub.head("me/student", "refs/pr/1").files
    assert set(hub.head("me/adapter").files) == {"README.md", "adapter_config.json", "adapter_model.safetensors"}


def test_the_card_of_a_student_links_its_teacher_on_the_hub_and_takes_over_its_license(hub: Hub, home: Path) -> None:
    data = ModelCard.load(home / "student" / "README.md").data
    assert (data.base_model, data.base_model_relation, data.license) == ("me/teacher", "finetune", "mit")
    assert "[me/teacher](https://huggingface.co/me/teacher) at `main`" in (home / "student" / "README.md").read_text()


def test_the_token_is_shown_to_the_hub_only_and_stands_nowhere(hub: Hub, home: Path) -> None:
    assert all(known for method, path, known in hub.requests if method == "POST" and "validate" not in path)
    assert not any(known for _, path, known in hub.requests if path.startswith("/objects/"))
    stored = [content for r in hub.repositories.values() for c in r.commits.values() for content in c.files.values()]
    assert len(stored) > 10 and not any(TOKEN.encode() in content for content in stored)
    written = [path for path in home.rglob("*") if path.is_file()]
    assert not [path for path in written if TOKEN.encode() in path.read_bytes()]
    assert TOKEN not in hub.said.stdout + hub.said.stderr


REFUSED = """
import logging, os, sys, traceback
logging.basicConfig(level=logging.DEBUG)
from transformers import AutoModelForMaskedLM
import wid_hf.tools.teachers
from wid_hf.tools.teachers import load_teacher
from wid_hf_cli import app

def breaks(*_, token=os.environ["HF_TOKEN"], **__):
    raise RuntimeError("broken")

def command():
    sys.argv[1:] = ["plan", "me/teacher", "--hidden-size", "12"]
    app.run()

def broken_command():
    wid_hf.tools.teachers.load_teacher = breaks
    app.app(sys.argv[1:], standalone_mode=True)

for attempt in (
    lambda: AutoModelForMaskedLM.from_pretrained("me/student"),
    lambda: load_teacher("me/teacher"),
    lambda: AutoModelForMaskedLM.from_pretrained(sys.argv[1]).push_to_hub("me/never"),
    command,
    broken_command,
):
    try:
        attempt()
    except (Exception, SystemExit):
        sys.excepthook(*sys.exc_info())
        print("REFUSED")
    else:
        print("ACCEPTED")
"""


@pytest.mark.slow
def test_a_wrong_token_is_refused_everywhere_and_told_nowhere(hub: Hub, home: Path) -> None:
    wrong = "hf_" + "wrongtoken" * 4
    done = succeeded(run(hub, home / "others", "-c", REFUSED, str(home / "teacher"), token=wrong))
    assert done.stdout.split().count("REFUSED") == 5 and "ACCEPTED" not in done.stdout
    assert "RuntimeError: broken" in done.stderr and "TeacherError" in done.stderr
    assert "me/never" not in hub.repositories
    assert wrong not in done.stdout + done.stderr

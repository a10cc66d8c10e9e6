"""`Trainer(push_to_hub=True)` sends the adapter of a run, its checkpoints and its card to the Hub."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hub_server import Hub, loopback_hub, run
from huggingface_hub import ModelCard

TRAIN = """
import sys
import torch
from datasets import Dataset
from huggingface_hub import HfApi
from peft import PeftModel
from transformers import AutoModelForMaskedLM
from wid_hf import WidConfig, WidTrainer, WidTrainingArguments, get_wid_model

home = sys.argv[1]
HfApi().create_repo("me/teacher")
HfApi().upload_folder(repo_id="me/teacher", folder_path=home + "/teacher")
ids = (torch.arange(128).view(16, 8) % 10 + 5).tolist()
rows = Dataset.from_dict({"input_ids": ids, "labels": ids})

def trainer(strategy, steps):
    teacher = AutoModelForMaskedLM.from_pretrained("me/teacher")
    args = WidTrainingArguments(
        f"{home}/{strategy}", max_steps=steps, save_steps=2, save_strategy="steps", per_device_train_batch_size=4,
        push_to_hub=True, hub_model_id=f"me/{strategy}", hub_strategy=strategy, hub_private_repo=True,
        hub_always_push=True, report_to="none", disable_tqdm=True, use_cpu=True, dataloader_pin_memory=False,
    )
    config = WidConfig(hidden_size=12, intermediate_size=24, init="identity")
    return WidTrainer(model=get_wid_model(teacher, config), args=args, train_dataset=rows)

for strategy in ("end", "every_save", "checkpoint", "all_checkpoints"):
    pushed = trainer(strategy, 4)
    pushed.train()
    pushed.push_to_hub(tags="ours", license="bsd")

def logits(model):
    with torch.no_grad():
        return model.eval()(input_ids=torch.tensor(ids)).logits

found = {}
for strategy, place in (("end", ""), ("every_save", ""), ("checkpoint", "last-checkpoint"),
                        ("all_checkpoints", "checkpoint-2"), ("all_checkpoints", "checkpoint-4")):
    teacher = AutoModelForMaskedLM.from_pretrained("me/teacher")
    found[strategy, place] = logits(PeftModel.from_pretrained(teacher, f"me/{strategy}", subfolder=place or None))
found["trained"] = logits(pushed.model)
torch.save(found, home + "/found.pt")
"""


@pytest.fixture(scope="module")
def hub(home: Path, licensed_teacher: Path) -> Iterator[Hub]:
    with loopback_hub("hf_token") as hub:
        done = run(hub, home, "-c", TRAIN, str(home))
        assert done.returncode == 0, done.stderr[-3000:]
        yield hub


@pytest.mark.slow
def test_each_strategy_sends_its_checkpoints_and_they_load_by_name(hub: Hub, home: Path) -> None:
    found = torch.load(home / "found.pt")
    trained = found.pop("trained")
    early = found.pop(("all_checkpoints", "checkpoint-2"))
    assert all(torch.equal(logits, trained) for logits in found.values())
    assert not torch.equal(early, trained)
    folders = {name: {Path(file).parent.name for file in hub.head(f"me/{name}").files} for name, _ in found}
    assert folders == {
        "end": {""},
        "every_save": {""},
        "checkpoint": {"", "last-checkpoint"},
        "all_checkpoints": {"", "checkpoint-2", "checkpoint-4"},
    }
    last = {name.partition("/")[2] for name in hub.head("me/checkpoint").files if "/" in name}
    assert {"adapter_model.safetensors", "optimizer.pt", "trainer_state.json"} <= last
    assert hub.repositories["me/end"].private


def test_the_card_of_a_run_names_the_teacher_and_what_the_caller_adds(hub: Hub) -> None:
    for strategy in ("end", "checkpoint"):
        card = ModelCard(hub.head(f"me/{strategy}").files["README.md"].decode())
        assert (card.data.base_model, card.data.base_model_relation) == ("me/teacher", "adapter")
        assert (card.data.library_name, card.data.license, card.data.language) == ("peft", "bsd", "en")
        assert "ours" in card.data.tags and "wid-hf" in card.data.tags
        assert f'PeftModel.from_pretrained(teacher, "me/{strategy}")' in card.text

"""The library's start from selected indices is the oracle's, weight for weight and logit for logit."""

from __future__ import annotations

import gzip
import json
from copy import deepcopy
from pathlib import Path

import torch
from reference.bert_start import bert_start
from torch import Tensor
from transformers import AutoTokenizer, BertConfig, BertForMaskedLM

from wid_hf import WidConfig, get_wid_model

Batches = list[dict[str, Tensor]]
EXACT = 1e-7  # of the largest entry of each tensor; 1e-11 was measured
ROUNDED = 1e-3  # of the largest logit of a float32 start; 1e-4 was measured


def tiny_teacher() -> BertForMaskedLM:
    """Three layers whose every weight matters."""
    config = BertConfig(vocab_size=60, hidden_size=24, num_hidden_layers=3, num_attention_heads=4, intermediate_size=48)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        teacher = BertForMaskedLM(config).eval()
        for parameter in teacher.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    return teacher


def tiny_batches() -> Batches:
    """Random tokens in batches of unequal sizes, the last texts of each padded."""
    made = []
    for seed, (rows, length) in enumerate([(24, 10), (16, 14), (20, 7)]):
        ids = torch.randint(5, 60, (rows, length), generator=torch.Generator().manual_seed(seed))
        mask = torch.ones_like(ids)
        mask[-rows // 4 :, -3:] = 0
        made.append({"input_ids": ids, "attention_mask": mask})
    return made


def reactions(folder: Path, source: Path, count: int, size: int) -> Batches:
    """Reactions of unequal lengths, padded."""
    with gzip.open(source / "train.jsonl.gz", "rt", encoding="utf-8") as lines:
        texts = [json.loads(line)["rxn"] for line, _ in zip(lines, range(count), strict=False)]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    words = {"padding": True, "truncation": True, "max_length": 64, "return_tensors": "pt"}
    made = [tokenizer(texts[at : at + size], **words) for at in range(0, count, size)]
    return [{name: batch[name] for name in ("input_ids", "attention_mask")} for batch in made]


def library_start(teacher: BertForMaskedLM, batches: Batches, hidden: int, inner: int) -> BertForMaskedLM:
    wid = get_wid_model(deepcopy(teacher), WidConfig(hidden_size=hidden, intermediate_size=inner))
    wid.base_model.calibrate(batches, pca=False)
    return wid.merge_and_unload()


def difference(mine: Tensor, theirs: Tensor) -> float:
    """The largest difference, as a share of the largest entry."""
    return float((mine.double() - theirs.double()).abs().max() / theirs.double().abs().max())


def logits(model: BertForMaskedLM, batches: Batches) -> Tensor:
    with torch.no_grad():
        return torch.cat([model(**batch).logits[batch["attention_mask"].bool()] for batch in batches])


def loaded(like: BertForMaskedLM, weights: dict[str, Tensor]) -> BertForMaskedLM:
    model = deepcopy(like).double()
    model.load_state_dict(weights)
    return model


def check(teacher: BertForMaskedLM, batches: Batches, held_out: Batches, hidden: int, inner: int) -> None:
    wanted = bert_start(teacher, batches, hidden, inner)
    student = library_start(teacher.double(), batches, hidden, inner)
    found = student.state_dict()
    assert {name: tensor.shape for name, tensor in found.items()} == {name: t.shape for name, t in wanted.items()}
    off = {name: difference(found[name], wanted[name]) for name in wanted}
    assert {name: share for name, share in off.items() if share > EXACT} == {}
    assert difference(logits(student, held_out), logits(loaded(student, wanted), held_out)) < EXACT


def test_a_tiny_berts_start_is_the_oracles() -> None:
    *batches, held_out = tiny_batches()
    check(tiny_teacher(), batches, [held_out], hidden=12, inner=20)


def test_the_reaction_berts_start_is_the_oracles(reaction_bert_dir: Path, uspto50k: Path) -> None:
    *batches, held_out = reactions(reaction_bert_dir, uspto50k, count=18, size=6)
    check(BertForMaskedLM.from_pretrained(reaction_bert_dir).eval(), batches, [held_out], hidden=128, inner=256)


def test_a_float32_start_predicts_as_the_oracle_does() -> None:
    """Its weights are off by more, in directions in which their inputs hardly vary: what they make is not."""
    *batches, held_out = tiny_batches()
    teacher = tiny_teacher()
    student = library_start(teacher, batches, 12, 20)
    oracle = loaded(student, bert_start(teacher, batches, 12, 20))
    assert difference(logits(student, [held_out]), logits(oracle, [held_out])) < ROUNDED

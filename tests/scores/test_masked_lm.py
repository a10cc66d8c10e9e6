from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer, models
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModelForMaskedLM, AutoTokenizer, BertForMaskedLM, PreTrainedTokenizerFast

from wid_hf.errors import DataError
from wid_hf.inputs import tokenize
from wid_hf.rows import load_texts
from wid_hf.scores import masked_batches, masked_lm_score

VOCABULARY = 60


def tokenizer(**special: str) -> PreTrainedTokenizerFast:
    words = ["[PAD]", "[UNK]", "[MASK]", *(f"w{number}" for number in range(3, VOCABULARY))]
    model = models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="[UNK]")
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(model), pad_token="[PAD]", unk_token="[UNK]", **special)


@pytest.fixture
def tokens() -> Dataset:
    """Forty rows of 2 to 20 tokens; the first of each is special."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(2, 21, (40,), generator=generator).tolist()
    rows = [torch.randint(3, VOCABULARY, (length,), generator=generator).tolist() for length in lengths]
    return Dataset.from_dict(
        {
            "input_ids": rows,
            "attention_mask": [[1] * len(row) for row in rows],
            "special_tokens_mask": [[1] + [0] * (len(row) - 1) for row in rows],
        }
    )


class SureOf(nn.Module):
    """Predicts `token` everywhere, with logit `logit` against 0 for all others."""

    def __init__(self, token: int, logit: float) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(VOCABULARY).index_fill(0, torch.tensor(token), logit))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=self.logits.expand(*input_ids.shape, -1))


def test_the_same_seed_masks_the_same_positions_and_leaves_the_global_generator_alone(tokens: Dataset) -> None:
    state = torch.get_rng_state()
    first, again, other = (masked_batches(tokens, tokenizer(mask_token="[MASK]"), 8, seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a[key], b[key]) for a, b in zip(first, again, strict=True) for key in a)
    assert not torch.equal(first[0]["labels"], other[0]["labels"])


def test_padding_and_special_tokens_are_never_masked(tokens: Dataset) -> None:
    for batch in masked_batches(tokens, tokenizer(mask_token="[MASK]"), 8, seed=0):
        assert (batch["labels"][batch["attention_mask"] == 0] == -100).all()
        assert (batch["labels"][:, 0] == -100).all()


def test_masked_batches_refuse_a_tokenizer_without_mask_token(tokens: Dataset) -> None:
    with pytest.raises(DataError, match="has no mask token"):
        masked_batches(tokens, tokenizer(), 8, seed=0)


def test_masked_batches_refuse_texts_too_short_to_have_a_masked_position() -> None:
    row = Dataset.from_dict({"input_ids": [[3]], "attention_mask": [[1]], "special_tokens_mask": [[1]]})
    with pytest.raises(DataError, match="none of the tokens of 1 texts was masked"):
        masked_batches(row, tokenizer(mask_token="[MASK]"), 8, seed=0)


def test_loss_and_accuracy_are_means_over_tokens_however_they_are_batched() -> None:
    labels = [[7, 7, 7, -100], [-100, -100, 9, -100]]
    rows = [
        {
            "input_ids": torch.full((1, 4), 2),
            "attention_mask": torch.ones(1, 4, dtype=torch.long),
            "labels": torch.tensor([row]),
        }
        for row in labels
    ]
    together = [{key: torch.cat([row[key] for row in rows]) for key in rows[0]}]
    model = SureOf(7, logit=2.0)
    log_partition = torch.tensor(VOCABULARY - 1 + torch.e**2).log().item()
    for batches in (rows, together):
        score = masked_lm_score(model, batches)
        assert score.tokens == 4
        assert score.accuracy == 0.75
        assert score.loss == pytest.approx(log_partition - 2.0 * 3 / 4, rel=1e-6)


def test_score_equals_the_loss_the_model_itself_reports_on_one_batch(
    tiny_bert: BertForMaskedLM, tokens: Dataset
) -> None:
    (batch,) = masked_batches(tokens, tokenizer(mask_token="[MASK]"), len(tokens), seed=0)
    score = masked_lm_score(tiny_bert, [batch])
    with torch.no_grad():
        output = tiny_bert(**batch)
    masked = batch["labels"] != -100
    right = output.logits.argmax(-1)[masked] == batch["labels"][masked]
    assert score.loss == pytest.approx(output.loss.item(), rel=1e-6)
    assert score.loss == pytest.approx(
        functional.cross_entropy(output.logits[masked], batch["labels"][masked]).item(), rel=1e-6
    )
    assert score.accuracy == right.double().mean().item()


def test_dropout_is_off_while_scoring_and_each_module_keeps_its_mode(
    tiny_bert: BertForMaskedLM, tokens: Dataset
) -> None:
    batches = masked_batches(tokens, tokenizer(mask_token="[MASK]"), 8, seed=0)
    expected = masked_lm_score(tiny_bert, batches)
    tiny_bert.train()
    tiny_bert.bert.embeddings.eval()
    modes = [module.training for module in tiny_bert.modules()]
    assert masked_lm_score(tiny_bert, batches) == expected
    assert [module.training for module in tiny_bert.modules()] == modes
    assert torch.is_grad_enabled()


def test_modes_come_back_when_the_forward_fails(tiny_bert: BertForMaskedLM) -> None:
    tiny_bert.train()
    too_long = torch.ones(1, 33, dtype=torch.long)
    with pytest.raises((IndexError, RuntimeError), match=r"index out of range|size of tensor|expanded size"):
        masked_lm_score(tiny_bert, [{"input_ids": too_long, "attention_mask": too_long, "labels": too_long}])
    assert tiny_bert.training


@pytest.mark.slow
def test_the_reaction_teacher_knows_its_reactions(reaction_bert_dir: Path, uspto50k: Path) -> None:
    teacher = AutoModelForMaskedLM.from_pretrained(reaction_bert_dir)
    smiles = AutoTokenizer.from_pretrained(reaction_bert_dir)
    texts = load_texts(str(uspto50k / "valid.jsonl.gz")).select(range(400))
    score = masked_lm_score(teacher, masked_batches(tokenize(texts, smiles, 256), smiles, 32, seed=0))
    assert score.tokens > 5000
    assert score.accuracy > 0.90
    assert score.loss < 1.0

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from torch.nn.functional import cosine_similarity
from transformers import AutoModel, AutoTokenizer, BertForMaskedLM, DataCollatorWithPadding

from wid_hf.errors import DataError, TeacherError
from wid_hf.inputs import batches, tokenize
from wid_hf.scores import cosine_correlation, embed, retrieval_agreement, sentence_score, similarity_correlation
from wid_hf.sentence_models.pooling import POOLINGS
from wid_hf.sentence_models.similarity import SIMILARITIES


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_embedding_does_not_depend_on_padding_or_batching_and_restores_the_mode(tiny_bert: BertForMaskedLM) -> None:
    encoder = tiny_bert.base_model.train()
    ids = torch.tensor([[5, 6, 7, 8], [9, 10, 0, 0]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    together = embed(encoder, [{"input_ids": ids, "attention_mask": mask}])
    apart = embed(
        encoder,
        [
            {"input_ids": ids[:1], "attention_mask": mask[:1]},
            {"input_ids": ids[1:, :2], "attention_mask": mask[1:, :2]},
        ],
    )
    assert together.shape == (2, 24)
    assert together.dtype == torch.float32
    torch.testing.assert_close(together, apart, atol=1e-6, rtol=1e-5)
    assert encoder.training


def test_embedding_with_a_task_head_points_to_the_base_model(tiny_bert: BertForMaskedLM) -> None:
    ids = torch.ones(1, 4, dtype=torch.long)
    with pytest.raises(TeacherError, match=r"BertForMaskedLM returns no last_hidden_state.*base_model"):
        embed(tiny_bert, [{"input_ids": ids, "attention_mask": ids}])


def test_turned_and_scaled_vectors_of_another_width_agree_fully() -> None:
    a = random(20, 6)
    turn = torch.linalg.qr(random(9, 9, seed=1)).Q[:6]  # (6, 9), orthonormal rows
    score = sentence_score(a, 3.0 * a @ turn)
    assert score.cosine_correlation == pytest.approx(1.0, abs=1e-6)
    assert score.top1_agreement == 1.0
    assert score.texts == 20


def test_correlation_is_pearson_over_the_pairs() -> None:
    a, b = random(4, 5), random(4, 3, seed=1)
    pairs = [(i, j) for i in range(4) for j in range(i + 1, 4)]
    x, y = ([cosine_similarity(v[i], v[j], dim=0).item() for i, j in pairs] for v in (a, b))
    mean_x, mean_y = sum(x) / 6, sum(y) / 6
    covariance = sum((p - mean_x) * (q - mean_y) for p, q in zip(x, y, strict=True))
    scale = math.sqrt(sum((p - mean_x) ** 2 for p in x) * sum((q - mean_y) ** 2 for q in y))
    assert cosine_correlation(a, b) == pytest.approx(covariance / scale, abs=1e-6)


def test_retrieval_counts_texts_whose_nearest_other_text_is_the_same() -> None:
    degrees_a = torch.tensor([0.0, 10.0, 50.0, 65.0]).deg2rad()  # neighbours 1 0 3 2
    degrees_b = torch.tensor([0.0, 30.0, 50.0, 90.0]).deg2rad()  # neighbours 1 2 1 2
    a, b = (torch.stack((d.cos(), d.sin()), dim=1) for d in (degrees_a, degrees_b))
    assert retrieval_agreement(a, b) == 0.5
    assert retrieval_agreement(a, a) == 1.0


def test_other_similarities_and_other_poolings_can_be_compared(tiny_bert: BertForMaskedLM) -> None:
    a, b = random(4, 5), random(4, 3, seed=1)
    pairs = torch.triu_indices(4, 4, offset=1).unbind()
    dots = torch.stack([(vectors @ vectors.T)[pairs] for vectors in (a, b)])
    found = similarity_correlation(a, b, SIMILARITIES["dot"])
    assert found == pytest.approx(float(torch.corrcoef(dots)[0, 1]), abs=1e-5)
    assert found != pytest.approx(cosine_correlation(a, b), abs=1e-3)
    vectors = torch.tensor([[1.0, 0.0], [9.0, 9.0], [1.2, -0.1]])  # by dots the long one is nearest, not by cosines
    unit = vectors / vectors.norm(dim=1, keepdim=True)
    assert retrieval_agreement(vectors, vectors, SIMILARITIES["dot"]) == 1.0
    assert retrieval_agreement(vectors, unit, SIMILARITIES["dot"]) == 0.0
    assert retrieval_agreement(vectors, unit) == 1.0
    ids = torch.tensor([[5, 6, 7, 8]])
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    with torch.no_grad():
        states = tiny_bert.base_model(**batch).last_hidden_state
    torch.testing.assert_close(embed(tiny_bert.base_model, [batch], POOLINGS["cls"]), states[:, 0])


@pytest.mark.parametrize(("left", "right"), [(4, 5), (2, 2), (0, 0)])
def test_vectors_of_different_or_too_few_texts_are_refused(left: int, right: int) -> None:
    with pytest.raises(DataError, match=f"vectors of {left} and of {right} texts.*at least 3"):
        sentence_score(random(left, 4), random(right, 4))


def test_minilm_finds_the_paraphrase(minilm_dir: Path) -> None:
    texts = ["A man is playing a guitar.", "Somebody plays the guitar.", "The stock market fell on Monday."]
    tokenizer = AutoTokenizer.from_pretrained(minilm_dir)
    tokens = tokenize(Dataset.from_dict({"text": texts}), tokenizer, 64)
    vectors = embed(AutoModel.from_pretrained(minilm_dir), list(batches(tokens, DataCollatorWithPadding(tokenizer), 2)))
    assert vectors.shape == (3, 384)
    assert cosine_similarity(vectors[0], vectors[1], dim=0) > 0.7
    assert cosine_similarity(vectors[0], vectors[2], dim=0) < 0.2

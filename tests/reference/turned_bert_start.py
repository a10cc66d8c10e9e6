"""The calibrated start of a narrower BERT whose stream is turned, in plain torch: an oracle beside `bert_start`.

The student's stream is `T x` of the teacher's x (n numbers a position). T `(k, n)` has rows and images of zero mean and
`T T^T = I - 1 1^T / k`, so the student's LayerNorm centres what the teacher's does. Five steps, none with a gradient:

1. T from the moments of what each norm makes.
2. Indices of feed-forward blocks and head SVD, as in `bert_start`.
3. In the order of the forward, C and c of every weight that reads the stream or a block, as in `bert_start`.
4. At each residual sum, the weight that writes into it is fitted to what the student's stream still lacks.
5. At each norm, weight and bias are fitted to the turned teacher's, index by index.

The last norm's result goes only into the classifier: its vectors go into that. All is float64.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import BertConfig, BertForTokenClassification

from .bert_start import (
    column_subset,
    moments,
    of_heads,
    query_key_svd,
    reconstruct,
    value_output_svd,
)

Tensors = Mapping[str, Tensor]
Paused = Generator[tuple[str, str, Tensor], None, Tensor]
LAYER = "bert.encoder.layer.{}"
WRITERS, VECTORS = 1e-3, 1e-3  # ridge strengths of steps 4 and 5


def forward(w: Tensors, batch: Tensors, config: BertConfig) -> Iterator[tuple[str, str, Tensor]]:
    """Run a BERT; pause before each linear map ("input"), at each residual sum ("sum") and in each norm ("norm").

    What is yielded is that module's name and the tensor, `(positions, n)` without padding: for a norm what it makes
    before weight and bias. Weights are looked up in `w` when the forward goes on, so who waits may change them: at a
    "sum" the weight that writes into it, at a "norm" its vectors.
    """
    ids, mask = batch["input_ids"], batch["attention_mask"].bool()

    def norm(name: str, x: Tensor) -> Paused:
        z = F.layer_norm(x, x.shape[-1:], eps=config.layer_norm_eps)
        yield "norm", name, z[mask]
        return z * w[f"{name}.weight"] + w[f"{name}.bias"]

    def linear(name: str, x: Tensor) -> Paused:
        yield "input", name, x[mask]
        return F.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])

    def added(name: str, residual: Tensor, x: Tensor) -> Paused:
        yield "input", name, x[mask]
        yield "sum", name, residual[mask]
        return residual + F.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])

    def split(x: Tensor) -> Tensor:  # (b, s, heads * d) -> (b, heads, s, d)
        return x.unflatten(-1, (config.num_attention_heads, -1)).transpose(1, 2)

    words, places, kinds = (w[f"bert.embeddings.{of}_embeddings.weight"] for of in ("word", "position", "token_type"))
    x = yield from norm("bert.embeddings.LayerNorm", words[ids] + kinds[0] + places[: ids.shape[1]])
    for layer in map(LAYER.format, range(config.num_hidden_layers)):
        attention = f"{layer}.attention"
        q = split((yield from linear(f"{attention}.self.query", x)))
        k = split((yield from linear(f"{attention}.self.key", x)))
        v = split((yield from linear(f"{attention}.self.value", x)))
        logits = (q @ k.mT / q.shape[-1] ** 0.5).masked_fill(~mask[:, None, None], torch.finfo(q.dtype).min)
        context = (logits.softmax(-1) @ v).transpose(1, 2).flatten(2)
        x = yield from added(f"{attention}.output.dense", x, context)
        x = yield from norm(f"{attention}.output.LayerNorm", x)
        inner = F.gelu((yield from linear(f"{layer}.intermediate.dense", x)))
        x = yield from added(f"{layer}.output.dense", x, inner)
        x = yield from norm(f"{layer}.output.LayerNorm", x)
    yield from linear("classifier", x)


def lockstep(w: Tensors, batches: Sequence[Tensors], config: BertConfig) -> Iterator[tuple[str, str, Tensor]]:
    """Run the forwards of all batches side by side."""
    for steps in zip(*(forward(w, batch, config) for batch in batches), strict=True):
        yield steps[0][0], steps[0][1], torch.cat([x for _, _, x in steps])


def turned_map(stream: Tensor, k: int) -> Tensor:
    """Return T `(k, n)`: it spans the leading k - 1 directions of the centred stream, as near to k pivots as it can be.

    The library weighs directions by what is made of them as well: tests of `stream_span` look at that.

    Nearest is the polar factor of S Q Q^T, with S selecting the pivots and Q the directions (Schönemann 1966).
    """
    n = len(stream)
    centre = torch.eye(n).double() - 1 / n
    covariance = centre @ stream @ centre
    directions = torch.linalg.eigh(covariance).eigenvectors[:, n - (k - 1) :]
    near = directions[column_subset(covariance, k)] @ directions.T
    u, _, vh = torch.linalg.svd(near - near.mean(0), full_matrices=False)
    return u[:, : k - 1] @ vh[: k - 1]


def writer(
    target: Tensor, residual: Tensor, teachers_residual: Tensor, x: Tensor, start: Tensor
) -> tuple[Tensor, Tensor]:
    """Return weight and bias that write what the stream lacks, `W x + b ~ s * target - residual`.

    The norm after the sum divides by its deviation and subtracts its mean: so every position may have the scale s that
    the student's residual has, its error counts as a share of its deviation, and means over indices do not count.
    """
    mine, theirs = (each - each.mean(1, keepdim=True) for each in (residual, teachers_residual))
    scale = (mine * theirs).sum(1, keepdim=True) / (theirs * theirs).sum(1, keepdim=True)
    missing = scale * target - residual
    missing = missing - missing.mean(1, keepdim=True)
    counts = 1 / (scale * target).var(1, correction=0)
    counts = counts / counts.sum()
    means = [counts @ each for each in (missing, x)]
    missing, x = (counts.sqrt()[:, None] * (each - mean) for each, mean in zip((missing, x), means, strict=True))
    variation = x.T @ x
    pull = max(WRITERS, (x.shape[1] / len(x)) ** 2) * variation.diagonal().mean() * torch.eye(x.shape[1]).double()
    weight = start + torch.linalg.solve(variation + pull, (missing.T @ x - start @ variation).T).T
    return weight, means[0] - weight @ means[1]


def vectors(z: Tensor, target: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
    """Return weight and bias of a norm: `target ~ w z + b` for each index, drawn to `start` times one number."""
    about, wanted = z - z.mean(0), target - target.mean(0)
    variance, cross = (about * about).mean(0), (about * wanted).mean(0)
    common = (cross * start).sum() / (variance * start * start).sum()
    pull = VECTORS * variance.mean()
    w = (cross + pull * common * start) / (variance + pull)
    return w, target.mean(0) - w * z.mean(0)


def turned_bert_start(
    teacher: BertForTokenClassification,
    batches: Sequence[Tensors],
    hidden_size: int,
    intermediate_size: int,
    ridge: float = 1e-4,
) -> dict[str, Tensor]:
    """Return the student's weights by their stock names; it has as many heads as the teacher, each narrower."""
    w, config = {name: tensor.double() for name, tensor in teacher.state_dict().items()}, teacher.config
    heads, width = config.num_attention_heads, hidden_size // config.num_attention_heads
    last = LAYER.format(config.num_hidden_layers - 1) + ".output.LayerNorm"
    seen, normed = {}, {}
    for kind, name, x in lockstep(w, batches, config):
        if kind == "input":
            seen[name] = moments(x)
        elif kind == "norm":
            normed[name] = x

    # 1. The map. What the last norm makes counts without its vectors, which go into the classifier; there the direction
    # of the mean counts as much as all variation.
    made = {name: moments(z * w[f"{name}.weight"] + w[f"{name}.bias"])[1] for name, z in normed.items()}
    mean, made[last] = moments(normed[last])
    variation = sum(each / each.trace() for each in made.values())
    t = turned_map(variation + torch.outer(mean, mean) / (mean @ mean), hidden_size)
    scale = w[f"{last}.weight"]

    # 2. Where each weight starts. The stream turns; blocks keep indices, heads the best combinations.
    rows, columns = dict.fromkeys(seen, t), dict.fromkeys(seen, t.T)
    columns["classifier"], rows["classifier"] = (t * scale).T, torch.eye(config.num_labels).double()
    for layer in map(LAYER.format, range(config.num_hidden_layers)):
        inside, out = f"{layer}.intermediate.dense", f"{layer}.output.dense"
        norms = w[f"{out}.weight"].norm(dim=0)
        kept = column_subset(norms[:, None] * seen[out][1] * norms, intermediate_size)
        rows[inside] = torch.eye(config.intermediate_size).double()[kept]
        columns[out] = rows[inside].T
        query, key, value = (f"{layer}.attention.self.{part}" for part in ("query", "key", "value"))
        out = f"{layer}.attention.output.dense"
        wq, wk, wo = (w[f"{name}.weight"] for name in (query, key, out))
        mean, stream = seen[query]
        mean = wq @ mean + w[f"{query}.bias"]
        queries = of_heads(wq @ stream @ wq.T + torch.outer(mean, mean), heads)
        p, q = query_key_svd(queries, of_heads(wk @ stream @ wk.T, heads), width)
        rows[query], rows[key] = torch.block_diag(*p) * (hidden_size / config.hidden_size) ** 0.5, torch.block_diag(*q)
        kept = t @ wo  # of what heads write, only what the stream keeps
        r, c = value_output_svd(of_heads(seen[out][1], heads), of_heads(kept.T @ kept, heads), width)
        rows[value], columns[out] = torch.block_diag(*r), torch.block_diag(*c)

    # 3 to 5. Teacher and student side by side.
    ones = torch.ones(hidden_size).double()
    student = {name: tensor @ t.T if "embeddings" in name else tensor for name, tensor in w.items()}
    even = (config.hidden_size / hidden_size) ** 0.5  # the teacher's norm divides by the mean of n squares
    shortest = torch.linalg.pinv((t * scale).T, rtol=1e-8) @ w[f"{last}.bias"]
    student |= {f"{last}.weight": even * ones, f"{last}.bias": shortest}
    read: dict[str, tuple[Tensor, Tensor]] = {}
    for (kind, name, x), (_, _, y) in zip(
        lockstep(w, batches, config), lockstep(student, batches, config), strict=True
    ):
        weight, bias = w[f"{name}.weight"], w[f"{name}.bias"]
        if kind == "input":
            c, offset = reconstruct(x, y, columns[name], ridge)
            student |= {
                f"{name}.weight": rows[name] @ weight @ c,
                f"{name}.bias": rows[name] @ (bias + weight @ offset),
            }
            read[name] = x, y
        elif kind == "sum":
            theirs, mine = read[name]
            target = (x + theirs @ weight.T + bias) @ t.T
            fitted, offset = writer(target, y, x @ t.T, mine, student[f"{name}.weight"])
            student |= {f"{name}.weight": fitted, f"{name}.bias": offset}
        elif name != last:
            target = (x * weight + bias) @ t.T
            fitted, offset = vectors(y, target, (t * t) @ weight)
            student |= {f"{name}.weight": fitted, f"{name}.bias": offset}
    return student

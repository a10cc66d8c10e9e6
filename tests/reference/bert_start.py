"""The calibrated start of a narrower BERT, from the mathematics, in plain torch: an oracle to learn from and test by.

At each linear map the teacher reads x (n numbers a position) where its student reads y (k < n). The student's weight
is `R W C` of the teacher's W: R `(k, n)` makes fewer rows of W, and C `(n, k)` lifts y to x. What C misses of the mean,
c in `x ~ C y + c`, goes into the bias: `R (b + W c)`. Three steps find R, C and c, none with a gradient:

1. Column subset selection: the indices that the student keeps of the stream and of each feed-forward block.
2. Head SVD: the combinations of its dimensions that each attention head keeps.
3. Layer-wise least-squares reconstruction: C and c of every weight, in the order of the forward.

`bert_start` at the end is the whole. All is float64: where y hardly varies, C is known only to rounding / ridge.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import BertConfig, BertForMaskedLM

Tensors = Mapping[str, Tensor]
LAYER, HEAD = "bert.encoder.layer.{}", "cls.predictions"


def forward(w: Tensors, batch: Tensors, config: BertConfig) -> Iterator[tuple[str, Tensor]]:
    """Run a BERT and pause before each linear map, yielding its name and its input `(positions, n)` without padding.

    A weight is looked up in `w` only when the forward goes on: who waits for an input may change the weight it meets.
    """
    ids, mask = batch["input_ids"], batch["attention_mask"].bool()

    def linear(name: str, x: Tensor) -> Generator[tuple[str, Tensor], None, Tensor]:
        yield name, x[mask]
        return F.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])

    def norm(name: str, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], config.layer_norm_eps)

    def split(x: Tensor) -> Tensor:  # (b, s, heads * d) -> (b, heads, s, d)
        return x.unflatten(-1, (config.num_attention_heads, -1)).transpose(1, 2)

    words, places, kinds = (w[f"bert.embeddings.{of}_embeddings.weight"] for of in ("word", "position", "token_type"))
    x = norm("bert.embeddings.LayerNorm", words[ids] + kinds[0] + places[: ids.shape[1]])
    for layer in map(LAYER.format, range(config.num_hidden_layers)):
        attention = f"{layer}.attention"
        q = split((yield from linear(f"{attention}.self.query", x)))
        k = split((yield from linear(f"{attention}.self.key", x)))
        v = split((yield from linear(f"{attention}.self.value", x)))
        logits = (q @ k.mT / q.shape[-1] ** 0.5).masked_fill(~mask[:, None, None], torch.finfo(q.dtype).min)
        context = (logits.softmax(-1) @ v).transpose(1, 2).flatten(2)
        x = norm(f"{attention}.output.LayerNorm", x + (yield from linear(f"{attention}.output.dense", context)))
        inner = F.gelu((yield from linear(f"{layer}.intermediate.dense", x)))
        x = norm(f"{layer}.output.LayerNorm", x + (yield from linear(f"{layer}.output.dense", inner)))
    x = norm(f"{HEAD}.transform.LayerNorm", F.gelu((yield from linear(f"{HEAD}.transform.dense", x))))
    yield from linear(f"{HEAD}.decoder", x)


def lockstep(w: Tensors, batches: Sequence[Tensors], config: BertConfig) -> Iterator[tuple[str, Tensor]]:
    """Run the forwards of all batches side by side, yielding each linear map's name and its inputs in all of them."""
    for inputs in zip(*(forward(w, batch, config) for batch in batches), strict=True):
        yield inputs[0][0], torch.cat([x for _, x in inputs])


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and covariance of positions `(p, n)`."""
    return x.mean(0), torch.cov(x.T, correction=0)


def column_subset(covariance: Tensor, count: int) -> Tensor:
    """Column subset selection: the first pivots, ascending, of a pivoted Cholesky factorisation `(count,)`.

    A pivot is the index that varies most after regression on those before it (Harbrecht, Peters and Schneider 2012).
    """
    left, pivots = covariance.clone(), []
    for _ in range(count):
        pivots.append(int(left.diagonal().argmax()))
        left -= torch.outer(left[pivots[-1]], left[pivots[-1]]) / left[pivots[-1], pivots[-1]]
        left[pivots, pivots] = 0
    return torch.tensor(sorted(pivots))


def of_heads(matrix: Tensor, heads: int) -> Tensor:
    """Return each head's own block `(heads, d, d)`, a little of its mean variance added: heads may be degenerate."""
    blocks = torch.einsum("hihj->hij", matrix.unflatten(1, (heads, -1)).unflatten(0, (heads, -1)))
    return blocks + 1e-8 * blocks.diagonal(dim1=1, dim2=2).mean(-1)[:, None, None] * torch.eye(len(blocks[0])).double()


def root(s: Tensor) -> Tensor:
    """Return the symmetric square root of each matrix `(heads, d, d)`."""
    values, vectors = torch.linalg.eigh(s)
    return vectors @ torch.diag_embed(values.clamp(min=0).sqrt()) @ vectors.mT


def query_key_svd(query: Tensor, key: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Head SVD of the logits: P and Q `(heads, width, d)` with `q^T k ~ (P q)^T (Q k)`.

    With A and B the roots of the moments of q and k (k about its mean: a shift of all keys changes no softmax), leading
    triplets of `A B = U D V^T` are best (Eckart and Young 1936): `P = D^(-1/2) V^T B` and `Q = D^(-1/2) U^T A`.
    """
    a, b = root(query), root(key)
    u, d, vh = torch.linalg.svd(a @ b)
    scale = d[:, :width, None].rsqrt()
    return scale * (vh[:, :width] @ b), scale * (u.mT[:, :width] @ a)


def value_output_svd(s: Tensor, gram: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Head SVD of what a head adds to the stream: R `(heads, width, d)` and C `(heads, d, width)`, `W z ~ W C R z`.

    With S the covariance of z and `gram = W^T W`, R spans what the leading left singular vectors of `W S^(1/2)`, the
    principal components of the outputs, see of z (reduced-rank regression, Izenman 1975). C regresses z on `R z`.
    """
    leading = torch.linalg.eigh(root(s) @ gram @ root(s)).eigenvectors.flip(-1)[..., :width]
    r = torch.linalg.qr(gram @ root(s) @ leading).Q.mT
    return r, s @ r.mT @ torch.linalg.inv(r @ s @ r.mT)


def ridge_solve(second: Tensor, right: Tensor, ridge: float) -> Tensor:
    """Return `(second + r)^-1 right` where r is `ridge` times the mean of the diagonal (Tikhonov)."""
    return torch.linalg.solve(second + ridge * second.diagonal().mean() * torch.eye(len(second)).double(), right)


def reconstruct(x: Tensor, y: Tensor, start: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
    """Least-squares reconstruction: `C, c = argmin E|x - C y - c|^2 + r |C - start|^2`.

    Where y says nothing, C stays at the start. As y is the student's own input, the errors of all maps before are
    corrected as far as they can be (as in channel pruning: He, Zhang and Sun 2017).
    """
    mean, joint = moments(torch.cat([y, x], 1))
    k = y.shape[1]
    second, cross = joint[:k, :k], joint[k:, :k]
    c = start + ridge_solve(second, (cross - start @ second).T, ridge).T
    return c, mean[k:] - c @ mean[:k]


def decoder_scales(x: Tensor, y: Tensor, table: Tensor, bias: Tensor, kept: Tensor, ridge: float) -> Tensor:
    """Return factors f of the last norm, all there is to fit where the decoder is the table of embeddings.

    `f = argmin E|T x - T C (f * y)|^2 + r |f - 1|^2`: C selects columns, and T is the table about its mean row, since a
    softmax does not see a shift of all scores. Ones where f brings the softmax of 256 positions no nearer.
    """
    gram = torch.cov(table.T)
    normal = gram[kept][:, kept] * (y.T @ y) / len(y)
    f = 1 + ridge_solve(normal, (gram[kept] * (y.T @ x)).sum(1) / len(y) - normal.sum(1), ridge)
    some = torch.arange(min(len(x), 256)) * (len(x) - 1) // (min(len(x), 256) - 1)
    wanted = (x[some] @ table.T + bias).softmax(-1)
    plain, scaled = (F.cross_entropy(z[some] @ table[:, kept].T + bias, wanted) for z in (y, f * y))
    return f if scaled < plain else torch.ones_like(f)


def bert_start(
    teacher: BertForMaskedLM, batches: Sequence[Tensors], hidden_size: int, intermediate_size: int, ridge: float = 1e-4
) -> dict[str, Tensor]:
    """Return the student's weights by their stock names; it has as many heads as the teacher, each narrower.

    Batches hold `input_ids` and `attention_mask`; `ridge` is a share of the mean variance of a student's input.
    """
    w, config = {name: tensor.double() for name, tensor in teacher.state_dict().items()}, teacher.config
    heads, width = config.num_attention_heads, hidden_size // config.num_attention_heads
    seen = {name: moments(x) for name, x in lockstep(w, batches, config)}

    def importance(name: str) -> Tensor:
        """The covariance of an input, each index weighed by its column in the weight, divided by its trace."""
        norms = w[f"{name}.weight"].norm(dim=0)
        weighed = norms[:, None] * seen[name][1] * norms
        return weighed / weighed.trace()

    # 1. Column subset selection. The stream has one choice for all that reads it, whose covariances count alike.
    kept = column_subset(sum(importance(name) for name in seen if not name.endswith("output.dense")), hidden_size)
    selected = torch.eye(config.hidden_size).double()[kept]
    rows, columns = dict.fromkeys(seen, selected), dict.fromkeys(seen, selected.T)
    for layer in map(LAYER.format, range(config.num_hidden_layers)):
        inner = column_subset(importance(f"{layer}.output.dense"), intermediate_size)
        rows[f"{layer}.intermediate.dense"] = torch.eye(config.intermediate_size).double()[inner]
        columns[f"{layer}.output.dense"] = rows[f"{layer}.intermediate.dense"].T
        # 2. Head SVD. The student divides logits by the root of its own width of heads: queries make up for it.
        query, key, value = (f"{layer}.attention.self.{part}" for part in ("query", "key", "value"))
        output = f"{layer}.attention.output.dense"
        wq, wk, wo = (w[f"{name}.weight"] for name in (query, key, output))
        (mean, read), (_, context) = seen[query], seen[output]
        mean = wq @ mean + w[f"{query}.bias"]
        queries, keys = wq @ read @ wq.T + torch.outer(mean, mean), wk @ read @ wk.T
        p, q = query_key_svd(of_heads(queries, heads), of_heads(keys, heads), width)
        rows[query], rows[key] = torch.block_diag(*p) * (hidden_size / config.hidden_size) ** 0.5, torch.block_diag(*q)
        r, c = value_output_svd(of_heads(context, heads), of_heads(wo.T @ wo, heads), width)
        rows[value], columns[output] = torch.block_diag(*r), torch.block_diag(*c)

    # 3. Layer-wise least-squares reconstruction, teacher and student side by side.
    along_stream = {name for name in w if "embeddings" in name or "LayerNorm" in name} | {f"{HEAD}.decoder.weight"}
    student = {name: tensor[..., kept] if name in along_stream else tensor for name, tensor in w.items()}
    for (name, x), (_, y) in zip(lockstep(w, batches, config), lockstep(student, batches, config), strict=True):
        weight, bias, r = w[f"{name}.weight"], w[f"{name}.bias"], rows[name]
        if name == f"{HEAD}.decoder":
            f = decoder_scales(x, y, weight, bias, kept, ridge)
            student |= {n: student[n] * f for n in w if "transform.LayerNorm" in n}
        else:
            c, offset = reconstruct(x, y, columns[name], ridge)
            student |= {f"{name}.weight": r @ weight @ c, f"{name}.bias": r @ (bias + weight @ offset)}
    return student

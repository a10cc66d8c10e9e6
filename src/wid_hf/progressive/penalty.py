"""How dropped rows of compactors are pulled to zero, in place on weights, gradients and Adam's moments.

Takes compactor matrices with a factor for each row, or with the rows that are dropped; `Progress` knows which. Factors
come from the CPU, so that no matrix on an accelerator is waited for.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from ..errors import ConfigError


def fade(matrix: Tensor, factors: Tensor) -> None:
    """Multiply the rows of `matrix (n, n)` by `factors (n,)`, from the CPU: decoupled from optimizer and gradient.

    A factor of 0 gives exactly 0, also for a row that is not finite.
    """
    rows = (factors != 1).nonzero()[:, 0]
    if rows.numel():
        with torch.no_grad():
            left = factors[rows, None].to(matrix)
            places = rows.to(matrix.device)
            faded = matrix[places] * left
            matrix[places] = torch.where(left == 0, torch.zeros_like(faded), faded)


def pull_by_moments(
    optimizer: torch.optim.Optimizer, matrices: Iterable[tuple[Tensor, Tensor]], strength: float
) -> None:
    """Repeat the reference arithmetic before a step of Adam (Wu et al. 2024, from their public code).

    For dropped rows the task's gradient is replaced by `strength * value`. As Adam divides by the root of the second
    moment, that alone would have no more effect than strength 1; so the gradient becomes `value`, and the part above 1
    is added to the first moment only, which the step turns into `beta1 * m + (1 - beta1) * strength * value`. The very
    first step creates the moments, so its part above 1 is left out.

    Args:
        optimizer: Adam, AdamW or a similar one with `exp_avg` in its state.
        matrices: parameters `(n, n)`, each with the numbers of its dropped rows, `(dropped,)`.
        strength: lambda.

    Raises:
        ConfigError: the optimizer has no `exp_avg`.
    """
    betas = {p: group.get("betas") for group in optimizer.param_groups for p in group["params"]}
    for matrix, dropped in matrices:
        if matrix not in betas or matrix.grad is None or not len(dropped):
            continue
        state, own = optimizer.state[matrix], betas[matrix]
        if own is None or (state and "exp_avg" not in state):
            raise ConfigError(
                f"penalty='adam_moment' works on Adam's first moment, which {type(optimizer).__name__} does not have. "
                "Use penalty='decoupled'."
            )
        value = matrix.detach()[dropped]
        matrix.grad[dropped] = value
        if state:
            above = (1 - own[0]) / own[0] * (strength - 1)  # the step multiplies by beta1
            state["exp_avg"][dropped] += above * value.to(state["exp_avg"].dtype)

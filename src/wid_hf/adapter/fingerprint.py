"""Digests of weights: which teacher an adapter belongs to, and whether a saved tensor has changed.

Takes tensors, gives SHA-256 digests. They reveal damage and confusion of files, not forgery: they are not signatures.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..layers import whole


def digest(name: str, tensor: Tensor) -> bytes:
    """Return the SHA-256 of a tensor: its name, dtype, shape and bytes.

    Where processes share the tensor, all of them must call this.
    """
    tensor = whole(tensor)
    sha = hashlib.sha256(f"{name}\n{tensor.dtype}\n{tuple(tensor.shape)}\n".encode())
    sha.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return sha.digest()


@dataclass(frozen=True)
class Fingerprint:
    """The weights of a teacher as they were when its student was planned.

    Attributes:
        names: every name in the teacher's checkpoint with the first name of the same tensor.
        digests: of each tensor by its first name.
    """

    names: Mapping[str, str]
    digests: Mapping[str, bytes]

    @classmethod
    def of(cls, weights: Mapping[str, Tensor], names: Mapping[str, str]) -> Fingerprint:
        """Return the fingerprint of `weights`, tensors by their first names."""
        return cls(dict(names), {name: digest(name, tensor) for name, tensor in weights.items()})

    @property
    def value(self) -> str:
        """One SHA-256 over the digests of all tensors in the order of their names, in hexadecimal."""
        return hashlib.sha256(b"".join(self.digests[name] for name in sorted(self.digests))).hexdigest()

    def changed(self, name: str, tensor: Tensor) -> bool:
        """Return whether `tensor` differs from the teacher's weight of this first name."""
        return digest(name, tensor) != self.digests[name]


def weights_fingerprint(model: nn.Module) -> str:
    """Return one SHA-256 of a model's weights as float32, in hexadecimal: the same for any dtype they are loaded in."""
    weights = model.state_dict().items()
    digests = {name: digest(name, w.float() if w.is_floating_point() else w) for name, w in weights}
    return Fingerprint({}, digests).value

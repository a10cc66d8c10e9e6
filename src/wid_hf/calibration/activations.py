"""What paused forwards hold in memory, bounded: above a limit, the activations of whole batches lie in files.

Takes every operation of a forward and notes which tensors it made; sets aside the memory of those that are left, and
brings it back before anyone looks at them. Used by `forward_thread` and `lockstep`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from weakref import ref

import torch
from torch import Tensor, UntypedStorage
from torch._ops import OpOverload

from .slots import Slot, SlotFile, give_back_memory


class ActivationPool:
    """The activations of all batches, of which no more than `limit` bytes and one batch are in memory.

    Batches are used in turns, so the one that was used last is used again last of all: it goes first.

    Args:
        limit: bytes.
        file: takes what goes.
    """

    def __init__(self, limit: int, file: SlotFile) -> None:
        self.limit = limit
        self.file = file
        self._went = 0  # bytes since memory was given back to the system
        self.away: dict[int, Activations] = {}  # whose storages lie in files, by address
        self._in_memory: dict[Activations, int] = {}  # bytes, in the order of their last use

    def use(self, wanted: Activations) -> None:
        """Bring the activations of a batch back, and set others aside where there are too many."""
        wanted.bring_back()
        self._in_memory.pop(wanted, None)
        total = sum(self._in_memory.values())
        while self._in_memory and total > self.limit:
            latest, size = self._in_memory.popitem()
            latest.set_aside()
            total -= size
            self._went += size
        if self._went > self.limit:
            give_back_memory()
            self._went = 0
        self.count(wanted)

    def count(self, used: Activations) -> None:
        """Take note of how much the activations of a batch hold now."""
        self._in_memory[used] = used.size


@dataclass
class _Memory:
    """One storage that a forward made.

    Attributes:
        tensors: that use it.
        copy: where its last copy lies.
        version: of the tensors then; None if they have been written since.
        is_away: whether it lies in the file alone.
    """

    tensors: list[ref[Tensor]] = field(default_factory=list)
    copy: Slot | None = None
    version: int | None = None
    is_away: bool = False

    def tensor(self, address: int) -> Tensor | None:
        """Return a tensor that still uses the storage at an address, if there is one."""
        self.tensors = [each for each in self.tensors if each() is not None]
        found = self.tensors[-1]() if self.tensors else None
        return found if found is not None and found.untyped_storage()._cdata == address else None


class Activations:
    """The tensors that the forwards of one batch made and still hold: a student's and its teacher's alike.

    Weights do not belong to them, nor do views of these.

    Args:
        pool: of all batches.
    """

    def __init__(self, pool: ActivationPool) -> None:
        self._pool = pool
        self._memories: dict[int, _Memory] = {}  # by the address of the storage
        self._are_away = False

    def use(self) -> None:
        """Make sure that all of these tensors can be looked at, until another batch is used."""
        self._pool.use(self)

    def count(self) -> None:
        """Take note of how much is held now."""
        self._pool.count(self)

    @property
    def size(self) -> int:
        """How many bytes are held."""
        return sum(tensor.untyped_storage().nbytes() for _, _, tensor in self._held())

    def before(self, operation: OpOverload, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """Take note of an operation that is about to run: it may need what another batch has set aside, or write."""
        if not self._pool.away and not operation._schema.is_mutable:
            return
        for tensor in _tensors([*args, *kwargs.values()]):
            address = _address(tensor)
            owner = self._pool.away.get(address) if address is not None else None
            if owner is not None and owner is not self:  # a module keeps it: a table of positions, a mask
                owner.bring_back()
                owner.leave_out(tensor)
            elif operation._schema.is_mutable and address in self._memories:
                self._memories[address].version = None

    def after(self, args: Sequence[Any], kwargs: Mapping[str, Any], out: Any) -> None:
        """Take note of what an operation made: new tensors, and views of those that are known."""
        given: set[int | None] | None = None
        for tensor in _tensors([out]):
            address = _address(tensor)
            if address is None:
                continue
            memory = self._memories.get(address)
            if memory is None or memory.tensor(address) is None:
                if given is None:
                    given = {_address(each) for each in _tensors([*args, *kwargs.values()])}
                if address in given:  # a view of a weight, or of the batch
                    continue
                self._forget(address)
                memory = self._memories[address] = _Memory()
            memory.tensors.append(ref(tensor))

    def leave_out(self, tensor: Tensor) -> None:
        """Never set this tensor aside: others use it."""
        address = _address(tensor)
        if address is not None:
            self._forget(address)

    def set_aside(self) -> None:
        """Put the contents of all tensors into files, and give their memory back."""
        for address, memory, tensor in list(self._held()):
            storage = tensor.untyped_storage()
            if not storage.nbytes() or not storage.resizable():
                continue
            if memory.copy is None or memory.copy.size != storage.nbytes():
                self._free(memory)
                memory.copy = self._pool.file.put(_bytes(storage))
            elif memory.version != tensor._version:
                self._pool.file.write(memory.copy, _bytes(storage))
            memory.version, memory.is_away = tensor._version, True
            self._pool.away[address] = self
            storage.resize_(0)
        self._are_away = True

    def bring_back(self) -> None:
        """Give all tensors their contents again."""
        if not self._are_away:
            return
        self._are_away = False
        for address in [address for address, owner in self._pool.away.items() if owner is self]:
            del self._pool.away[address]
        for _, memory, tensor in list(self._held()):
            if memory.is_away and memory.copy is not None:
                storage = tensor.untyped_storage()
                storage.resize_(memory.copy.size)
                self._pool.file.read(memory.copy, _bytes(storage))
                memory.is_away = False

    def _forget(self, address: int) -> None:
        memory = self._memories.pop(address, None)
        if memory is not None:
            self._free(memory)

    def _free(self, memory: _Memory) -> None:
        if memory.copy is not None:
            self._pool.file.free(memory.copy)
            memory.copy = None

    def _held(self) -> Iterator[tuple[int, _Memory, Tensor]]:
        """Yield every storage that is still used, with a tensor that uses it; forget the others."""
        for address, memory in list(self._memories.items()):
            tensor = memory.tensor(address)
            if tensor is None:
                self._forget(address)
            else:
                yield address, memory, tensor


def _tensors(values: Sequence[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value)


def _address(tensor: Tensor) -> int | None:
    """Return the address of a tensor's storage; None for one without plain memory, such as a sparse one."""
    return tensor.untyped_storage()._cdata if tensor.layout is torch.strided and not tensor.is_meta else None


def _bytes(storage: UntypedStorage) -> Tensor:
    return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)

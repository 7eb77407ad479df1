"""Random bits that follow from a counter: Philox4x32-10.

A counter-based generator has no state to hand on. A key (64 bits) and a counter (128 bits) give 128 random bits
through ten rounds of multiplication, and the bits of one counter tell nothing of those of another. So neither the order
in which numbers are drawn nor the count of threads nor the device matters: stochastic rounding gives block number ``i``
of a tensor the bits of counter ``i``, and plain torch, the C++ kernel and the Triton kernel round alike, bit for bit.

The generator is that of Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011), which CUDA's cuRAND,
torch (on CUDA) and NumPy (in its 64-bit form) use too.

>>> random_bytes(2, key=7).shape
torch.Size([2, 16])
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["BYTES_PER_COUNTER", "KeySource", "draw_key", "key_source", "keys_from", "random_bytes"]

KeySource = Callable[[], int]
"""What gives one 64-bit key after another."""

BYTES_PER_COUNTER = 16
"""Random bytes that one value of the counter gives: four words of 32 bits."""

_ROUNDS = 10
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)  # the golden ratio and the square root of 3, less 1, as 32-bit fractions
_WORD = 0xFFFFFFFF
_HALF = 0xFFFF
_local = threading.local()


def draw_key(generator: torch.Generator | None = None) -> int:
    """One 64-bit key, a number from ``-2^63`` to ``2^63 - 1``.

    Args:
        generator: where to draw from, on its own device. By default the source of :func:`keys_from`, inside of it, and
            torch's CPU generator outside, whatever the device of the numbers to be rounded: a step is then
            reproducible across devices, and the draw waits for no GPU.

    Returns:
        The key.
    """
    if generator is None and (source := key_source()) is not None:
        return source()
    device = torch.device("cpu") if generator is None else generator.device
    key = torch.empty((), dtype=torch.int64, device=device).random_(-(2**63), None, generator=generator)
    return int(key)


class keys_from:  # noqa: N801, read as a function; a class enters and leaves four times as fast as a generator
    """Draw the keys inside the block, on this thread, from ``source``; None leaves them to torch's generator."""

    def __init__(self, source: KeySource | None) -> None:
        self.source = source

    def __enter__(self) -> None:
        self.before = key_source()
        _local.source = self.source

    def __exit__(self, *error: object) -> None:
        _local.source = self.before


def key_source() -> KeySource | None:
    """Where keys are drawn from on this thread, if not from torch's generator."""
    source: KeySource | None = getattr(_local, "source", None)
    return source


@torch.no_grad()
def random_bytes(blocks: int, key: int, device: torch.device | str = "cpu", first: int = 0) -> Tensor:
    """The random bytes of a run of counters.

    Args:
        blocks: how many counters, of 16 bytes each.
        key: 64 bits; a negative number stands for its two's complement.
        device: where to compute them.
        first: the first counter.

    Returns:
        uint8 ``[blocks, 16]``. Row ``i`` belongs to counter ``first + i``, its low 32 bits being the counter's first
        word; bytes are the four output words in their order, each with its lowest byte first.
    """
    counters = torch.arange(first, first + blocks, dtype=torch.int64, device=device)
    words = [counters & _WORD, counters >> 32, torch.zeros_like(counters), torch.zeros_like(counters)]
    return torch.stack(_philox(words, key), dim=-1).to(torch.int32).view(torch.uint8).view(blocks, BYTES_PER_COUNTER)


def _philox(counter: list[Tensor], key: int) -> list[Tensor]:
    """Ten rounds on four words (int64 tensors of 32-bit numbers); the words that come out, likewise."""
    c0, c1, c2, c3 = counter
    keys = [key & _WORD, key >> 32 & _WORD]
    for _ in range(_ROUNDS):
        high0, low0 = _multiply(c0, _MULTIPLIERS[0])
        high1, low1 = _multiply(c2, _MULTIPLIERS[1])
        c0, c1, c2, c3 = high1 ^ c1 ^ keys[0], low1, high0 ^ c3 ^ keys[1], low0
        keys = [(word + step) & _WORD for word, step in zip(keys, _KEY_STEPS, strict=True)]
    return [c0, c1, c2, c3]


def _multiply(word: Tensor, factor: int) -> tuple[Tensor, Tensor]:
    """High and low 32 bits of a product of two 32-bit numbers, in signed 64-bit arithmetic."""
    # Halves, since the whole product needs an unsigned 64th bit, which torch's int64 does not have.
    low = word * (factor & _HALF)
    high = word * (factor >> 16) + (low >> 16)
    return high >> 16, (high & _HALF) << 16 | low & _HALF

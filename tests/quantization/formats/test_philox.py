"""The counter-based generator, against the vectors that its authors publish and against NumPy's arithmetic."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from monai_fp4.quantization.formats import philox
from monai_fp4.quantization.formats.philox import draw_key, random_bytes

# kat_vectors of Random123: counter, key, result of philox4x32-10.
KNOWN = [
    ([0] * 4, 0, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
    ([0xFFFFFFFF] * 4, -1, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
    (
        [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
        0x299F31D0A4093822,
        [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
    ),
]


def reference(counter: int, key: int) -> bytes:
    """Philox4x32-10 in Python's integers."""
    c = [counter & 0xFFFFFFFF, counter >> 32, 0, 0]
    k = [key & 0xFFFFFFFF, key >> 32 & 0xFFFFFFFF]
    for _ in range(10):
        first, second = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [second >> 32 ^ c[1] ^ k[0], second & 0xFFFFFFFF, first >> 32 ^ c[3] ^ k[1], first & 0xFFFFFFFF]
        k = [(k[0] + 0x9E3779B9) & 0xFFFFFFFF, (k[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return np.array(c, dtype="<u4").tobytes()


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN)
def test_known_answers(counter: list[int], key: int, expected: list[int]) -> None:
    words = philox._philox([torch.tensor(word) for word in counter], key)
    assert [int(word) for word in words] == expected


@pytest.mark.parametrize("first", [0, 2**32 - 2, 2**40])
@pytest.mark.parametrize("key", [0, 7, -1, 2**63 - 1, -(2**63)])
def test_bytes_of_counters(key: int, first: int) -> None:
    rows = random_bytes(4, key, first=first)
    assert rows.dtype is torch.uint8
    assert [bytes(row.tolist()) for row in rows] == [reference(first + i, key) for i in range(4)]


def test_keys_follow_the_generator() -> None:
    keys = [draw_key(torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert keys[0] == keys[1] != keys[2]
    torch.manual_seed(1)
    assert draw_key() == keys[0]
    assert draw_key() != keys[0]
    assert random_bytes(0, 1).shape == (0, 16)

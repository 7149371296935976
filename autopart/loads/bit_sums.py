"""Sums and unions over the bits that are set in many masks at once.

By tables of all 256 values of each byte: the product of a matrix of bits with a vector would be eight
times the work, and goes through BLAS, whose threads wait for each other on a busy machine. Tables pay
from some thousand masks on.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float64]


def pack(masks: Sequence[int], width: int) -> Bytes:
    """The lowest `width` bits of each mask as a row of bytes, low bits first."""
    size = -(-width // 8)
    joined = b"".join([mask.to_bytes(size, "little") for mask in masks])
    return np.frombuffer(joined, dtype=np.uint8).reshape(len(masks), size)


def sum_bits(rows: Bytes, amounts: Floats) -> Floats:
    """For each row the sum of the amounts of the bits that are set."""
    size = rows.shape[1]
    padded = np.zeros(8 * size)
    padded[: len(amounts)] = amounts
    table = np.zeros((size, 256))
    for bit in range(8):
        table[:, 1 << bit : 2 << bit] = table[:, : 1 << bit] + padded[bit::8, None]
    total = np.zeros(len(rows))
    for at in range(size):
        total += table[at][rows[:, at]]
    return total


def merge_bits(rows: Bytes, masks: Sequence[int], width: int) -> Bytes:
    """For each row the masks, of `width` bits, of the bits that are set, or-ed together."""
    size = rows.shape[1]
    packed = pack(masks, width)
    padded = np.zeros((8 * size, packed.shape[1]), dtype=np.uint8)
    padded[: len(packed)] = packed
    merged = np.zeros((len(rows), packed.shape[1]), dtype=np.uint8)
    table = np.zeros((256, packed.shape[1]), dtype=np.uint8)
    for at in range(size):
        if padded[8 * at : 8 * at + 8].any():
            for bit in range(8):
                table[1 << bit : 2 << bit] = table[: 1 << bit] | padded[8 * at + bit]
            merged |= table[rows[:, at]]
    return merged

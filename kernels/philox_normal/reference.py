"""philox_normal in NumPy, step for step as ``triton.language.random`` has it, in the integer widths it uses."""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_ROUNDS = 10
_KEY_A, _KEY_B = np.uint32(0x9E3779B9), np.uint32(0xBB67AE85)
_ROUND_A, _ROUND_B = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_WORD = np.uint64(32)

Words = NDArray[np.uint32]


def philox(seeds: NDArray[np.uint64], c0: Words, c1: int) -> tuple[Words, Words, Words, Words]:
    """The four words of Philox4x32-10 at counter (c0, c1, 0, 0); ``seeds`` and ``c0`` broadcast together."""
    k0, k1 = seeds.astype(np.uint32), (seeds >> _WORD).astype(np.uint32)
    first = c0 + np.zeros_like(k0)
    words = first, np.full_like(first, c1), np.zeros_like(first), np.zeros_like(first)
    for _ in range(_ROUNDS):
        a, b = words[0] * _ROUND_A, words[2] * _ROUND_B
        words = (
            (b >> _WORD).astype(np.uint32) ^ words[1] ^ k0,
            b.astype(np.uint32),
            (a >> _WORD).astype(np.uint32) ^ words[3] ^ k1,
            a.astype(np.uint32),
        )
        k0, k1 = k0 + _KEY_A, k1 + _KEY_B
    return words


def _uniform(bits: Words) -> NDArray[np.float32]:
    """uint32 to float32 in [0, 1)."""
    signed = bits.view(np.int32)
    return np.where(signed < 0, ~signed, signed).astype(np.float32) * np.float32(4.6566127342e-10)


def box_muller(first: Words, second: Words) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Two standard normal numbers from two words."""
    radius = np.sqrt(np.float32(-2.0) * np.log(np.maximum(np.float32(1.0e-7), _uniform(first))))
    angle = np.float32(6.283185307179586) * _uniform(second)
    return radius * np.cos(angle), radius * np.sin(angle)


def philox_normal(seeds: Tensor, shape: tuple[int, ...], stream: int) -> Tensor:
    """[*seeds.shape, *shape], float32, on the device of ``seeds``."""
    keys = seeds.cpu().numpy().astype(np.uint64)[..., None]
    count = math.prod(shape)
    first, second, third, fourth = philox(keys, np.arange((count + 3) // 4, dtype=np.uint32), stream)
    normal = np.stack([*box_muller(first, second), *box_muller(third, fourth)], axis=-1)
    flat = normal.reshape((*seeds.shape, 4 * normal.shape[-2]))[..., :count]
    return torch.from_numpy(flat.copy()).to(seeds.device).reshape((*seeds.shape, *shape))

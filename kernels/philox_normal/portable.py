"""philox_normal in torch: 32-bit words held in int64, because torch has no unsigned arithmetic on every device."""

import math

import torch
from torch import Tensor

_ROUNDS = 10
_KEY_A, _KEY_B = 0x9E3779B9, 0xBB67AE85
_ROUND_A, _ROUND_B = 0xD2511F53, 0xCD9E8D57
_WORD = 0xFFFFFFFF

Words = tuple[Tensor, Tensor, Tensor, Tensor]


def _multiply(factor: int, word: Tensor) -> tuple[Tensor, Tensor]:
    """High and low word of a 32 x 32 bit product, by 16-bit halves of ``factor`` since 64 bits would overflow int64."""
    upper, lower = word * (factor >> 16), word * (factor & 0xFFFF)
    high = (upper + (lower >> 16)) >> 16
    low = (((upper & 0xFFFF) << 16) + lower) & _WORD
    return high, low


def _philox(seeds: Tensor, c0: Tensor, c1: int) -> Words:
    """The four words of Philox4x32-10 at counter (c0, c1, 0, 0); ``seeds`` and ``c0`` broadcast together."""
    k0, k1 = seeds & _WORD, (seeds >> 32) & _WORD
    words: Words = c0, torch.full_like(c0, c1), torch.zeros_like(c0), torch.zeros_like(c0)
    for _ in range(_ROUNDS):
        a_high, a_low = _multiply(_ROUND_A, words[0])
        b_high, b_low = _multiply(_ROUND_B, words[2])
        words = b_high ^ words[1] ^ k0, b_low, a_high ^ words[3] ^ k1, a_low
        k0, k1 = (k0 + _KEY_A) & _WORD, (k1 + _KEY_B) & _WORD
    return words


def _uniform(bits: Tensor) -> Tensor:
    """32-bit words to float32 in [0, 1): negative ones, read as int32, are complemented, as in Triton."""
    return torch.where(bits > _WORD >> 1, _WORD - bits, bits).to(torch.float32) * 4.6566127342e-10


def _box_muller(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Two standard normal numbers from two words."""
    radius = torch.sqrt(-2.0 * torch.log(_uniform(first).clamp_min(1.0e-7)))
    angle = 6.283185307179586 * _uniform(second)
    return radius * torch.cos(angle), radius * torch.sin(angle)


def philox_normal(seeds: Tensor, shape: tuple[int, ...], stream: int) -> Tensor:
    """[*seeds.shape, *shape], float32, on the device of ``seeds``."""
    count = math.prod(shape)
    words = _philox(seeds.unsqueeze(-1), torch.arange((count + 3) // 4, device=seeds.device), stream)
    normal = torch.stack([*_box_muller(*words[:2]), *_box_muller(*words[2:])], dim=-1)
    return normal.flatten(-2)[..., :count].reshape((*seeds.shape, *shape))

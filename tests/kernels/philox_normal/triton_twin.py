"""Draws the same noise with Triton's own generator, on its interpreter; run as a script with the output file's name."""

import sys

import numpy as np
import torch
import triton
import triton.language as tl


@triton.jit
def draw(bits_ptr, words_ptr, normal_ptr, seed, stream, N: tl.constexpr):
    offset = tl.arange(0, N)
    first, second, _, _ = tl.randint4x(seed, offset)
    tl.store(bits_ptr + offset, first)
    tl.store(bits_ptr + N + offset, second)
    tl.store(normal_ptr + offset, tl.randn(seed, offset))
    first, second, _, _ = tl.philox(seed, offset, stream, 0, 0)
    tl.store(words_ptr + offset, first)
    tl.store(words_ptr + N + offset, second)


def main(path: str, seed: int, stream: int, count: int) -> None:
    bits, words = torch.zeros(2, 2, count, dtype=torch.int32)
    normal = torch.zeros(count)
    draw[(1,)](bits, words, normal, seed, stream, N=count)
    np.savez(path, bits=bits.numpy(), words=words.numpy(), normal=normal.numpy())


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))

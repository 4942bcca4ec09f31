"""Draws noise on Triton's interpreter: with Triton's own generator and with our kernels. Run as a script.

Arguments: the output file, then cases ``seed:stream:count``. A process of its own, because whether kernels are interpreted
is decided when they are made.
"""

import os
import sys

os.environ["TRITON_INTERPRET"] = "1"

import numpy as np
import torch
import triton
import triton.language as tl

from lotts.kernels.philox_normal.triton import launch, philox_words


@triton.jit
def draw(p_words, p_ours, p_normal, seed, stream, N: tl.constexpr):
    """[N, 4] words at counter (j, stream, 0, 0), Triton's and ours, and [N, 4] numbers of randn4x, whose stream is 0."""
    o_call = tl.arange(0, N)
    words = tl.philox(seed, o_call, stream.to(tl.uint32), 0, 0)
    ours = philox_words(seed, o_call, stream)
    normals = tl.randn4x(seed, o_call)
    for w in tl.static_range(4):
        tl.store(p_words + o_call * 4 + w, words[w].to(tl.int32, bitcast=True))
        tl.store(p_ours + o_call * 4 + w, ours[w].to(tl.int32, bitcast=True))
        tl.store(p_normal + o_call * 4 + w, normals[w])


def main(path: str, cases: list[str]) -> None:
    found = {}
    for case in cases:
        seed, stream, count = map(int, case.split(":"))
        calls = triton.next_power_of_2((count + 3) // 4)
        words, ours = torch.zeros(2, calls, 4, dtype=torch.int32)
        normal = torch.zeros(calls, 4)
        draw[(1,)](words, ours, normal, seed, stream, N=calls)
        found[f"{case}:ours"] = ours.numpy()
        found[f"{case}:words"], found[f"{case}:randn4x"] = words.numpy(), normal.numpy().reshape(-1)[:count]
        found[f"{case}:kernel"] = launch(torch.tensor([seed]), count, stream)[0].numpy()
    np.savez(path, **found)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])

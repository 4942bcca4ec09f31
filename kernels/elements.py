"""What the element-wise kernels share: the way through strided samples, and the arithmetic that must agree bit for bit."""

import triton
import triton.language as tl
from torch import Tensor

MOST_DIMS = 4


def merge_dims(*samples: Tensor) -> tuple[list[int], list[list[int]]]:
    """Sizes and, for each tensor, strides of the same elements in as few dims as they allow, padded to ``MOST_DIMS``.

    Args:
        samples: tensors of one shape, expanded where they broadcast; the first dim, the batch, is left out.

    Raises:
        ValueError: more than ``MOST_DIMS`` dims remain.
    """
    sizes: list[int] = []
    strides: list[list[int]] = [[] for _ in samples]
    for dim in range(1, samples[0].ndim):
        size = samples[0].shape[dim]
        inner = [sample.stride(dim) for sample in samples]
        if size == 1:
            continue
        if sizes and all(outer[-1] == step * size for outer, step in zip(strides, inner, strict=True)):
            sizes[-1] *= size
            for outer, step in zip(strides, inner, strict=True):
                outer[-1] = step
        else:
            sizes.append(size)
            for outer, step in zip(strides, inner, strict=True):
                outer.append(step)
    missing = MOST_DIMS - len(sizes)
    if missing < 0:
        raise ValueError(
            f"impl='triton': expected samples whose strides let them merge to at most {MOST_DIMS} dims, got "
            f"{len(sizes)} of the shape {list(samples[0].shape[1:])}; make them contiguous"
        )
    return [1] * missing + sizes, [[0] * missing + steps for steps in strides]


@triton.jit
def coordinates(o_n, SIZE_1, SIZE_2, SIZE_3):
    """Coordinates of elements numbered row-major (uint32: a sample may have 2**32 - 1), as int64 to multiply strides."""
    size_1, size_2, size_3 = tl.cast(SIZE_1, tl.uint32), tl.cast(SIZE_2, tl.uint32), tl.cast(SIZE_3, tl.uint32)
    o_2 = o_n // size_3
    o_1 = o_2 // size_2
    o_0 = o_1 // size_1
    return o_0.to(tl.int64), (o_1 % size_1).to(tl.int64), (o_2 % size_2).to(tl.int64), (o_n % size_3).to(tl.int64)


@triton.jit
def load_factor(p_each, number, i_b):
    """The factor of sample ``i_b``: its own from device memory, or the number for all."""
    if p_each is None:
        return number
    else:
        return tl.load(p_each + i_b)


@triton.jit
def scaled_sum(a, b_x, b, b_y):
    """a x + b y. An explicit fma: left to the compiler, two kernels could contract it in two ways and differ."""
    return tl.fma(a, b_x, b * b_y)


@triton.jit
def masked_blend(b_mask, b_inside, b_outside):
    """At 0 and 1 exactly one side, whatever the other is, even if it is not finite."""
    b_mixed = tl.fma(b_mask, b_inside, (1.0 - b_mask) * b_outside)
    return tl.where(b_mask == 0.0, b_outside, tl.where(b_mask == 1.0, b_inside, b_mixed))

"""The public op: checks its arguments, then hands them to the implementation that ``impl`` names."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lotts.kernels import dispatch, validate
from lotts.kernels.propagate_attention.op import propagate_attention as fused
from lotts.kernels.propagate_attention.portable import propagate_attention as portable
from lotts.kernels.propagate_attention.probes import checked_probes
from lotts.kernels.propagate_attention.reference import propagate_attention as reference

dispatch.register("propagate_attention", triton=fused, portable=portable, reference=reference)

#: The most columns one call carries: beside V they stay a small extra product.
MAX_COLUMNS = 16


def propagate_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    columns: Tensor,
    *,
    key_mask: Tensor | None = None,
    probe_sizes: Sequence[int] = (),
    probe_start: int | None = None,
    context: tuple[int, int] | None = None,
    scale: float | None = None,
    rows: tuple[int, int] | None = None,
    accumulate: Tensor | None = None,
    impl: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Attention, and the same attention applied to a few extra columns: ``softmax(QK^T) V`` and ``softmax(QK^T) W``.

    With a cross-attention map as the column, the result is that map propagated along self-attention.

    The joint form is for transformers in which text and image tokens attend to one another. The sequence may then hold, in
    one place, groups of probe tokens: words of other prompts that attend to their own group and to the context (the
    image), and to which nothing attends. The other tokens' results are those of the sequence without probes.

    Args:
        query: [B, H, N, D], float16, bfloat16, float32 or float64.
        key: [B, H, M, D], M at least 1.
        value: [B, H, M, Dv].
        columns: [R, M, C], shared by the heads, or [R, H, M, C], of the rows that make maps; float32, C from 1 to 16.
            Weights on text tokens make cross-attention maps, a map on image tokens is propagated.
        key_mask: [B or 1, M], bool: the keys that may be attended to; None means all. Rows that see no key give 0.
        probe_sizes: number of tokens of each of G probe groups, which follow one another; N and M are then equal.
        probe_start: position of the first probe token.
        context: positions [from, to) of the keys that all groups see, none of them a probe.
        scale: factor on the scores; None means 1 / sqrt(D).
        rows: those of the batch that make maps, [from, to), R of them; None means all. The others get their output alone.
            Not with probes.
        accumulate: float32, the shape of the maps: they are added to it in place, without gradients,
            and it is returned as the maps.
        impl: ``"triton"`` (on a GPU), ``"portable"`` or ``"reference"``; None means the first that can run.

    Returns:
        The output [B, H, N, Dv] in the dtype of ``value``, and maps [R, H, N, C + G] in float32. The first C columns lie
        within the range of their column. Then comes, for each probe group, the mass that a row would give to the group
        if it saw the group and the context alone, in [0, 1] and accurate relative to its size; 0 in probe rows, and 1 where
        the row's attention to the context is 0 in float32.
        float64 queries take float64 columns and return float64 maps.

        With ``"portable"`` the output is a view of a wider tensor. Zero padding adds nothing to a score, and on the
        CPUs tried (x86 with AVX-512 and with AVX2) the output is plain attention's bit for bit; where a matrix
        product sums in another order at another width, it can differ by rounding.

    Source: paper, "Context-aware propagation" (CA' = SA CA).

    Raises:
        TypeError: an argument is not a tensor, or has another dtype.
        ValueError: a shape or device does not match.
        RuntimeError: ``impl`` is not available.
    """
    sizes: dict[str, int] = {}
    validate.has_shape("query", query, "B H N D", sizes)
    validate.has_shape("key", key, "B H M D", sizes)
    validate.has_shape("value", value, "B H M Dv", sizes)
    rows = validate.checked_rows(rows, sizes["B"])
    sizes["R"] = rows[1] - rows[0]
    if isinstance(columns, Tensor) and columns.ndim == 3:
        validate.has_shape("columns", columns, "R M C", sizes)
        columns = columns.unsqueeze(1)
    else:
        validate.has_shape("columns", columns, "R H M C", sizes)
    validate.at_least("D", sizes["D"], 1)
    validate.at_least("M", sizes["M"], 1)
    if not 1 <= sizes["C"] <= MAX_COLUMNS:
        raise ValueError(f"columns: expected 1 to {MAX_COLUMNS} columns, got {sizes['C']}")
    validate.has_dtype("query", query, *validate.FLOATING)
    validate.has_dtype("key", key, query.dtype)
    validate.has_dtype("value", value, query.dtype)
    validate.has_dtype("columns", columns, validate.map_dtype(query))
    validate.on_device(query.device, key=key, value=value, columns=columns)
    if key_mask is not None:
        validate.has_shape("key_mask", key_mask, "B|1 M", sizes)
        validate.has_dtype("key_mask", key_mask, torch.bool)
        validate.on_device(query.device, key_mask=key_mask)
    probes = checked_probes(probe_sizes, probe_start, context, sizes["N"], sizes["M"])
    if probes is not None and sizes["R"] != sizes["B"]:
        raise ValueError(f"rows: expected all {sizes['B']} where there are probes, got {list(rows)}")
    if accumulate is not None:
        validate.is_accumulator("accumulate", accumulate, query[rows[0] : rows[1]], sizes["C"] + len(probe_sizes))
    run = dispatch.select("propagate_attention", impl, query.device, query.dtype)
    return run(query, key, value, columns, key_mask, probes, scale, rows, accumulate)

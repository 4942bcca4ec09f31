"""The public op: checks its arguments, then hands them to the implementation that ``impl`` names."""

import torch
from torch import Tensor

from lotts.kernels import dispatch, validate
from lotts.kernels.contrast_attention.op import contrast_attention as fused
from lotts.kernels.contrast_attention.portable import contrast_attention as portable
from lotts.kernels.contrast_attention.reference import contrast_attention as reference

dispatch.register("contrast_attention", triton=fused, portable=portable, reference=reference)


def contrast_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    weight: Tensor | None = None,
    *,
    key_pos: Tensor | None = None,
    weight_pos: Tensor | None = None,
    key_neg: Tensor | None = None,
    weight_neg: Tensor | None = None,
    key_mask: Tensor | None = None,
    scale: float | None = None,
    rows: tuple[int, int] | None = None,
    accumulate: Tensor | None = None,
    impl: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Cross-attention, and the attention mass that each query gives to weighted tokens of up to three prompts.

    The first prompt makes the output as always. The positive and the negative quality prompt are only looked at:
    each has its own keys and its own softmax, and no values.

    Args:
        query: [B, H, N, D], float16, bfloat16, float32 or float64.
        key: [B, H, L, D], L at least 1.
        value: [B, H, L, Dv].
        weight: [R or 1, L, C] or [L, C], float32: C weightings of the L tokens, one map each. None means C = 0.
        key_pos: [R or 1, H, Lp, D], keys of the positive prompt.
        weight_pos: [R or 1, Lp], float32, weights of its tokens.
        key_neg: [R or 1, H, Ln, D], keys of the negative prompt.
        weight_neg: [R or 1, Ln], float32.
        key_mask: [B or 1, L], bool: the tokens of ``key`` that may be attended to; None means all. With no token left,
            output and columns are 0.
        scale: factor on the scores; None means 1 / sqrt(D).
        rows: those of the batch that make maps, [from, to), R of them; None means all. The others get their output alone.
        accumulate: float32, the shape of the maps: they are added to it in place, without gradients,
            and it is returned as the maps.
        impl: ``"triton"`` (on a GPU), ``"portable"`` or ``"reference"``; None means the first that can run.

    Returns:
        The output [B, H, N, Dv] in the dtype of ``value``, and maps [R, H, N, C (+1) (+1)] in float32: the C columns
        ``softmax(QK^T) @ weight``, then the mass under the positive prompt, then under the negative, where given.
        Weights in [0, 1] give maps in [0, 1], accurate relative to their own size however small. float64 queries take
        float64 weights and return float64 maps.

    Source: paper, "Cross-attention extraction" (CA_orig, CA_pos, CA_neg).

    Raises:
        TypeError: an argument is not a tensor, or has another dtype.
        ValueError: a shape or device does not match, or keys came without weights or weights without keys.
        RuntimeError: ``impl`` is not available.
    """
    sizes: dict[str, int] = {}
    validate.has_shape("query", query, "B H N D", sizes)
    validate.has_shape("key", key, "B H L D", sizes)
    validate.has_shape("value", value, "B H L Dv", sizes)
    validate.at_least("D", sizes["D"], 1)
    validate.at_least("L", sizes["L"], 1)
    validate.has_dtype("query", query, *validate.FLOATING)
    validate.has_dtype("key", key, query.dtype)
    validate.has_dtype("value", value, query.dtype)
    validate.on_device(query.device, key=key, value=value)

    rows = validate.checked_rows(rows, sizes["B"])
    sizes["R"] = rows[1] - rows[0]
    columns = 0
    if weight is not None:
        if isinstance(weight, Tensor) and weight.ndim == 2:
            weight = weight.unsqueeze(0)
        validate.has_shape("weight", weight, "R|1 L C", sizes)
        _check_pair("weight", query, key, weight)
        columns = sizes["C"]
    probes: list[tuple[Tensor, Tensor] | None] = []
    for side, side_key, side_weight in (("pos", key_pos, weight_pos), ("neg", key_neg, weight_neg)):
        if side_key is None and side_weight is None:
            probes.append(None)
            continue
        if side_key is None or side_weight is None:
            given, missing = ("weight", "key") if side_key is None else ("key", "weight")
            raise ValueError(f"{missing}_{side}: expected a tensor to go with {given}_{side}, got None")
        validate.has_shape(f"key_{side}", side_key, f"R|1 H L{side} D", sizes)
        validate.has_shape(f"weight_{side}", side_weight, f"R|1 L{side}", sizes)
        validate.at_least(f"L{side}", sizes[f"L{side}"], 1)
        _check_pair(f"weight_{side}", query, side_key, side_weight)
        probes.append((side_key, side_weight))
        columns += 1
    if key_mask is not None:
        validate.has_shape("key_mask", key_mask, "B|1 L", sizes)
        validate.has_dtype("key_mask", key_mask, torch.bool)
        validate.on_device(query.device, key_mask=key_mask)
    if accumulate is not None:
        validate.is_accumulator("accumulate", accumulate, query[rows[0] : rows[1]], columns)
    run = dispatch.select("contrast_attention", impl, query.device, query.dtype)
    return run(query, key, value, weight, *probes, key_mask, scale, rows, accumulate)


def _check_pair(name: str, query: Tensor, key: Tensor, weight: Tensor) -> None:
    validate.has_dtype(name, weight, validate.map_dtype(query))
    validate.has_dtype(name.replace("weight", "key"), key, query.dtype)
    validate.on_device(query.device, **{name: weight, name.replace("weight", "key"): key})

"""The public op: checks its arguments, then hands them to the implementation that ``impl`` names."""

from torch import Tensor

from lotts.kernels import dispatch, validate
from lotts.kernels.region_attention.op import region_attention as fused
from lotts.kernels.region_attention.portable import region_attention as portable
from lotts.kernels.region_attention.reference import region_attention as reference

dispatch.register("region_attention", triton=fused, portable=portable, reference=reference)


def region_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    stored_key: Tensor,
    stored_value: Tensor,
    *,
    scale: float | None = None,
    impl: str | None = None,
) -> Tensor:
    """``softmax(Q [K, K']^T) [V, V']``: keys and values in two pieces, which need not lie together in memory.

    For tokens that are computed in this step (a region's, and the text's) beside keys and values of the others, stored
    at an earlier one.

    Args:
        query: [B, H, N, D], float16, bfloat16, float32 or float64.
        key: [B, H, F, D], fresh keys; F may be 0 if M is not.
        value: [B, H, F, Dv].
        stored_key: [B or 1, H, M, D]; M may be 0 if F is not. One entry serves the whole batch: refinements of one picture.
        stored_value: [B or 1, H, M, Dv].
        scale: factor on the scores; None means 1 / sqrt(D).
        impl: ``"triton"`` (on a GPU), ``"portable"`` or ``"reference"``; None means the first that can run.

    Returns:
        [B, H, N, Dv] in the dtype of ``value``.

    Raises:
        TypeError: an argument is not a tensor, or has another dtype.
        ValueError: a shape or device does not match, or there is no key at all.
        RuntimeError: ``impl`` is not available.
    """
    sizes: dict[str, int] = {}
    validate.has_shape("query", query, "B H N D", sizes)
    validate.has_shape("key", key, "B H F D", sizes)
    validate.has_shape("value", value, "B H F Dv", sizes)
    validate.has_shape("stored_key", stored_key, "B|1 H M D", sizes)
    validate.has_shape("stored_value", stored_value, "B|1 H M Dv", sizes)
    validate.at_least("D", sizes["D"], 1)
    validate.at_least("F + M", sizes["F"] + sizes["M"], 1)
    validate.has_dtype("query", query, *validate.FLOATING)
    others = {"key": key, "value": value, "stored_key": stored_key, "stored_value": stored_value}
    for name, tensor in others.items():
        validate.has_dtype(name, tensor, query.dtype)
    validate.on_device(query.device, **others)
    run = dispatch.select("region_attention", impl, query.device, query.dtype)
    return run(query, key, value, stored_key, stored_value, scale)

"""The public op: checks its arguments, then hands them to the implementation that ``impl`` names."""

from torch import Tensor

from lotts.kernels import dispatch, validate
from lotts.kernels.propagate_attention.portable import propagate_attention as portable
from lotts.kernels.propagate_attention.reference import propagate_attention as reference

dispatch.register("propagate_attention", portable=portable, reference=reference)

#: The most columns one call carries: beside V they stay a small extra product.
MAX_COLUMNS = 16


def propagate_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    columns: Tensor,
    *,
    scale: float | None = None,
    impl: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Attention, and the same attention applied to a few extra columns: ``softmax(QK^T) V`` and ``softmax(QK^T) W``.

    With a cross-attention map as the column, the result is that map propagated along self-attention.

    Args:
        query: [B, H, N, D], float16, bfloat16, float32 or float64.
        key: [B, H, M, D], M at least 1.
        value: [B, H, M, Dv].
        columns: [B, M, C], shared by the heads, or [B, H, M, C]; float32, C from 1 to 16.
        scale: factor on the scores; None means 1 / sqrt(D).
        impl: ``"portable"`` or ``"reference"``; None means ``"portable"``.

    Returns:
        The output [B, H, N, Dv] in the dtype of ``value``, and maps [B, H, N, C] in float32, each value within the
        range of its column. float64 queries take float64 columns and return float64 maps.

        With ``"portable"`` the output is a view of a wider tensor. Zero padding adds nothing to a score, and on the
        CPU tried (x86 with AVX-512, 648 shapes and dtypes) the output is plain attention's bit for bit; where a matrix
        product sums in another order at another width, it can differ by rounding.

    Raises:
        TypeError: an argument is not a tensor, or has another dtype.
        ValueError: a shape or device does not match.
        RuntimeError: ``impl`` is not available.
    """
    sizes: dict[str, int] = {}
    validate.has_shape("query", query, "B H N D", sizes)
    validate.has_shape("key", key, "B H M D", sizes)
    validate.has_shape("value", value, "B H M Dv", sizes)
    if isinstance(columns, Tensor) and columns.ndim == 3:
        validate.has_shape("columns", columns, "B M C", sizes)
        columns = columns.unsqueeze(1)
    else:
        validate.has_shape("columns", columns, "B H M C", sizes)
    validate.at_least("D", sizes["D"], 1)
    validate.at_least("M", sizes["M"], 1)
    if not 1 <= sizes["C"] <= MAX_COLUMNS:
        raise ValueError(f"columns: expected 1 to {MAX_COLUMNS} columns, got {sizes['C']}")
    validate.has_dtype("query", query, *validate.FLOATING)
    validate.has_dtype("key", key, query.dtype)
    validate.has_dtype("value", value, query.dtype)
    validate.has_dtype("columns", columns, validate.map_dtype(query))
    validate.on_device(query.device, key=key, value=value, columns=columns)
    return dispatch.select("propagate_attention", impl)(query, key, value, columns, scale)

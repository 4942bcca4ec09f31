"""contrast_attention in plain torch: the stock attention call, and maps from small blocks of the attention matrix.

Prompts are short, so a block of queries against a whole prompt fits the cache and its softmax needs no second pass.
The maps could ride through the attention call as extra value channels, which on a CPU costs less than the blocks do.
But float16 and bfloat16 would then round the probabilities, and the difference of a positive and a negative mass is
far smaller than the masses; the blocks are float32 whatever the inputs are.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from lotts.kernels.stock import stock_attention
from lotts.kernels.validate import map_dtype

# Scores of one block: small enough for a core's L2 on a CPU, large enough to fill an accelerator elsewhere. The softmax
# of the block makes a second one of the same size.
_BLOCK_BYTES_CPU = 1 << 20
_BLOCK_BYTES = 8 << 20

# Matrix products are about a fifth faster on prompts padded to whole vectors of 16 floats (77 tokens to 80).
_VECTOR = 16


def contrast_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    weight: Tensor | None,
    positive: tuple[Tensor, Tensor] | None,
    negative: tuple[Tensor, Tensor] | None,
    key_mask: Tensor | None,
    scale: float | None,
    rows: tuple[int, int],
    accumulate: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Output [B, H, N, Dv] and maps [R, H, N, C (+1) (+1)] of ``rows``; ``positive`` and ``negative`` are (keys, weights [R or 1, L])."""
    seen = None if key_mask is None else key_mask[:, None, None, :]
    # The call that diffusers' attention processors make, argument for argument, so that the output is theirs bit for bit.
    out = stock_attention(query, key, value, attn_mask=seen, dropout_p=0.0, is_causal=False, scale=scale)
    if seen is not None:
        out = out.masked_fill(~seen.any(-1, keepdim=True), 0.0)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    # From here on, the rows that make maps.
    query, key = query[rows[0] : rows[1]], key[rows[0] : rows[1]]
    if key_mask is not None and len(key_mask) > 1:
        key_mask = key_mask[rows[0] : rows[1]]
    groups = [] if weight is None else [(key, weight, key_mask)]
    groups += [(probe[0], probe[1].unsqueeze(-1), None) for probe in (positive, negative) if probe is not None]
    if not groups or query.numel() == 0:
        columns = sum(weights.shape[-1] for _, weights, _ in groups)
        maps = query.new_zeros((*query.shape[:-1], columns), dtype=map_dtype(query))
    else:
        maps = torch.cat([_token_mass(query, *group, scale) for group in groups], dim=-1)
    return out, maps if accumulate is None else accumulate.add_(maps.detach())


def _token_mass(query: Tensor, key: Tensor, weight: Tensor, key_mask: Tensor | None, scale: float) -> Tensor:
    """softmax(QK^T) @ weight, [B, H, N, C], without the [B, H, N, L] attention matrix."""
    batch, heads = query.shape[:2]
    length = key.shape[2]
    work = map_dtype(query)
    padded = -(-length // _VECTOR) * _VECTOR
    # [B, H, D, padded] and [B, C, padded]
    keys = F.pad(key.to(work).transpose(2, 3) * scale, (0, padded - length)).expand(batch, -1, -1, -1)
    weights = F.pad(weight.transpose(1, 2), (0, padded - length)).expand(batch, -1, -1)
    hidden = None if key_mask is None else F.pad(~key_mask, (0, padded - length), value=True).expand(batch, -1)

    block_bytes = _BLOCK_BYTES_CPU if query.device.type == "cpu" else _BLOCK_BYTES
    rows = max(1, block_bytes // (heads * padded * work.itemsize))

    def mass(block: Tensor, sample: int) -> Tensor:
        """[H, rows, D] -> [H, rows, C]."""
        scores = torch.bmm(block.to(work), keys[sample])
        if hidden is not None:
            scores.masked_fill_(hidden[sample], -torch.inf)
        elif padded > length:
            scores[..., length:] = -torch.inf
        probabilities = torch.softmax(scores, dim=-1)
        if hidden is not None:
            probabilities = probabilities.masked_fill(hidden[sample], 0.0)  # a row with nothing to see is NaN before
        # linear, not matmul: with few columns, weights laid out along the tokens are several times faster.
        return F.linear(probabilities, weights[sample])

    return torch.stack([torch.cat([mass(b, i) for b in query[i].split(rows, dim=1)], dim=1) for i in range(batch)])

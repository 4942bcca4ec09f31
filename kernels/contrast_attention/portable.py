"""contrast_attention in plain torch: the stock attention call, and maps from small blocks of the attention matrix.

Prompts are short, so a block of queries against a whole prompt fits the cache and its softmax needs no second pass.
The maps could ride through the attention call as extra value channels, which on a CPU costs less than the blocks do.
But float16 and bfloat16 would then round the probabilities, and the difference of a positive and a negative mass is
far smaller than the masses; the blocks are float32 whatever the inputs are.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from lotts.kernels.validate import map_dtype

# Scores of one block: small enough for a core's L2 on a CPU, large enough to fill an accelerator elsewhere. The softmax
# of the block makes a second one of the same size.
_BLOCK_BYTES_CPU = 1 << 20
_BLOCK_BYTES = 8 << 20

# Matrix products are about a fifth faster on prompts padded to whole vectors of 16 floats (77 tokens to 80).
_VECTOR = 16


def contrast_attention(
    query: Tensor, key: Tensor, value: Tensor, groups: list[tuple[Tensor, Tensor]], scale: float | None
) -> tuple[Tensor, Tensor]:
    """Output [B, H, N, Dv] and maps [B, H, N, sum of C]; ``groups`` holds (keys, weights [B or 1, L, C]) in map order."""
    # The call that diffusers' attention processors make, argument for argument, so that the output is theirs bit for bit.
    out = F.scaled_dot_product_attention(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=scale)
    if not groups or query.numel() == 0:
        columns = sum(weights.shape[-1] for _, weights in groups)
        return out, query.new_zeros((*query.shape[:-1], columns), dtype=map_dtype(query))
    maps = [_token_mass(query, keys, weights, scale) for keys, weights in groups]
    return out, maps[0] if len(maps) == 1 else torch.cat(maps, dim=-1)


def _token_mass(query: Tensor, key: Tensor, weight: Tensor, scale: float | None) -> Tensor:
    """softmax(QK^T) @ weight, [B, H, N, C], without the [B, H, N, L] attention matrix."""
    batch, heads, _, dim = query.shape
    length = key.shape[2]
    work = map_dtype(query)
    padded = -(-length // _VECTOR) * _VECTOR
    scaled = key.to(work) * (dim**-0.5 if scale is None else scale)
    # [B, H, D, padded] and [B, C, padded]
    keys = F.pad(scaled.transpose(2, 3), (0, padded - length)).expand(batch, -1, -1, -1)
    weights = F.pad(weight.transpose(1, 2), (0, padded - length)).expand(batch, -1, -1)

    block_bytes = _BLOCK_BYTES_CPU if query.device.type == "cpu" else _BLOCK_BYTES
    rows = max(1, block_bytes // (heads * padded * work.itemsize))

    def mass(block: Tensor, sample: int) -> Tensor:
        """[H, rows, D] -> [H, rows, C]."""
        scores = torch.bmm(block.to(work), keys[sample])
        if padded > length:
            scores[..., length:] = -torch.inf
        # linear, not matmul: with few columns, weights laid out along the tokens are several times faster.
        return F.linear(torch.softmax(scores, dim=-1), weights[sample])

    return torch.stack([torch.cat([mass(b, i) for b in query[i].split(rows, dim=1)], dim=1) for i in range(batch)])

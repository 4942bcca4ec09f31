import pytest
import torch

from lotts.kernels import contrast_attention


def bad(message, error=ValueError, **changes):
    return pytest.param(changes, error, message, id=message)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        bad(r"query: expected a torch.Tensor, got list", TypeError, query=[1.0]),
        bad(r"query: expected shape \[B, H, N, D\], got \[2, 64\]", query=torch.zeros(2, 64)),
        bad(
            r"key: expected shape \[B, H, L, D\] with B=2, H=3, D=64, got \[2, 3, 77, 40\]",
            key=torch.zeros(2, 3, 77, 40),
        ),
        bad(r"value: expected shape .* with B=2, H=3, L=77, got", value=torch.zeros(2, 3, 76, 64)),
        bad(r"L: expected at least 1, got 0", key=torch.zeros(2, 3, 0, 64), value=torch.zeros(2, 3, 0, 64)),
        bad(r"query: expected dtype .*, got torch.int64", TypeError, query=torch.zeros(2, 3, 5, 64, dtype=torch.int64)),
        bad(
            r"key: expected dtype torch.float32, got torch.float16",
            TypeError,
            key=torch.zeros(2, 3, 77, 64, dtype=torch.float16),
        ),
        bad(r"rows: expected \[from, to\) within the 2 of the batch, at least one, got \[1, 3\]", rows=(1, 3)),
        bad(r"weight: expected shape \[R\|1, L, C\] with R=2, L=77, got \[1, 78, 1\]", weight=torch.zeros(78, 1)),
        bad(
            r"weight: expected dtype torch.float32, got torch.bfloat16",
            TypeError,
            weight=torch.zeros(77, 1, dtype=torch.bfloat16),
        ),
        bad(r"weight_pos: expected a tensor to go with key_pos, got None", weight_pos=None),
        bad(r"key_neg: expected a tensor to go with weight_neg, got None", key_neg=None),
        bad(r"weight_pos: expected shape \[R\|1, Lpos\] with R=2, Lpos=77, got \[2, 3\]", weight_pos=torch.zeros(2, 3)),
        bad(r"key: expected device (cpu|cuda:0), got meta", key=torch.zeros(2, 3, 77, 64, device="meta")),
    ],
)
def test_wrong_arguments_are_refused(arguments, changes, error, message):
    args, sides = arguments()
    everything = dict(zip(("query", "key", "value", "weight"), args, strict=True)) | sides | changes
    with pytest.raises(error, match=message):
        contrast_attention(**everything)

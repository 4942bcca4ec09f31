"""What is measured on a GPU: what a case is, and those of attention; the others are in ``latent_cases``."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

import lotts.kernels
from bench import baselines
from bench.accuracy import Check, compare

Call = Callable[[], Any]
Inputs = dict[str, Any]

#: Map-free attention: what PyTorch's own kernels take for the output alone.
MAP_FREE = {"sdpa_flash": SDPBackend.FLASH_ATTENTION, "sdpa_cudnn": SDPBackend.CUDNN_ATTENTION}
#: Rows and heads of a large attention that are compared with float64.
CHECKED_ROWS = 512


@dataclass(frozen=True)
class Case:
    """One op at one shape. ``core`` cases are those of the targets, and all that ``--quick`` runs."""

    op: str
    model: str
    pixels: int
    batch: int
    dtype: torch.dtype
    core: bool

    def shape(self) -> dict[str, Any]:
        """Sizes, for the record."""
        raise NotImplementedError

    def inputs(self, device: str) -> Inputs:
        """Keyword arguments of the op, the same ones each time."""
        raise NotImplementedError

    def ours(self, inputs: Inputs, impl: str | None = None) -> Any:
        return getattr(lotts.kernels, self.op)(**inputs, impl=impl)

    def formula(self) -> Callable[..., Any]:
        """The eager baseline, which takes the same keyword arguments."""
        return getattr(baselines, self.op)

    def rivals(self, inputs: Inputs) -> dict[str, Call]:
        """Calls that are not the op's own implementations, by name."""
        return {}

    def check(self, inputs: Inputs, result: Any) -> list[Check]:
        """Whether ``result``, made from ``inputs`` by any implementation, is right."""
        raise NotImplementedError

    def flops(self) -> int:
        """Multiplications and additions of the matrix products, the maps' included."""
        return 0

    def traffic(self, inputs: Inputs, result: Any) -> int:
        """Bytes that must move once: all that is read, and all that is written."""
        return _bytes(inputs.values()) + _bytes(result if isinstance(result, tuple) else (result,))

    @property
    def name(self) -> str:
        sizes = " ".join(f"{key}={value}" for key, value in self.shape().items())
        return f"{self.op} {self.model} {self.pixels}px {sizes}"


def _bytes(values: Any) -> int:
    return sum(value.nbytes for value in values if torch.is_tensor(value))


class Maker:
    """Tensors from one seeded stream, made on the CPU so that every machine measures the same numbers."""

    def __init__(self, device: str, dtype: torch.dtype) -> None:
        self.device, self.dtype, self.generator = device, dtype, torch.Generator().manual_seed(0)

    def heads(self, batch: int, heads: int, tokens: int, dim: int) -> Tensor:
        """[B, H, N, D] as attention layers have it: a view of [B, N, H, D]."""
        made = torch.randn(batch, tokens, heads, dim, generator=self.generator)
        return made.to(self.device, self.dtype).transpose(1, 2)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator).to(self.device, self.dtype)

    def uniform(self, *shape: int) -> Tensor:
        return torch.rand(shape, generator=self.generator).to(self.device)


@dataclass(frozen=True)
class AttentionCase(Case):
    """Attention of ``rows`` image tokens, with maps; under ``probes`` after ``text`` tokens and the probes."""

    heads: int
    rows: int
    dim: int
    text: int = 77
    columns: int = 1
    probes: tuple[int, ...] = ()

    def shape(self) -> dict[str, Any]:
        return {"B": self.batch, "H": self.heads, "N": self.queries, "M": self.keys, "D": self.dim}

    @property
    def joint(self) -> bool:
        return bool(self.probes)

    @property
    def queries(self) -> int:
        return self.rows + (self.text + sum(self.probes) if self.joint else 0)

    @property
    def keys(self) -> int:
        return self.text if self.op == "contrast_attention" else self.queries

    def inputs(self, device: str) -> Inputs:
        make = Maker(device, self.dtype)
        made: Inputs = {
            "query": make.heads(self.batch, self.heads, self.queries, self.dim),
            "key": make.heads(self.batch, self.heads, self.keys, self.dim),
            "value": make.heads(self.batch, self.heads, self.keys, self.dim),
        }
        if self.op == "contrast_attention":
            made["weight"] = make.uniform(self.batch, self.keys, self.columns).round()
            for side in ("pos", "neg"):
                made[f"key_{side}"] = make.heads(self.batch, self.heads, self.keys, self.dim)
                made[f"weight_{side}"] = make.uniform(self.batch, self.keys).round()
            return made
        made["columns"] = make.uniform(self.batch, self.keys, self.columns)
        if self.joint:
            stop = self.text + sum(self.probes)
            made |= {"probe_sizes": self.probes, "probe_start": self.text, "context": (stop, self.queries)}
        return made

    def rivals(self, inputs: Inputs) -> dict[str, Call]:
        query, key, value = (self._without_probes(inputs[name]) for name in ("query", "key", "value"))

        def attention(backend: SDPBackend) -> Call:
            def call() -> Tensor:
                with sdpa_kernel(backend):
                    return F.scaled_dot_product_attention(query, key, value)

            return call

        # Named for how it makes the maps: columns beside V, or, where prompts are short, blocks of the attention matrix.
        calls = {name: attention(backend) for name, backend in MAP_FREE.items()}
        return {**calls, "portable": lambda: self.ours(inputs, impl="portable")}

    def _without_probes(self, tokens: Tensor) -> Tensor:
        """The tokens that a run without maps would have; laid out as the run would have them."""
        if not self.joint:
            return tokens
        kept = [tokens[:, :, : self.text], tokens[:, :, self.text + sum(self.probes) :]]
        return torch.cat([part.transpose(1, 2) for part in kept], dim=1).transpose(1, 2)

    def check(self, inputs: Inputs, result: Any) -> list[Check]:
        # The first and the last head; of long sequences, rows at even distances. Rows of a softmax do not depend on one
        # another, but a joint sequence has its probes in fixed places, so there all rows are compared.
        heads = slice(None, None, max(1, self.heads - 1))
        step = 1 if self.joint else max(1, self.queries // CHECKED_ROWS)
        rows = slice((self.queries - 1) % step, None, step)
        part = {name: a[:, heads] if torch.is_tensor(a) and a.ndim == 4 else a for name, a in inputs.items()}
        part["query"] = part["query"][:, :, rows]
        wide = {name: a.double() if torch.is_tensor(a) else a for name, a in part.items()}
        truth = getattr(lotts.kernels, self.op)(**wide, impl="reference")
        eager = self.formula()(**part)
        epsilon = torch.finfo(self.dtype).eps
        map_bound = 1e-6 if self.op == "contrast_attention" else max(1e-6, epsilon / 2)
        bounds = {"output": max(1e-6, 2 * epsilon), "maps": map_bound}
        return [
            compare(name, mine[:, heads][:, :, rows], theirs, true, bounds[name])
            for name, mine, theirs, true in zip(bounds, result, eager, truth, strict=True)
        ]

    def flops(self) -> int:
        pairs = self.batch * self.heads * self.queries * self.keys
        if self.op == "contrast_attention":
            return 2 * pairs * (4 * self.dim + self.columns + 2)
        return 2 * pairs * (2 * self.dim + self.columns)

    def plain_flops(self, inputs: Inputs) -> int:
        """Multiplications and additions of attention without maps."""
        queries, keys = (self._without_probes(inputs[name]).shape[2] for name in ("query", "key"))
        return 4 * self.batch * self.heads * queries * keys * self.dim

    def plain_traffic(self, inputs: Inputs) -> int:
        """Bytes that attention without maps must move."""
        tensors = [self._without_probes(inputs[name]) for name in ("query", "key", "value", "query")]
        return _bytes(tensors)


@dataclass(frozen=True)
class RegionCase(Case):
    """Attention of ``rows`` tokens over as many fresh keys and ``stored`` ones."""

    heads: int
    rows: int
    stored: int
    dim: int

    def shape(self) -> dict[str, Any]:
        return {"B": self.batch, "H": self.heads, "N": self.rows, "M": self.keys, "D": self.dim}

    @property
    def keys(self) -> int:
        return self.rows + self.stored

    def inputs(self, device: str) -> Inputs:
        make = Maker(device, self.dtype)
        lengths = {"query": self.rows, "key": self.rows, "value": self.rows}
        lengths |= {"stored_key": self.stored, "stored_value": self.stored}
        return {name: make.heads(self.batch, self.heads, length, self.dim) for name, length in lengths.items()}

    def check(self, inputs: Inputs, result: Any) -> list[Check]:
        heads, rows = slice(None, None, max(1, self.heads - 1)), slice(None, None, max(1, self.rows // CHECKED_ROWS))
        part = {name: tensor[:, heads] for name, tensor in inputs.items()}
        part["query"] = part["query"][:, :, rows]
        truth = lotts.kernels.region_attention(**{name: a.double() for name, a in part.items()}, impl="reference")
        bound = max(1e-6, 2 * torch.finfo(self.dtype).eps)
        return [compare("output", result[:, heads][:, :, rows], self.formula()(**part), truth, bound)]

    def flops(self) -> int:
        return 4 * self.batch * self.heads * self.rows * self.keys * self.dim


@dataclass(frozen=True)
class RopeCase(Case):
    """Norm and rotary embedding of ``text`` tokens and ``rows`` of an image of ``places``, as a sparse step has them."""

    heads: int
    text: int
    rows: int
    places: int
    dim: int

    def shape(self) -> dict[str, Any]:
        return {"B": self.batch, "H": self.heads, "N": self.text + self.rows, "D": self.dim}

    def inputs(self, device: str) -> Inputs:
        make = Maker(device, self.dtype)
        order = torch.randperm(self.places, generator=make.generator)[: self.rows] + self.text
        angles = torch.arange(self.text + self.places)[:, None] * 1e4 ** (-torch.arange(0, self.dim, 2) / self.dim)
        angles = angles.repeat_interleave(2, dim=1).to(device)
        return {
            "tokens": make.heads(self.batch, self.heads, self.text + self.rows, self.dim),
            "cos": angles.cos(),
            "sin": angles.sin(),
            "places": torch.cat([torch.arange(self.text), order])[None].to(device),
            "eps": 1e-6,
            "weight": 1 + make.normal(self.dim) / 4,
            "prefix_weight": 1 + make.normal(self.dim) / 4,
            "prefix": self.text,
        }

    def check(self, inputs: Inputs, result: Any) -> list[Check]:
        wide = {n: a.double() if torch.is_tensor(a) and a.is_floating_point() else a for n, a in inputs.items()}
        truth = lotts.kernels.norm_rope(**wide, impl="reference")
        return [compare("tokens", result, self.formula()(**inputs), truth, 2 * torch.finfo(self.dtype).eps)]

    def traffic(self, inputs: Inputs, result: Any) -> int:
        tables = inputs["cos"].nbytes + inputs["sin"].nbytes
        read = inputs["places"].shape[1] * tables // len(inputs["cos"])
        return super().traffic(inputs, result) - tables + read

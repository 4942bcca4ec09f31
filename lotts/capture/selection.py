"""Which attention layers of a model are captured, and why others cannot be."""

from collections.abc import Callable, Sequence
from typing import Any

from lotts.capture.patch import Model, attention_modules, unsupported_reason

LayerFilter = Callable[[str], bool] | Sequence[str] | None


def check_layers(
    model: Model,
    layers: LayerFilter = None,
    order: str | None = None,
    *,
    kinds: Sequence[str] = (),
    probes: bool = False,
) -> dict[str, str]:
    """Why layers of a model cannot be captured, by name; ValueError, with what to do, where too few are left.

    Args:
        layers, order: as `AttentionRecorder` takes them.
        kinds: "cross" and "self" where a layer of that kind is needed in a U-Net; without any, one layer of either.
        probes: whether tokens ride along in a joint sequence, which takes all of its layers.
    """
    modules = attention_modules(model)
    selected = layer_filter(layers, list(modules)) if modules else bool
    asked: dict[str, Any] = {name: attn for name, attn in modules.items() if order or selected(name)}
    reasons = {name: unsupported_reason(attn) if order else _native_reason(attn) for name, attn in asked.items()}
    native = {name: reason for name, reason in reasons.items() if reason is not None}
    remedy = (
        "load the transformer with the attention processors that diffusers gives it"
        if order
        else "set those that can be captured, pipe.unet.set_attn_processor(AttnProcessor2_0())"
    ) + ", or do without attention, source='prediction'"
    if order and probes and native:
        name, reason = next(iter(native.items()))
        raise ValueError(f"cannot carry probe tokens through {name}: {reason}; {remedy}")
    left = [attn for name, attn in asked.items() if name not in native]
    # A joint layer is of both kinds.
    found = {"cross", "self"} if order else {"cross" if attn.is_cross_attention else "self" for attn in left}
    missing = [kind for kind in kinds if kind not in found]
    if not left or missing:
        told = ", ".join(sorted(set(native.values()))) or "it has no such layers"
        what = f"no {' and no '.join(missing)}-attention" if left else "nothing"
        raise ValueError(f"{what} to capture in this model: {told}; {remedy}")
    return native


def layer_filter(layers: LayerFilter, names: Sequence[str]) -> Callable[[str], bool]:
    """A predicate on layer names from None, substrings or a predicate; ValueError when it fits none of `names`."""
    if layers is None:
        return lambda name: True
    if isinstance(layers, str):
        raise ValueError(f"expected layers as a sequence of names, got the string {layers!r}; write [{layers!r}]")
    if callable(layers):
        predicate = layers
    else:
        wanted = tuple(layers)
        unknown = [part for part in wanted if not any(part in name for name in names)]
        if unknown:
            raise ValueError(f"no attention layer matches {unknown}; layers are named like {list(names)[:3]}")

        def predicate(name: str) -> bool:
            return any(part in name for part in wanted)

    if not any(predicate(name) for name in names):
        raise ValueError(f"layers selects none of the {len(names)} attention layers, named like {list(names)[:3]}")
    return predicate


def _native_reason(attn: Any) -> str | None:
    reason = unsupported_reason(attn)
    if reason is None and getattr(attn, "is_cross_attention", None) is None:
        reason = f"{type(attn).__name__} does not say whether it is cross-attention"
    if reason is None and attn.added_kv_proj_dim is not None:
        reason = f"{type(attn.processor).__name__} joins text and image keys"
    return reason

"""Route the attention calls of a diffusers model through our own function, without rewriting its processors.

Each attention module gets a copy of its processor whose class runs diffusers' own code, with its way to attention rebound:
`F.scaled_dot_product_attention` or `dispatch_attention_fn` lead to a handler. Everything before and after that call
(norms, residuals, fused projections, LoRA, IP-Adapter branches) stays diffusers' code. Forward hooks and
`TorchFunctionMode` would be shorter, but `torch.compile` skips the first and breaks on the second.
"""

import copy
import functools
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from types import FunctionType, ModuleType
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import nn


class AttentionHandler(Protocol):
    """Receives the attention call of one module, in place of `native`."""

    def attend(
        self, native: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *args, **kwargs
    ) -> torch.Tensor:
        """Return what `native(query, key, value, *args, **kwargs)` returns: [B, H, N, D], from q, k, v as [B, H, N | L, D]."""
        ...


class _Hook:
    """The rebound `scaled_dot_product_attention` of one attention module; without a handler it is the stock one."""

    def __init__(self) -> None:
        self.handler: AttentionHandler | None = None
        self.first_call = True

    def scaled_dot_product_attention(self, query, key, value, *args, **kwargs):
        # An IP-Adapter layer calls attention once for the text and once more for each image prompt.
        first_call, self.first_call = self.first_call, False
        if self.handler is None or not first_call:
            return F.scaled_dot_product_attention(query, key, value, *args, **kwargs)
        return self.handler.attend(F.scaled_dot_product_attention, query, key, value, *args, **kwargs)

    def dispatching(self, original: Any) -> Any:
        """The rebound `dispatch_attention_fn`, which takes [B, N, H, D] and chooses among attention backends."""

        def dispatch_attention_fn(
            query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False, **kwargs
        ):
            def native(q, k, v, attn_mask=None, dropout_p=0.0, is_causal=False, *, scale=None, **special):
                q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
                out = original(q, k, v, attn_mask, dropout_p, is_causal, scale, enable_gqa, **kwargs)
                return out.transpose(1, 2)

            first_call, self.first_call = self.first_call, False
            if self.handler is None or not first_call:
                return original(query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa, **kwargs)
            special = {"enable_gqa": True} if enable_gqa else {}
            if kwargs.get("parallel_config") is not None:
                special["parallel_config"] = kwargs["parallel_config"]
            q, k, v = query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)
            out = self.handler.attend(native, q, k, v, attn_mask, dropout_p, is_causal, scale=scale, **special)
            return out.transpose(1, 2)

        return dispatch_attention_fn


#: A model, or its ``attention_modules`` where the caller has them: to find those of FLUX takes as long as launching several blocks.
Model = nn.Module | Mapping[str, nn.Module]

# One class and one hook for each (module, processor class), kept for the module's life: torch.compile guards on the
# class, so a model that is captured a hundred times is compiled for the first capture only.
_PATCHED: WeakKeyDictionary[nn.Module, dict[type, tuple[type, _Hook]]] = WeakKeyDictionary()


def attention_modules(model: Model) -> dict[str, nn.Module]:
    """Name -> module for every submodule that delegates its attention to a `processor`, in forward order.

    `OptimizedModule`, what `torch.compile(model)` returns, is looked through, so names do not change with compilation.
    """
    if isinstance(model, Mapping):
        return dict(model)
    model = getattr(model, "_orig_mod", model)
    return {name: module for name, module in model.named_modules() if callable(getattr(module, "processor", None))}


def unsupported_reason(attn: nn.Module) -> str | None:
    """Why this module's attention cannot be routed through a handler, or None when it can."""
    processor_class: Any = type(attn.processor)
    if hasattr(processor_class, "_lotts_hook"):  # routed already
        processor_class = processor_class.__base__
    call = processor_class.__call__
    if not isinstance(call, FunctionType) or not call.__module__.startswith("diffusers."):
        return f"{processor_class.__name__} is not one of diffusers' attention processors"
    if getattr(attn.processor, "train_kv", False):  # Custom Diffusion
        return f"{processor_class.__name__} projects the text by layers of its own"
    names = call.__code__.co_names
    if "dispatch_attention_fn" in names or ("scaled_dot_product_attention" in names and call.__globals__.get("F") is F):
        return None
    return f"{processor_class.__name__} does not call F.scaled_dot_product_attention or dispatch_attention_fn"


@contextmanager
def patched_attention(model: Model, handlers: Mapping[str, AttentionHandler]) -> Iterator[None]:
    """Within the context, the named attention modules of `model` hand their attention calls to `handlers`.

    On leaving, also by an exception, every module has its original processor object back; a processor that was set
    in the meantime is left alone. The model's `state_dict` is the same before, during and after.

    Raises:
        RuntimeError: an attention module is already patched.
        ValueError: a name is not an attention module, or its processor is unsupported (see `unsupported_reason`).
    """
    modules = attention_modules(model)
    for name, attn in modules.items():
        if hasattr(type(attn.processor), "_lotts_hook"):
            raise RuntimeError(
                f"{name} is already patched: captures of one model cannot be nested, leave the first one before"
            )
    for name in handlers:
        reason = unsupported_reason(modules[name]) if name in modules else "it is not an attention module"
        if reason is not None:
            raise ValueError(f"cannot patch {name!r}: {reason}")

    with _swapped(modules, handlers):
        yield


@contextmanager
def _swapped(modules: Mapping[str, nn.Module], handlers: Mapping[str, AttentionHandler]) -> Iterator[None]:
    """`patched_attention` without its checks."""
    swapped: list[tuple[nn.Module, Any, Any]] = []
    try:
        for name, handler in handlers.items():
            attn: Any = modules[name]
            original: Any = attn.processor
            # One instance may serve all layers, hence a copy for each; a shallow one, so that the parameters of a
            # processor which is a module (IP-Adapter) are shared.
            patched = copy.copy(original)
            patched.__class__, hook = _patched_class(attn, type(original))
            hook.handler = handler
            swapped.append((attn, original, patched))
            attn.processor = patched
        yield
    finally:
        for attn, original, patched in swapped:
            type(patched)._lotts_hook.handler = None
            if attn.processor is patched:
                attn.processor = original


@contextmanager
def overheard_attention(model: Model, listeners: Mapping[str, AttentionHandler]) -> Iterator[None]:
    """As `patched_attention`, for handlers that change nothing: within a capture they stand before its handlers.

    A listener's `native` is then what the capture does with the call.
    """
    modules, before, others = attention_modules(model), dict[_Hook, AttentionHandler | None](), {}
    try:
        for name, listener in listeners.items():
            hook = getattr(type(modules[name].processor), "_lotts_hook", None)
            if hook is None:
                others[name] = listener
            else:
                before[hook], hook.handler = hook.handler, _Overheard(listener, hook.handler)
        with _swapped(modules, others):
            yield
    finally:
        for hook, handler in before.items():
            hook.handler = handler


class _Overheard:
    """A listener before the handler of a capture."""

    def __init__(self, listener: AttentionHandler, handler: AttentionHandler | None) -> None:
        self.listener, self.handler = listener, handler

    def attend(self, native, query, key, value, *args, **kwargs):
        handler = self.handler
        inner = native if handler is None else functools.partial(handler.attend, native)
        return self.listener.attend(inner, query, key, value, *args, **kwargs)


@contextmanager
def replaced(module: nn.Module, **attributes: Any) -> Iterator[None]:
    """Within the context ``module`` has these instance attributes, such as ``forward``; afterwards what was there before.

    Offloading sets instance attributes too, so that a method replaced on the class would not be called.
    """
    before = {name: module.__dict__[name] for name in attributes if name in module.__dict__}
    try:
        for name, item in attributes.items():
            object.__setattr__(module, name, item)
        yield
    finally:
        for name in attributes:
            if name in before:
                object.__setattr__(module, name, before[name])
            else:
                object.__delattr__(module, name)


def compiled_blocks(model: nn.Module) -> list[nn.Module]:
    """Blocks that were compiled one by one, of classes with more of them than torch.compile makes graphs of one code for.

    Routed attention is a graph of its own in each block, so regional compilation (`compile_repeated_blocks`) meets that limit.
    """
    found: dict[type, list[nn.Module]] = {}
    for module in model.modules():
        if module._compiled_call_impl is not None:
            found.setdefault(type(module), []).append(module)
    limit = torch._dynamo.config.recompile_limit if found else 0
    return [block for blocks in found.values() if len(blocks) > limit for block in blocks]


@contextmanager
def uncompiled(blocks: Iterable[nn.Module]) -> Iterator[None]:
    """Within the context these blocks run eagerly."""
    with ExitStack() as stack:
        for block in blocks:
            stack.enter_context(replaced(block, _compiled_call_impl=None))
        yield


def is_patched(model: Model) -> bool:
    """Whether an attention module of ``model`` hands its calls to a handler at this moment."""
    return any(hasattr(type(attn.processor), "_lotts_hook") for attn in attention_modules(model).values())


def _patched_class(attn: nn.Module, processor_class: type) -> tuple[type, _Hook]:
    classes = _PATCHED.setdefault(attn, {})
    if processor_class not in classes:
        hook = _Hook()
        namespace = {
            "__call__": _rebound_call(processor_class.__call__, hook),  # type: ignore[operator]
            "__module__": processor_class.__module__,
            "__qualname__": processor_class.__qualname__,
            "_lotts_hook": hook,
        }
        classes[processor_class] = (type(processor_class.__name__, (processor_class,), namespace), hook)
    return classes[processor_class]


def _rebound_call(original: Any, hook: _Hook) -> Any:
    """`original` on its own code object, with its attention calls leading to `hook`."""
    functional = ModuleType("lotts_functional")
    functional.__dict__.update({name: item for name, item in vars(F).items() if not name.startswith("__")})
    functional.scaled_dot_product_attention = hook.scaled_dot_product_attention  # type: ignore[attr-defined]
    # Without a `__name__`, torch.compile reads these globals and not those of the diffusers module of that name.
    namespace = {name: item for name, item in original.__globals__.items() if name != "__name__"}
    namespace["F"] = functional
    if "dispatch_attention_fn" in namespace:
        namespace["dispatch_attention_fn"] = hook.dispatching(namespace["dispatch_attention_fn"])
    rebound = FunctionType(original.__code__, namespace, original.__name__, original.__defaults__, original.__closure__)
    rebound.__kwdefaults__ = original.__kwdefaults__

    # `wraps` keeps the signature: diffusers drops the cross_attention_kwargs that are not in it.
    @functools.wraps(original)
    def __call__(self, *args, **kwargs):
        hook.first_call = True
        return rebound(self, *args, **kwargs)

    return __call__

"""Settings for every test."""

import inspect
import os
import sys

# One process a core runs the tests: with more threads than one each they would spin for one another's cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

if not torch.cuda.is_available():
    # Before triton is imported: without a GPU its kernels run in Python, so that every test of them runs everywhere.
    os.environ["TRITON_INTERPRET"] = "1"


def pytest_collection_modifyitems(items):
    """Tests marked ``gpu`` need one; Triton's interpreter cannot multiply bfloat16."""
    if torch.cuda.is_available():
        return
    for item in items:
        arguments = getattr(item, "callspec", None)
        values = list(arguments.params.values()) if arguments else []
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a GPU"))
        elif any(isinstance(v, str) and v == "triton" for v in values) and any(v is torch.bfloat16 for v in values):
            item.add_marker(pytest.mark.skip(reason="bfloat16 kernels need a GPU"))


@pytest.fixture(scope="session", autouse=True)
def poisoned_uninitialised_memory():
    """torch.empty returns NaN (or the largest integer), so that reading what was never written shows up."""
    before = torch.are_deterministic_algorithms_enabled(), torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(before[0])
    torch.utils.deterministic.fill_uninitialized_memory = before[1]


@pytest.fixture(scope="session", autouse=True)
def interpreted_functions_begin_at_once():
    """Triton's interpreter looks through its whole language at every call of a function: a third of a kernel's time, and once is enough."""
    if torch.cuda.is_available():
        yield
        return
    from triton.runtime import interpreter

    builtins: dict[object, list[str]] = {}

    def patch_builtin(package, builder, scope):
        if package not in builtins:
            members = inspect.getmembers(package, interpreter.tl.core.is_builtin)
            builtins[package] = [name for name, _ in members]
        for name in builtins[package]:
            member = getattr(package, name)
            if interpreter.tl.core.is_builtin(member):  # it is not where a caller has patched it already
                interpreter._patch_attr(package, name, member, builder, scope)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interpreter, "_patch_builtin", patch_builtin)
        yield


@pytest.fixture(autouse=True)
def nothing_compiled_before():
    """torch.compile counts recompilations of a function over the process: no test may use up another's allowance."""
    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()

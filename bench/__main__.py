"""``python -m bench COMMAND``: one command a module, imported when it is asked for."""

import importlib
import sys

COMMANDS = {
    "resources": "compile every kernel for sm_80, sm_90, sm_100 and gfx942; registers, spills, tensor cores. Needs no GPU",
    "gpu": "correctness, then time and memory of every op on a GPU, beside PyTorch's own ways; writes gpu.json",
    "render": "Markdown table and plots from gpu.json",
    "tune": "measure launch configurations on a GPU and rewrite its rows of kernels/launch_table.json",
    "pipelines": "a step of full-size SD2.1, SDXL, SD3.5 medium and FLUX with random weights, stock and under capture",
    "sparse": "a refinement step of full-size FLUX and SDXL, dense and on 10 to 80 % of the tokens, beside the FLOP model",
    "sparse_quality": "what sparse refinements of the embedded pipeline lose to dense ones: verifier, checker, ranks, PSNR",
    "imagereward_parity": "whether the verifier gives the rewards of the package image-reward, which needs its own environment",
    "cpu": "what attention maps cost on a CPU: the op alone, and a whole U-Net step under capture",
}

HELP = """usage: python -m bench COMMAND [options]

{commands}

`python -m bench COMMAND --help` tells the options of one. Exit status: 0 all right, 1 a check failed, 2 it cannot run here.

Experiments on the embedded pipeline are modules of their own: python -m bench.localization, bench.refinement, bench.metrics;
python -m bench.plots draws their figures. Small timings of each op: pytest bench --benchmark-only."""


def main(argv: list[str]) -> int:
    listing = "\n".join(f"  {name:<20}{text}" for name, text in COMMANDS.items())
    if not argv or argv[0] in ("-h", "--help"):
        print(HELP.format(commands=listing))
        return 0 if argv else 2
    if argv[0] not in COMMANDS:
        print(f"COMMAND: expected one of {', '.join(COMMANDS)}, got {argv[0]!r}", file=sys.stderr)
        return 2
    return importlib.import_module(f"bench.{argv[0]}").main(argv[1:])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Train the embedded models: ``python -m lotts.shapes.train {vae,vae-flux,sd,sdxl,flux,verifier}``.

``sd`` is the pipeline ``shapes-sd``, from scratch: a tokenizer and an autoencoder first, where they are not there yet, then
the text encoder and the U-Net together. ``sdxl`` grows out of it. ``flux`` has a transformer from scratch and an
autoencoder of its own. ``verifier`` trains the reward model on drawings and on samples that it first draws with
``shapes-sd`` and ``shapes-flux``. Runs live in --runs, one folder a model, and resume; finished weights are exported to the package as fp16
safetensors.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from lotts.shapes import build, build_flux
from lotts.shapes.families import FAMILIES
from lotts.shapes.loop import launch
from lotts.shapes.reward_samples import draw_samples
from lotts.shapes.train_denoiser import WEIGHTS, export_denoiser, train_denoiser
from lotts.shapes.train_reward import VERIFIER_IMAGES, export_reward, train_reward
from lotts.shapes.train_vae import VAE_IMAGES, export_vae, train_vae

_VAES = {"vae": "sd", "vae-flux": "flux"}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m lotts.shapes.train", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", choices=[*_VAES, *FAMILIES, "verifier"])
    parser.add_argument("--images", type=int, help="training budget in pictures (default: the recipe's)")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="checkpoints, logs and samples (default: runs)")
    parser.add_argument("--device", help="cpu, cuda, ... (default: cuda where there is one)")
    parser.add_argument("--processes", type=int, help="processes on the CPU (default: one a core)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--samples", type=int, default=4096, help="pictures of shapes-sd the verifier learns from")
    parser.add_argument(
        "--onward",
        action="store_true",
        help=f"{', '.join(FAMILIES)}, verifier: start from the model's own weights in the package, in a run NAME-onward, which "
        "goes on where it is there already",
    )
    parser.add_argument(
        "--export-only", action="store_true", help="write the weights of the newest checkpoint and stop"
    )
    args = parser.parse_args(argv)
    if args.images is not None and args.images < 1:
        parser.error(f"expected --images from 1 up, got {args.images}")
    if args.onward and args.model in _VAES:
        parser.error(f"expected --onward with a model out of {', '.join(FAMILIES)}, verifier, got {args.model}")
    runs, model = args.runs / "shapes", args.model
    common = {"device": args.device, "processes": args.processes, "seed": args.seed}
    if args.export_only:
        if model in _VAES:
            export_vae(_VAES[model], runs)
        elif model in FAMILIES:
            export_denoiser(model, runs, args.onward)
        else:
            export_reward(runs, args.onward)
    elif model in _VAES:
        launch(train_vae, _VAES[model], runs, args.images or VAE_IMAGES[_VAES[model]], **common)
    elif model in FAMILIES:
        _prepare(model, runs, common)
        launch(train_denoiser, model, runs, args.images or FAMILIES[model].images, args.onward, **common)
    else:
        samples = draw_samples(runs, args.samples, args.processes, args.device) if args.samples else []
        launch(train_reward, runs, args.images or VERIFIER_IMAGES, samples, args.onward, **common)


def _prepare(model: str, runs: Path, common: dict) -> None:
    """What has to be there before a network can train: tokenizers and the autoencoder."""
    for vae in ("sd",) if model != "flux" else ("sd", "flux"):
        if not (WEIGHTS / vae / "vae").exists():
            launch(train_vae, vae, runs, VAE_IMAGES[vae], **common)
    if not (WEIGHTS / "sd" / "tokenizer").exists():
        build.write_tokenizer(WEIGHTS / "sd" / "tokenizer")
    if model == "flux" and not (WEIGHTS / "flux" / "tokenizer_2").exists():
        build_flux.write_t5_tokenizer(WEIGHTS / "flux" / "tokenizer_2")


if __name__ == "__main__":
    main()

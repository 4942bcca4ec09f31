"""A small study of the tiny pipeline."""

from lotts.compare import Study, Variant
from lotts.prompts import Prompt

SETTINGS = {"num_inference_steps": 3, "guidance_scale": 2.0}
PROMPTS = [Prompt("a red cat", "cats"), Prompt("a blue dog", "dogs")]
VARIANTS = [Variant.parse("best_of_n"), Variant.parse("lotts(num_refinements=1, global_steps=1)")]


def study(**changes):
    known = {
        "prompts": PROMPTS, "variants": VARIANTS, "budgets": ["samples=2"], "seeds": 2, "model": "tiny",
        "verifier": "bright", "metrics": ["red"], "settings": SETTINGS,
    }  # fmt: skip
    return Study(**known | changes)

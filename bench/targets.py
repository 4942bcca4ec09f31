"""What the kernels are held to on a GPU, and whether a set of results meets it."""

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

from bench.cases import MAP_FREE
from bench.timing import Times, median_ratio

LARGE = 64 << 20


@dataclass(frozen=True)
class Target:
    """A bound on one ratio of every case that ``applies`` to it."""

    text: str
    op: str
    ratio: str
    bound: float
    at_most: bool
    applies: Callable[[dict[str, Any]], bool]

    def met(self, value: float) -> bool:
        return value <= self.bound if self.at_most else value >= self.bound


def _sdxl(case: dict[str, Any]) -> bool:
    return case["model"] == "SDXL"


def _one_sdxl_picture(case: dict[str, Any]) -> bool:
    return _sdxl(case) and case["shape"]["B"] == 1


def _large(case: dict[str, Any]) -> bool:
    return case["traffic_bytes"] > LARGE


def _large_sdxl(case: dict[str, Any]) -> bool:
    # One picture's queries take a microsecond or two to copy, less than a launch.
    return _sdxl(case) and case["traffic_bytes"] > LARGE // 2


def _unet_4096(case: dict[str, Any]) -> bool:
    return case["model"] != "FLUX" and case["shape"]["M"] == 4096


def _flux_1024(case: dict[str, Any]) -> bool:
    return case["model"] == "FLUX" and case["pixels"] == 1024


def _both(case: dict[str, Any]) -> bool:
    return _unet_4096(case) or _flux_1024(case)


TARGETS = (
    Target("no slower than map-free SDPA", "contrast_attention", "over_map_free", 1.0, True, _sdxl),
    Target("share of copy bandwidth", "contrast_attention", "share_of_copy", 0.8, False, _large_sdxl),
    Target(
        "over the fastest map-free SDPA, 4096 tokens", "propagate_attention", "over_map_free", 1.1, True, _unet_4096
    ),
    Target("over the fastest map-free SDPA, joint", "propagate_attention", "over_map_free", 1.25, True, _flux_1024),
    Target("faster than SDPA with a widened V", "propagate_attention", "portable_over_ours", 1.0, False, _both),
    Target("eager over ours", "propagate_attention", "eager_over_ours", 5.0, False, _both),
    Target("extra memory over eager's", "propagate_attention", "memory_over_eager", 0.01, True, _both),
    *(
        target
        for op in ("inject_noise", "blend_step")
        for target in (
            Target("share of copy bandwidth over 64 MB", op, "share_of_copy", 0.85, False, _large),
            Target("eager over ours at SDXL's latents", op, "eager_over_ours", 5.0, False, _one_sdxl_picture),
        )
    ),
)


def ratios(times: dict[str, Times], extra_bytes: dict[str, int], traffic: int, copy: float) -> dict[str, float]:
    """The ratios that can be had of one case; device times, medians over rounds of the ratio within a round.

    ``copy`` is the measured bytes a second of a large copy. Ratios to providers that could not run are absent.
    """
    ours = times["ours"]
    found = {"share_of_copy": traffic / median(ours.device) / copy}
    map_free = [name for name in MAP_FREE if name in times]
    if map_free:
        fastest = min(map_free, key=lambda name: median(times[name].device))
        found["over_map_free"] = median_ratio(ours.device, times[fastest].device)
    for name in ("eager", "compiled", "portable"):
        if name in times:
            found[f"{name}_over_ours"] = median_ratio(times[name].device, ours.device)
            found[f"{name}_over_ours_wall"] = median_ratio(times[name].wall, ours.wall)
    if extra_bytes.get("eager"):
        found["memory_over_eager"] = extra_bytes["ours"] / extra_bytes["eager"]
    return found


def judged(cases: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for every target and case it applies to: the bound, the value, and whether it is met.

    The value is None, and the target not met, where the case was not timed or a provider could not run.
    """
    rows = []
    for target in TARGETS:
        for case in cases:
            if case["op"] == target.op and target.applies(case):
                value = case.get("ratios", {}).get(target.ratio)
                rows.append(
                    {
                        "op": target.op,
                        "target": target.text,
                        "case": case["name"],
                        "ratio": target.ratio,
                        "bound": f"{'<=' if target.at_most else '>='} {target.bound:g}",
                        "value": value,
                        "met": value is not None and target.met(value),
                    }
                )
    return rows

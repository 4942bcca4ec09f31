"""Probe tokens: tokens of other prompts that ride in a joint sequence, attend, and are not attended to."""

from collections.abc import Sequence
from typing import NamedTuple


class Probes(NamedTuple):
    """Where the probe tokens are in a sequence of text and image tokens, and what they see.

    ``start``: position of the first probe token; the groups follow one another without a gap. ``sizes``: tokens of each
    group. ``context``: positions [from, to) of the keys that every group sees beside its own (the image).
    """

    start: int
    sizes: tuple[int, ...]
    context: tuple[int, int]

    @property
    def stop(self) -> int:
        return self.start + sum(self.sizes)

    def groups(self) -> list[slice]:
        """The positions of each group."""
        found, start = [], self.start
        for size in self.sizes:
            found.append(slice(start, start + size))
            start += size
        return found


def checked_probes(
    sizes: Sequence[int], start: int | None, context: tuple[int, int] | None, tokens: int, keys: int
) -> Probes | None:
    """None without groups.

    Raises:
        ValueError: an empty group, positions outside the sequence, or a context that is empty or holds probes.
    """
    if not sizes:
        if start is not None or context is not None:
            raise ValueError(
                f"probe_sizes: expected the size of each probe group to go with probe_start and context, got {sizes}"
            )
        return None
    if start is None or context is None:
        raise ValueError(
            f"probe_start, context: expected positions to go with probe_sizes={tuple(sizes)}, got {start}, {context}"
        )
    probes = Probes(int(start), tuple(map(int, sizes)), (int(context[0]), int(context[1])))
    if tokens != keys:
        raise ValueError(f"query, key: expected one joint sequence with probe groups, got {tokens} and {keys} tokens")
    if min(probes.sizes) < 1 or not 0 <= probes.start <= probes.stop <= tokens:
        raise ValueError(f"probe_sizes: expected groups of at least 1 within {tokens} tokens, got {probes}")
    low, high = probes.context
    if not 0 <= low < high <= tokens or (low < probes.stop and probes.start < high):
        raise ValueError(f"context: expected a range [from, to) of {tokens} tokens without probes, got {probes}")
    return probes

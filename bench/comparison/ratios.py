# SPDX-License-Identifier: Apache-2.0
"""Statistics of interleaved rounds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median


def spread(values: Sequence[float]) -> str:
    """Return the median of the rounds, with their range, for a table."""
    if len(values) == 1:
        return f"{values[0]:.2f} (one round)"
    return f"{median(values):.2f} ({min(values):.2f}–{max(values):.2f})"


@dataclass(frozen=True)
class Ratio:
    """How many times as fast as a peer: the median of the rounds' ratios, with their range."""

    middle: float
    least: float
    most: float
    rounds: int

    def text(self) -> str:
        """Return it for a table."""
        if self.rounds == 1:
            return f"{self.middle:.2f} (one round)"
        return f"**{self.middle:.2f}** ({self.least:.2f}–{self.most:.2f})"


def ratio(ours: Sequence[float], peer: Sequence[float], *, of_times: bool = False) -> Ratio:
    """Return ours / peer round by round; with `of_times`, peer / ours, so more is faster again."""
    if not ours or len(ours) != len(peer):
        raise ValueError(f"{len(ours)} rounds of ours and {len(peer)} of the peer")
    if not all(v > 0 for v in (*ours, *peer)):  # NaN fails
        raise ValueError("a round has no positive figure")
    pairs = zip(peer, ours, strict=True) if of_times else zip(ours, peer, strict=True)
    values = sorted(a / b for a, b in pairs)
    return Ratio(median(values), values[0], values[-1], len(values))


def best_peer(
    rounds: Mapping[str, Sequence[float]], ours: str, *, of_times: bool = False
) -> str | None:
    """Return the fastest program that is not ours, by its median."""
    peers = {name: median(values) for name, values in rounds.items() if name != ours and values}
    if not peers:
        return None
    return min(peers, key=peers.__getitem__) if of_times else max(peers, key=peers.__getitem__)

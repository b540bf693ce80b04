"""Arithmetic on spans of time: (begin, end) pairs in seconds. Pure."""

from __future__ import annotations

from collections.abc import Iterable

Span = tuple[float, float]


def union(spans: Iterable[Span]) -> list[Span]:
    """Return the same time as ordered spans that do not touch."""
    joined: list[Span] = []
    for begin, end in sorted(span for span in spans if span[1] > span[0]):
        if joined and begin <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
        else:
            joined.append((begin, end))
    return joined


def subtract(spans: Iterable[Span], less: Iterable[Span]) -> list[Span]:
    """Return the parts of `spans` that are in none of `less`."""
    left, holes = union(spans), union(less)
    rest: list[Span] = []
    for begin, end in left:
        at = begin
        for hole_begin, hole_end in holes:
            if hole_end <= at or hole_begin >= end:
                continue
            if hole_begin > at:
                rest.append((at, hole_begin))
            at = max(at, hole_end)
        if at < end:
            rest.append((at, end))
    return rest


def intersect(spans: Iterable[Span], others: Iterable[Span]) -> list[Span]:
    """Return the time that is in both."""
    first = union(spans)
    return subtract(first, subtract(first, others))


def at_least(spans: Iterable[Span], depth: int) -> list[Span]:
    """Return the time that at least `depth` of the spans cover."""
    edges = sorted(
        [(begin, 1) for begin, end in spans if end > begin] + [(end, -1) for begin, end in spans if end > begin]
    )
    found: list[Span] = []
    held, since = 0, 0.0
    for moment, step in edges:
        before, held = held, held + step
        if before < depth <= held:
            since = moment
        elif held < depth <= before and moment > since:
            found.append((since, moment))
    return union(found)


def longest(spans: Iterable[Span]) -> Span:
    """Return the longest span; (0, 0) when there is none."""
    return max(spans, key=lambda span: span[1] - span[0], default=(0.0, 0.0))


def depth(spans: Iterable[Span]) -> int:
    """Return the largest number of spans that overlap."""
    edges = sorted([(begin, 1) for begin, _ in spans] + [(end, -1) for _, end in spans])
    held = most = 0
    for _, step in edges:
        held += step
        most = max(most, held)
    return most

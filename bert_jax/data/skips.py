"""Which batches of its stream a run passes over: windows that it rolled back from, or was told to leave out.

A run reads its streams in order, a stream for each phase. A window (phase, first, stop) leaves out the batches
first … stop - 1 of a phase's stream, so that every later step reads what comes that much later. Without windows step
`t` of a phase (from 0) reads batch `t`.
"""

from collections.abc import Iterable

Window = tuple[int, int, int]
Windows = tuple[Window, ...]


def merged(windows: Iterable[Iterable[int]]) -> Windows:
    """The same windows, sorted, those that meet or overlap made one."""
    found: list[Window] = []
    for phase, first, stop in sorted(tuple(window) for window in windows):
        if found and found[-1][0] == phase and first <= found[-1][2]:
            found[-1] = (phase, found[-1][1], max(found[-1][2], stop))
        else:
            found.append((phase, first, stop))
    return tuple(found)


def position(windows: Windows, phase: int, step: int) -> int:
    """The batch of its phase's stream that a step of the phase reads, both from 0; `windows` are `merged`."""
    for number, first, stop in windows:
        if number == phase and step >= first:
            step += stop - first
    return step


def skip_steps(windows: Windows, steps: Iterable[int], start: int, stop: int) -> Windows:
    """The windows with those batches too that the steps start … stop - 1 (of the run, from 0) read.

    Args:
      steps: how many steps each phase of the run has.
    """
    added, before = [], 0
    for phase, num_steps in enumerate(steps):
        first, last = max(start - before, 0), min(stop - before, num_steps)
        if first < last:
            added.append((phase, position(windows, phase, first), position(windows, phase, last - 1) + 1))
        before += num_steps
    return merged((*windows, *added))

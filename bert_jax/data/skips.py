"""Tracks skipped batches: those that a run rolled back from and those that `train.skip` names.

A run reads one stream per phase, in order. A window (phase, first, stop) skips the batches first … stop - 1 of that
phase's stream and so shifts all later steps by stop - first batches. Without windows step
`t` of a phase (from 0) reads batch `t`.
"""

from collections.abc import Iterable

Window = tuple[int, int, int]
Windows = tuple[Window, ...]


def merged(windows: Iterable[Iterable[int]]) -> Windows:
    """Returns the windows sorted, with adjacent and overlapping ones merged."""
    found: list[Window] = []
    for phase, first, stop in sorted(tuple(window) for window in windows):
        if found and found[-1][0] == phase and first <= found[-1][2]:
            found[-1] = (phase, found[-1][1], max(found[-1][2], stop))
        else:
            found.append((phase, first, stop))
    return tuple(found)


def position(windows: Windows, phase: int, step: int) -> int:
    """Returns the index of the batch that a step of a phase reads, both from 0; `windows` are `merged`."""
    for window_phase, first, stop in windows:
        if window_phase == phase and step >= first:
            step += stop - first
    return step


def skip_steps(windows: Windows, steps: Iterable[int], start: int, stop: int) -> Windows:
    """Adds the batches that the steps start … stop - 1 (of the run, from 0) read to the windows.

    Args:
      steps: number of steps of each phase.
    """
    added, before = [], 0
    for phase, num_steps in enumerate(steps):
        first, last = max(start - before, 0), min(stop - before, num_steps)
        if first < last:
            added.append((phase, position(windows, phase, first), position(windows, phase, last - 1) + 1))
        before += num_steps
    return merged((*windows, *added))

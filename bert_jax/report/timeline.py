"""The events of a run and its hardware, in words, from its history and its metrics."""

import dataclasses
from typing import Any

from bert_jax.report.logged import LoggedRun


@dataclasses.dataclass(frozen=True)
class Event:
    """Something that happened at a step.

    Attributes:
      lost_steps: logged steps that had to be repeated because of it.
      time: UTC, as in history.jsonl; '' where it is not recorded.
    """

    step: int
    what: str
    lost_steps: int = 0
    time: str = ''


def events(run: LoggedRun) -> list[Event]:
    """All events of a run by step. A run that finished without interruption has two: its start and its end."""
    found = []
    for i, line in enumerate(run.history):
        step, event, why, lost = line['step'], line['event'], str(line.get('why', '')), 0
        if event == 'start':
            lost = _count(line.get('lost_steps'))
            what = 'restarted' if i else 'started'
        elif event == 'back':
            lost = max(0, _count(line.get('from')) - step)
            what = f'rolled back: {why}'
        else:
            what = {'stop': f'stopped by {why}, saved', 'finish': 'finished'}.get(event, event)
        found.append(Event(step, what, lost, str(line.get('time', ''))))
    for step, count in run.skipped():
        found.append(Event(step, f'{_updates(count)} skipped since the previous logged step'))
    return sorted(found, key=lambda event: event.step)


def summarize_events(run: LoggedRun) -> str:
    """`restarted 2 times, 15 logged steps repeated, 1 update skipped`; '' for an uneventful run."""
    restarts = len(run.starts()) - 1
    rollbacks = sum(line['event'] == 'back' for line in run.history)
    lost = sum(event.lost_steps for event in events(run))
    skipped = sum(count for _, count in run.skipped())
    parts = []
    if restarts > 0:
        parts.append(f'restarted {_times(restarts)}')
    if rollbacks:
        parts.append(f'rolled back {_times(rollbacks)}')
    if lost:
        parts.append(f'{lost:,} logged steps repeated')
    if skipped:
        parts.append(f'{_updates(skipped)} skipped')
    return ', '.join(parts)


def hardware(run: LoggedRun) -> list[tuple[int, str]]:
    """(first step, description of the hardware from that step on) for each change; empty if it is not recorded."""
    found: list[tuple[int, str]] = []
    for start in run.starts():
        description = _describe(start)
        if not found or found[-1][1] != description:
            found.append((start['step'], description))
    return found


def _describe(start: dict[str, Any]) -> str:
    mesh, versions = (_dict(start.get(name)) for name in ('mesh', 'versions'))
    hosts, processes = _count(start.get('hosts')), _count(start.get('processes'))
    where = f'{hosts:,} host{"s" * (hosts != 1)}, {processes:,} process{"es" * (processes != 1)}'
    kind, platform = (str(start.get(name, '?')) for name in ('device_kind', 'platform'))
    device = kind if kind == platform else f'{kind} ({platform})'
    axes = ', '.join(f'{axis}={size}' for axis, size in mesh.items())
    return f'{_count(start.get("devices")):,} × {device} · {where} · mesh {axes} · jax {versions.get("jax", "?")}'


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _count(value: Any) -> int:
    return value if type(value) is int else 0


def _updates(count: int) -> str:
    return f'{count:,} update{"s" * (count > 1)}'


def _times(count: int) -> str:
    return 'once' if count == 1 else f'{count:,} times'

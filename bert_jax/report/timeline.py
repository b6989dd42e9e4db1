"""Describes the events and the hardware of a run, from its history and its metrics."""

import dataclasses
from typing import Any

from bert_jax.report.logged import LoggedRun


@dataclasses.dataclass(frozen=True)
class Event:
    """An event at a step of a run.

    Attributes:
      step: the step after which it happened.
      description: the event in words.
      lost_steps: logged steps that had to be repeated because of it.
      time: UTC, as in history.jsonl; '' if not recorded.
    """

    step: int
    description: str
    lost_steps: int = 0
    time: str = ''


def events(run: LoggedRun) -> list[Event]:
    """Returns all events of a run by step. A run without interruptions has two: its start and its end."""
    timeline = []
    for i, line in enumerate(run.history):
        step, kind, reason, lost_steps = line['step'], line['event'], str(line.get('why', '')), 0
        if kind == 'start':
            lost_steps = _as_count(line.get('lost_steps'))
            description = 'restarted' if i else 'started'
        elif kind == 'back':
            lost_steps = max(0, _as_count(line.get('from')) - step)
            description = f'rolled back: {reason}'
        else:
            description = {'stop': f'stopped by {reason} after a save', 'finish': 'finished'}.get(kind, kind)
        timeline.append(Event(step, description, lost_steps, str(line.get('time', ''))))
    for step, count in run.skipped():
        timeline.append(Event(step, f'{_updates(count)} skipped since the previous logged step'))
    return sorted(timeline, key=lambda event: event.step)


def summarize_events(run: LoggedRun) -> str:
    """Returns `restarted 2 times, 15 logged steps repeated, 1 update skipped`, or '' if nothing happened."""
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
        parts.append(f'{lost:,} logged step{"s" * (lost > 1)} repeated')
    if skipped:
        parts.append(f'{_updates(skipped)} skipped')
    return ', '.join(parts)


def hardware(run: LoggedRun) -> list[tuple[int, str]]:
    """Returns (first step, description of the hardware from that step on) for each change; [] if not recorded."""
    changes: list[tuple[int, str]] = []
    for start in run.starts():
        description = _describe_hardware(start)
        if not changes or changes[-1][1] != description:
            changes.append((start['step'], description))
    return changes


def _describe_hardware(start: dict[str, Any]) -> str:
    mesh, versions = (_as_dict(start.get(name)) for name in ('mesh', 'versions'))
    num_hosts, num_processes = _as_count(start.get('hosts')), _as_count(start.get('processes'))
    hosts = f'{num_hosts:,} host{"s" * (num_hosts != 1)}, {num_processes:,} process{"es" * (num_processes != 1)}'
    kind, platform = (str(start.get(name, '?')) for name in ('device_kind', 'platform'))
    device = kind if kind == platform else f'{kind} ({platform})'
    axes = ', '.join(f'{axis}={size}' for axis, size in mesh.items())
    return f'{_as_count(start.get("devices")):,} × {device} · {hosts} · mesh {axes} · jax {versions.get("jax", "?")}'


def _as_dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _as_count(value: Any) -> int:
    return value if type(value) is int else 0


def _updates(count: int) -> str:
    return f'{count:,} update{"s" * (count > 1)}'


def _times(count: int) -> str:
    return 'once' if count == 1 else f'{count:,} times'

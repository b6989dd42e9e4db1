"""What happened to a run, and what it ran on, from its history and its metrics; in words."""

import dataclasses
from typing import Any

from bert_jax.report.runs import Run


@dataclasses.dataclass(frozen=True)
class Happening:
    """Something that happened at a step; `lost_steps` were made, and made again (as far as they were logged)."""

    step: int
    what: str
    lost_steps: int = 0
    time: str = ''


def happenings(run: Run) -> list[Happening]:
    """All of them, in the order of their steps; a finished run that was started once has two."""
    found = []
    for number, line in enumerate(run.history):
        step, event, why, lost = line['step'], line['event'], str(line.get('why', '')), 0
        if event == 'start':
            lost = _count(line.get('lost_steps'))
            what = 'started again' if number else 'started'
        elif event == 'back':
            lost = max(0, _count(line.get('from')) - step)
            what = f'went back: {why}'
        else:
            what = {'stop': f'stopped by {why}, saved', 'finish': 'finished'}.get(event, event)
        found.append(Happening(step, what, lost, str(line.get('time', ''))))
    for step, count in run.skipped():
        found.append(Happening(step, f'{count:,} updates skipped, logged here' if count > 1 else 'an update skipped'))
    return sorted(found, key=lambda happening: happening.step)


def summary(run: Run) -> str:
    """`started again 2 times (15 steps made again), 1 update skipped, went back once`; '' where nothing happened."""
    again, all_of_it = len(run.starts()) - 1, happenings(run)
    lost = sum(happening.lost_steps for happening in all_of_it)
    skipped = sum(count for _, count in run.skipped())
    back = sum(line['event'] == 'back' for line in run.history)
    parts = []
    if again > 0:
        parts.append(f'started again {_times(again)}')
    if back:
        parts.append(f'went back {_times(back)}')
    if lost:
        parts.append(f'{lost:,} logged steps made again')
    if skipped:
        parts.append(f'{skipped:,} update{"s" * (skipped > 1)} skipped')
    return ', '.join(parts)


def hardware(run: Run) -> list[tuple[int, str]]:
    """(first step, what it ran on from there) wherever that changed; empty where a run recorded none."""
    found: list[tuple[int, str]] = []
    for start in run.starts():
        described = _describe(start)
        if not found or found[-1][1] != described:
            found.append((start['step'], described))
    return found


def _describe(start: dict[str, Any]) -> str:
    mesh = start.get('mesh') if isinstance(start.get('mesh'), dict) else {}
    versions = start.get('versions') if isinstance(start.get('versions'), dict) else {}
    hosts, processes = _count(start.get('hosts')), _count(start.get('processes'))
    where = f'{hosts:,} host{"s" * (hosts != 1)}, {processes:,} process{"es" * (processes != 1)}'
    kind, platform = (str(start.get(name, '?')) for name in ('device_kind', 'platform'))
    device = kind if kind == platform else f'{kind} ({platform})'
    axes = ', '.join(f'{axis}={size}' for axis, size in mesh.items())
    return f'{_count(start.get("devices")):,} × {device} · {where} · mesh {axes} · jax {versions.get("jax", "?")}'


def _count(value: Any) -> int:
    return value if type(value) is int else 0


def _times(number: int) -> str:
    return 'once' if number == 1 else f'{number:,} times'

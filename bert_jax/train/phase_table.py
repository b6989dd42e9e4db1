"""A table of the phases of a run: lengths, rows, masks and learning rates, with epochs, FLOPs and time where known."""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

from bert_jax.config import Config, Optimizer, Phase, PhaseMasking, describe_batch, num_rows
from bert_jax.console import duration, short

# Fields of a phase that have a column of their own.
_IN_COLUMNS = {
    *('steps', 'tokens', 'sequence_length', 'global_batch_size', 'microbatches'),
    *('peak_learning_rate', 'warmup_steps', 'warmup_tokens'),
    *('first_batch_size', 'batch_warmup_steps', 'batch_warmup_tokens'),
    *('schedule', 'decay', 'decay_fraction', 'decay_steps', 'decay_tokens', 'final_fraction'),
}


class PhaseCost(NamedTuple):
    """What a phase costs; None where it is unknown.

    Attributes:
      epochs: of its rows.
      flops: model FLOPs of all its steps.
      seconds: of all its steps.
    """

    epochs: float | None = None
    flops: float | None = None
    seconds: float | None = None


def phase_table(config: Config, costs: Sequence[PhaseCost] = ()) -> tuple[list[str], list[list[str]]]:
    """Returns (headings, rows) with a row for each phase and one for the run. Columns without values are left out.

    Args:
      costs: of each phase; by default unknown.
    """
    costs = costs or [PhaseCost()] * len(config.in_phases)
    tokens = [num_rows(phase.train) * phase.data.sequence_length for phase in config.in_phases]
    rows = [
        {
            'phase': str(index),
            'steps': f'{phase.train.steps:,}',
            'rows': f'{describe_batch(phase.train)} x {phase.data.sequence_length:,}',
            'tokens': short(num_tokens),
            **_cells(cost),
            'masked': f'{phase.data.masking.rate:.0%}',
            'learning rate': _describe_schedule(phase.optimizer, phase.train.steps),
            'changes': ', '.join(_changes(config.phases[index - 1])) if config.phases else '',
        }
        for index, (phase, num_tokens, cost) in enumerate(zip(config.in_phases, tokens, costs, strict=True), start=1)
    ]
    whole = {'phase': 'run', 'steps': f'{config.train.steps:,}', 'tokens': short(sum(tokens)), **_cells(total(costs))}
    rows.append(whole)
    headings = [name for name in rows[0] if any(row.get(name) for row in rows)]
    return headings, [[row.get(name, '') for name in headings] for row in rows]


def total(costs: Sequence[PhaseCost]) -> PhaseCost:
    """Returns the cost of a run, from those of its phases."""
    return PhaseCost(*(None if None in values else sum(values) for values in zip(*costs, strict=True)))


def describe_phases(config: Config, costs: Sequence[PhaseCost] = ()) -> str:
    """Returns the table as aligned lines; `costs` as for `phase_table`."""
    headings, rows = phase_table(config, costs)
    widths = [max(map(len, cells)) for cells in zip(headings, *rows, strict=True)]
    last = headings.index('masked')  # from there on, cells are text and aligned left
    lines = []
    for cells in (headings, *rows):
        aligned = [
            cell.rjust(width) if column <= last else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        lines.append('  '.join(aligned).rstrip())
    return '\n'.join(lines)


def _cells(cost: PhaseCost) -> dict[str, str]:
    return {
        'epochs': '' if cost.epochs is None else f'{cost.epochs:,.2f}',
        'FLOPs': '' if cost.flops is None else f'{cost.flops:.2e}'.replace('e+', 'e'),
        'time': '' if cost.seconds is None else duration(cost.seconds),
    }


def _describe_schedule(optimizer: Optimizer, num_steps: int) -> str:
    """Describes the learning rate of a phase: `0 to 8e-4 in 100 steps, then wsd: 1-sqrt to 8e-6 in 50 steps`."""
    peak, final = f'{optimizer.peak_learning_rate:g}', f'{optimizer.final_fraction * optimizer.peak_learning_rate:g}'
    falls = {'constant': 'constant', 'inverse_sqrt': 'inverse_sqrt'}.get(
        optimizer.schedule, f'{optimizer.schedule} to {final}'
    )
    if optimizer.schedule == 'wsd':
        falls = f'wsd: {optimizer.decay} to {final} in {optimizer.num_decay_steps(num_steps):,} steps'
    warmup = f'warm-up of {optimizer.warmup_steps:,} steps, ' if optimizer.warmup_steps else ''
    return f'{warmup}{peak}, {falls}'


def _changes(phase: Phase) -> list[str]:
    """Describes the fields that a phase sets and that have no column of their own."""
    masking = [('masking.' + name, value) for name, value in _set_fields(phase.masking) if name != 'rate']
    others = [(name, value) for name, value in _set_fields(phase) if name not in {*_IN_COLUMNS, 'masking'}]
    return [f'{name}={value:g}' if isinstance(value, float) else f'{name}={value}' for name, value in others + masking]


def _set_fields(record: Phase | PhaseMasking) -> list[tuple[str, object]]:
    fields = dataclasses.fields(record)
    return [(field.name, value) for field in fields if (value := getattr(record, field.name)) is not None]

"""The settings of the rows that held-out losses are measured on.

They do not depend on the masking or the length of the rows that a phase trains on (`train.fixed_evaluation`), so the
curves of a run do not jump between its phases. ModernBERT and Ettin were evaluated at 15% masking too (`eval_loader` in
the yamls of their repositories).
"""

import dataclasses
from typing import NamedTuple

from bert_jax.config import Config, Data, Masking

LENGTHS = (128, 512, 2048, 8192)
_MASKING = Masking(rate=0.15, mask_fraction=0.8, random_fraction=0.1, unit='token', exclude_special=True)


class EvaluationRows(NamedTuple):
    """How a stream of held-out rows is made."""

    data: Data
    batch_size: int


def rows_of_phase(run: Config, phase: int) -> EvaluationRows:
    """Returns the rows that a run is evaluated on in a phase: the same in all phases, unless the run says otherwise."""
    lengths = [each.data.sequence_length for each in run.in_phases]
    if run.train.fixed_evaluation:
        return fixed_rows(run, min(lengths))
    return EvaluationRows(run.in_phases[phase].data, run.in_phases[phase].train.global_batch_size)


def fixed_rows(run: Config, length: int) -> EvaluationRows:
    """Returns rows of up to `length` positions with fixed masks.

    A batch has as many rows as in the phase with the shortest rows that are at least as long: it fits where that fits.
    """
    data = dataclasses.replace(
        run.data,
        sequence_length=length,
        masking=_MASKING,
        max_predictions=-1,
        max_sequences=0,
        bucket_lengths=(),
        source_weights=(),
        source_temperature=None,
        remask=True,
    )
    phases = [phase for phase in run.in_phases if phase.data.sequence_length >= length]
    fitting = min(phases, key=lambda phase: phase.data.sequence_length)
    return EvaluationRows(data, fitting.train.global_batch_size)


def rows_by_length(run: Config, positions_trained: int) -> dict[int, EvaluationRows]:
    """Returns fixed rows of each length in `LENGTHS` below the longest that was trained, and of that one."""
    shorter = (length for length in LENGTHS if length < positions_trained)
    return {length: fixed_rows(run, length) for length in (*shorter, positions_trained)}

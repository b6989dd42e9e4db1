"""The rows of each step of a phase, whose batch may grow at its beginning (batch-size warm-up)."""

import bisect
import dataclasses
from collections.abc import Sequence

from bert_jax.config.pretraining import Train

_MOST_SIZES = 8  # each is compiled once


@dataclasses.dataclass(frozen=True)
class BatchSizes:
    """The rows of each step of a phase, a pure function of the step; steps count from 0.

    Attributes:
      stages: (first step, rows of each step) of stages with equal batches, in order; the first starts at step 0, the
        last has no end.
    """

    stages: tuple[tuple[int, int], ...]

    @property
    def largest(self) -> int:
        """The rows of a step after the warm-up."""
        return self.stages[-1][1]

    @property
    def is_constant(self) -> bool:
        return len(self.stages) == 1

    def at(self, step: int) -> int:
        """Returns the rows of a step."""
        return next(rows for first, rows in reversed(self.stages) if first <= step)

    def before(self, step: int) -> int:
        """Returns the rows of all steps before a step."""
        ends = [*(first for first, _ in self.stages[1:]), step]
        return sum(max(min(end, step) - first, 0) * rows for (first, rows), end in zip(self.stages, ends, strict=True))

    def steps_of(self, rows: int) -> int:
        """Returns the fewest steps that have at least a number of rows together."""
        most = self.stages[-1][0] + -(-rows // self.largest)
        return bisect.bisect_left(range(most + 1), rows, key=self.before)

    def last_steps_of(self, rows: int, num_steps: int) -> int:
        """Returns the fewest of the last of `num_steps` steps that have at least a number of rows together."""
        whole = self.before(num_steps)
        if rows > whole:
            return num_steps + -(-(rows - whole) // self.largest)
        return bisect.bisect_left(range(num_steps + 1), rows, key=lambda last: whole - self.before(num_steps - last))


def batch_sizes(train: Train) -> BatchSizes:
    """Returns the batch sizes of a phase, or of a run without phases.

    The batch grows from `first_batch_size` to `global_batch_size` in stages of equally many steps. All sizes are
    multiples of the first one, at most `_MOST_SIZES` of them.
    """
    if not train.batch_warmup_steps or not (smaller := sizes_in_warmup(train)):
        return BatchSizes(((0, train.global_batch_size),))
    starts = [index * train.batch_warmup_steps // len(smaller) for index in range(len(smaller))]
    stages = dict(zip(starts, smaller, strict=True)) | {train.batch_warmup_steps: train.global_batch_size}
    return BatchSizes(tuple(stages.items()))


def sizes_in_warmup(train: Train) -> Sequence[int]:
    """Returns the batch sizes below `global_batch_size`; () without a warm-up."""
    first, last = train.first_batch_size, train.global_batch_size
    if not first:
        return ()
    count = min(last // first, _MOST_SIZES)
    multiples = [1 + round((last // first - 1) * index / max(count - 1, 1)) for index in range(count - 1)]
    return [first * multiple for multiple in multiples]


def num_rows(train: Train) -> int:
    """Returns the rows of all steps of a phase together."""
    return batch_sizes(train).before(train.steps)


def num_full_steps(train: Train) -> int | float:
    """Returns the steps of a phase, counting the smaller ones of the warm-up by their share of a full batch."""
    rows = num_rows(train)
    return rows / train.global_batch_size if rows % train.global_batch_size else rows // train.global_batch_size


def describe_batch(train: Train) -> str:
    """Describes the rows of a step: `256`, or `32 to 256`."""
    return f'{"" if batch_sizes(train).is_constant else f"{train.first_batch_size:,} to "}{train.global_batch_size:,}'

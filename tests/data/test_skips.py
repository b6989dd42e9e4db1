"""Skipped batches: each later step reads the next remaining batch, none is read twice and none is lost."""

from hypothesis import given
from hypothesis import strategies as st

from bert_jax.data.skips import merged, position, skip_steps

WINDOW = st.tuples(st.integers(0, 1), st.integers(0, 30), st.integers(1, 8)).map(lambda w: (w[0], w[1], w[1] + w[2]))


@given(st.lists(WINDOW, max_size=6), st.integers(0, 1))
def test_steps_read_the_remaining_batches_in_order(windows: list[tuple[int, int, int]], phase: int) -> None:
    skipped = {batch for index, first, stop in windows if index == phase for batch in range(first, stop)}
    remaining = [batch for batch in range(200) if batch not in skipped]
    assert [position(merged(windows), phase, step) for step in range(100)] == remaining[:100]


@given(st.lists(WINDOW, max_size=4), st.integers(0, 19), st.integers(1, 10))
def test_rollback_also_skips_batches_read_since_the_checkpoint(
    windows: list[tuple[int, int, int]], start: int, num_steps: int
) -> None:
    before, stop = merged(windows), min(start + num_steps, 20)
    steps = (12, 8)

    def read(windows: tuple, step: int) -> tuple[int, int]:
        phase = int(step >= steps[0])
        return phase, position(windows, phase, step - phase * steps[0])

    after = skip_steps(before, steps, start, stop)
    seen = {read(before, step) for step in range(start, stop)}
    assert [read(after, step) for step in range(start)] == [read(before, step) for step in range(start)]
    assert not seen & {read(after, step) for step in range(start, 20)}
    assert merged(after) == after

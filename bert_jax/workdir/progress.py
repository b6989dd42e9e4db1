"""Shows the progress of a run: a bar on a terminal; plain lines elsewhere, per logged step or by time for slow ones."""

import time
from collections.abc import Callable

from tqdm import tqdm

from bert_jax.activity import activity, printed_a_line
from bert_jax.console import duration, printable, progress_bar, say
from bert_jax.errors import as_started

_SECONDS_TO_ESTIMATE, _STEPS_TO_ESTIMATE = 5.0, 2  # measured after the first step, which compiles
_A_DAY, _TOO_LONG = 86_400, 14 * 86_400  # seconds


class Progress:
    """The progress of a run: losses and accuracies of a step, non-padding tokens per second, and the time left.

    As a context it also shows the newest step and its loss, or what the run is doing, if nothing has been logged for a
    while.
    """

    def __init__(
        self,
        start: int,
        num_steps: int,
        describe: Callable[[dict[str, float]], str],
        stage: Callable[[], str],
        flags_of_shorter: Callable[[float], str],
    ):
        """Initializes the progress.

        Args:
          start: the step resumed from.
          describe: turns the metrics of a step into a few words.
          stage: returns what the main thread is doing, in words; '' while it trains.
          flags_of_shorter: returns the flags that shorten the run to a fraction of its steps, for runs of weeks.
        """
        self._bar = progress_bar(total=num_steps, initial=start, unit='step', smoothing=0.05)
        self._num_steps, self._describe = num_steps, describe
        self._stage, self._flags_of_shorter = stage, flags_of_shorter
        self._is_estimated = False
        self._begin(start)

    def _begin(self, step: int) -> None:
        self._step, self._loss = step, ''
        self._first: tuple[int, float] | None = None  # (first step since then, time when it ended)
        self._seconds_per_step: float | None = None

    def __enter__(self) -> 'Progress':
        show = None if self._bar.disable else self._show_in_bar
        self._activity = activity(self._describe_now, begins_line=True, show=show)
        self._activity.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._activity.__exit__(None, None, None)
        self.close()

    def update_progress(self, step: int, loss: float) -> None:
        """Updates the progress after a finished step whose loss is already known, so this waits for no device."""
        now = time.perf_counter()
        self._first = self._first or (step, now)
        since_step, since = self._first
        if step > max(self._step, since_step):
            self._seconds_per_step = (now - since) / (step - since_step)
        self._step, self._loss = step, f'loss {loss:.3f}'
        if not self._bar.disable:
            self._bar.update(step - self._bar.n)
        is_measured = step - since_step >= _STEPS_TO_ESTIMATE and now - since >= _SECONDS_TO_ESTIMATE
        if is_measured and not self._is_estimated and self._seconds_per_step is not None:
            self._is_estimated = True
            self._estimate(self._seconds_per_step)

    def show(self, step: int, metrics: dict[str, float]) -> None:
        """Prints the metrics of a step."""
        shown = self._describe(metrics)
        if 'tokens_per_second' in metrics:
            shown += f'  {metrics["tokens_per_second"]:,.0f} tokens/s'
        if metrics.get('input_wait_fraction', 0.0) >= 0.01:
            shown += f'  waiting for input {metrics["input_wait_fraction"]:.0%}'
        self.update_progress(step, metrics['loss'])
        if self._bar.disable:
            say('  '.join([f'step {step}/{self._num_steps}', shown, *self._left()]))
        else:
            self._bar.set_postfix_str(printable(shown), refresh=False)
        printed_a_line()

    def rewind(self, step: int) -> None:
        """Sets the progress back to a step."""
        self._begin(step)
        self._bar.update(step - self._bar.n)

    def close(self) -> None:
        """Stops updating the bar."""
        self._bar.close()

    def _left(self) -> list[str]:
        seconds = self._seconds_per_step
        return [] if seconds is None else [f'{_interval(seconds * (self._num_steps - self._step))} left']

    def _describe_now(self) -> str:
        if not self._bar.disable:  # the bar shows step and time
            return '  '.join(filter(None, [self._loss, self._stage()]))
        speed = [] if self._seconds_per_step is None else [f'{duration(self._seconds_per_step)} per step']
        parts = [f'step {self._step}/{self._num_steps}', self._loss, *speed, *self._left(), self._stage()]
        return '  '.join(filter(None, parts))

    def _show_in_bar(self, line: str) -> None:
        self._bar.set_postfix_str(printable(line))

    def _estimate(self, seconds: float) -> None:
        """Prints how long the run will take and, if that is weeks, how to shorten it."""
        num_left = self._num_steps - self._step
        steps = f'{num_left:,} remaining step{"s take" if num_left != 1 else " takes"}'
        say(f'{duration(seconds)} per step: the {steps} about {duration(seconds * num_left)}.')
        if seconds * num_left > _TOO_LONG:
            flags = self._flags_of_shorter(_A_DAY / seconds / self._num_steps)
            advise = as_started('bert-jax advise --config=… --hours=24')
            say(
                f'warning: this run is too large for these devices. With {flags} it takes about a day here; a smaller '
                f'model or batch makes each step faster. `{advise}` chooses a size for the text and the time; '
                '`plan --target=…` predicts the time on other devices.'
            )


def _interval(seconds: float) -> str:
    return tqdm.format_interval(seconds) if seconds < _A_DAY else duration(seconds)

"""How far a run is: a progress bar on a terminal, plain lines elsewhere."""

import time
from collections.abc import Callable

from tqdm import tqdm

from bert_jax.console import printable, progress_bar, say


class Progress:
    """Shows the losses and accuracies of a step, real tokens per second and the time left."""

    def __init__(self, start: int, num_steps: int, describe: Callable[[dict[str, float]], str]):
        """Args: start, the step resumed from; describe, turns the metrics of a step into a few words."""
        self._bar = progress_bar(total=num_steps, initial=start, unit='step', smoothing=0.05)
        self._start, self._num_steps, self._since = start, num_steps, time.perf_counter()
        self._describe = describe

    def show(self, step: int, metrics: dict[str, float]) -> None:
        """Shows the metrics of a step."""
        shown = self._describe(metrics)
        if 'tokens_per_second' in metrics:
            shown += f'  {metrics["tokens_per_second"]:,.0f} tokens/s'
        if metrics.get('input_wait_fraction', 0.0) >= 0.01:
            shown += f'  waiting for input {metrics["input_wait_fraction"]:.0%}'
        if self._bar.disable:
            seconds = (time.perf_counter() - self._since) / (step - self._start) * (self._num_steps - step)
            left = tqdm.format_interval(seconds)
            say(f'step {step}/{self._num_steps}  {shown}  {left} left')
        else:
            self._bar.set_postfix_str(printable(shown), refresh=False)
            self._bar.update(step - self._bar.n)

    def rewind(self, step: int) -> None:
        """Sets the progress back to a step."""
        self._start, self._since = step, time.perf_counter()
        self._bar.update(step - self._bar.n)

    def close(self) -> None:
        """Leaves the bar as it is."""
        self._bar.close()

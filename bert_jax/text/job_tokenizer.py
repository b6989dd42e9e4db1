"""The tokenizer of a corpus in preparation: provided by the user, saved by an earlier run, or trained on a sample."""

import contextlib
import pathlib
import time

from bert_jax import config
from bert_jax.activity import activity
from bert_jax.console import duration, quantity, say
from bert_jax.files import new_directory
from bert_jax.text.added_tokens import add_tokens
from bert_jax.text.existing import WeightedSource
from bert_jax.text.job import PrepareJob
from bert_jax.text.pool import Pool
from bert_jax.text.progress import LABEL_WIDTH
from bert_jax.text.tokenizer import Tokenizer, load_configured_tokenizer, prefer_saved_tokenizer, train_tokenizer

_LABEL = f'{"tokenizer:":{LABEL_WIDTH}}'


def load_provided_tokenizer(
    settings: config.Tokenizer, initial: Tokenizer | None, directory: pathlib.Path
) -> Tokenizer | None:
    """Loads the tokenizer that the config or the initial model provides, plus `add_tokens`; None if neither does.

    Args:
      initial: the tokenizer of the model that a run will start from.
      directory: of the corpus, which may already exist.

    Raises:
      BadInput: see `load_tokenizer` and `add_tokens`.
    """
    provided = load_configured_tokenizer(settings) if settings.path else initial
    if provided is None:
        return None
    provided = add_tokens(provided, settings.add_tokens) if settings.add_tokens else provided
    return prefer_saved_tokenizer(provided, settings, directory / 'tokenizer')


def make_tokenizer(
    job: PrepareJob,
    pool: Pool,
    mixture: list[WeightedSource],
    settings: config.Tokenizer,
    provided: Tokenizer | None,
    progress: bool,
) -> None:
    """Saves the tokenizer in the job's directory, unless that already has one.

    If none is provided, trains one on `sample_bytes` of text, spread over all chunks of the training sources by size
    and weight. Shards that start at the same time all train the same tokenizer; the first to finish saves it.
    """
    if job.tokenizer_directory.is_dir():
        if progress:
            say(f'{_LABEL} reused from {job.tokenizer_directory}')
        return
    trained = provided
    if trained is None:
        weights = [weight * (split != 'validation') for _, weight, split in mixture]
        sizes = [chunk.num_bytes * weights[chunk.source_index] for chunk in job.chunks]
        total = max(1, sum(sizes))
        budgets = [(index, -(-settings.sample_bytes * size // total)) for index, size in enumerate(sizes)]
        pool.run('sample', [(index, int(num_bytes)) for index, num_bytes in budgets if num_bytes], 'reading')
        start = time.monotonic()
        with activity('training the tokenizer') if progress else contextlib.nullcontext():
            trained = train_tokenizer(settings, job.read_sample())
        if progress:
            requested = f' (requested: {settings.vocab_size:,})' if trained.vocab_size < settings.vocab_size else ''
            elapsed = duration(time.monotonic() - start)
            say(f'{_LABEL} {quantity(trained.vocab_size, "token")}{requested}, trained in {elapsed}')
    with new_directory(job.tokenizer_directory) as temporary:
        trained.save(temporary)

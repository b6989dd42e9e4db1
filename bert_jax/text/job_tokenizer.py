"""The tokenizer of a corpus that is being prepared: brought along, kept from before, or trained on a sample."""

import contextlib
import pathlib
import time

from bert_jax import config
from bert_jax.activity import activity
from bert_jax.console import say
from bert_jax.files import new_directory
from bert_jax.text.added_tokens import add_tokens
from bert_jax.text.existing import WeightedSource
from bert_jax.text.job import PrepareJob
from bert_jax.text.pool import Pool
from bert_jax.text.tokenizer import Tokenizer, load_configured_tokenizer, prefer_saved_tokenizer, train_tokenizer


def load_provided_tokenizer(
    settings: config.Tokenizer, initial: Tokenizer | None, directory: pathlib.Path
) -> Tokenizer | None:
    """The tokenizer that is brought along, if any, with the tokens that are added to it.

    Args:
      initial: that of the model that a run will start from.
      directory: of the corpus, which may be there already.

    Raises:
      BadInput: when it cannot be used, see `load_tokenizer` and `add_tokens`.
    """
    given = load_configured_tokenizer(settings) if settings.path else initial
    if given is None:
        return None
    given = add_tokens(given, settings.add_tokens) if settings.add_tokens else given
    return prefer_saved_tokenizer(given, settings, directory / 'tokenizer')


def make_tokenizer(
    job: PrepareJob,
    pool: Pool,
    mixture: list[WeightedSource],
    settings: config.Tokenizer,
    given: Tokenizer | None,
    progress: bool,
) -> None:
    """Puts the tokenizer into the job's directory, unless it is there.

    Unless one is given, it is trained on `sample_bytes` of text, spread over all chunks of the training sources by
    their size and weight. Shards that start together all train it, and get the same; the first to finish gives it its
    name.
    """
    if job.tokenizer_directory.is_dir():
        if progress:
            say(f'tokenizer: taken from {job.tokenizer_directory}')
        return
    trained = given
    if trained is None:
        weights = [weight * (split != 'validation') for _, weight, split in mixture]
        sizes = [chunk.num_bytes * weights[chunk.source_index] for chunk in job.chunks]
        total = max(1, sum(sizes))
        shares = [(number, -(-settings.sample_bytes * size // total)) for number, size in enumerate(sizes)]
        pool.run('sample', [(number, int(share)) for number, share in shares if share], 'reading')
        start = time.monotonic()
        with activity('training the tokenizer') if progress else contextlib.nullcontext():
            trained = train_tokenizer(settings, job.read_sample())
        if progress:
            wanted = f' of {settings.vocab_size:,} asked for' if trained.vocab_size < settings.vocab_size else ''
            say(f'tokenizer: {trained.vocab_size:,} tokens{wanted}, {time.monotonic() - start:.0f} s')
    with new_directory(job.tokenizer_directory) as temporary:
        trained.save(temporary)

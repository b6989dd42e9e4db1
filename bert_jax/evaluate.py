"""How good the model is on held-out text, and the baselines to read that by."""

import json
from collections.abc import Callable

import jax
import numpy as np
from etils import epath
from flax import nnx
from jax.sharding import Mesh

from bert_jax import run
from bert_jax.config import phase_at
from bert_jax.data.batches import Stream, prefetch
from bert_jax.data.streams import open_streams
from bert_jax.errors import BadInput
from bert_jax.files import write_whole
from bert_jax.train.checkpoint import restore_on_one_device
from bert_jax.train.sharding import local_rows, make_global, parameter_specs
from bert_jax.train.state import model_graph
from bert_jax.train.step import Sums, make_evaluation_step, metrics_of


def evaluate_params(
    params: nnx.State,
    evaluation_step: Callable,
    stream: Stream,
    mesh: Mesh,
    max_rows: int | None = None,
    stop_now: Callable[[], bool] = lambda: False,
) -> dict[str, float] | None:
    """MLM and NSP loss (nats) and accuracy over one pass of an evaluation stream, or its first rows.

    Returns:
      None when `stop_now`, asked once a batch, said yes before the end.
    """
    num_batches = len(stream) if max_rows is None else min(len(stream), -(-max_rows // stream.batch_size))
    rows = local_rows(mesh, stream.batch_size)
    totals = np.zeros(len(Sums._fields))
    for batch in prefetch(stream, 0, num_batches, rows):
        sums = evaluation_step(params, make_global(batch, rows, mesh, stream.batch_size))
        totals += np.array(jax.device_get(sums), np.float64)
        if stop_now():
            return None
    return {name: float(value) for name, value in metrics_of(Sums(*totals)).items()}


def baselines(unigram_counts: np.ndarray) -> dict[str, float]:
    """What knowing only how frequent the tokens of the validation text are gives: entropy (nats) and best hit rate."""
    frequencies = unigram_counts[unigram_counts > 0] / max(unigram_counts.sum(), 1)
    entropy = float(-(frequencies * np.log(frequencies)).sum())
    return {'unigram_entropy': entropy, 'most_frequent_accuracy': float(frequencies.max(initial=0))}


def evaluate(workdir: str, step: int | None = None) -> dict[str, float | None]:
    """Evaluates a checkpoint of a workdir on the whole validation split; writes WORKDIR/evaluation.json.

    Returns:
      step, mlm_loss, mlm_accuracy, nsp_loss, nsp_accuracy (None where the rows hold no pairs), and the `baselines`.

    Raises:
      BadInput: when there is no run, no checkpoint or no corpus.
    """
    config = run.load_config(workdir)
    streams = open_streams(config)
    if None in streams.validation:
        raise BadInput(
            'config.data.validation_fraction',
            'held out too little text for the objective',
            'a validation split',
            'a larger fraction, or a data.validation_source',
        )
    if streams.tokenizer.hash != run.load_fingerprint(workdir)['tokenizer']:  # of an imported model, or made anew
        raise BadInput(config.data.corpus, 'was made with another tokenizer', f'the tokenizer in {workdir}')
    vocab_size = streams.tokenizer.vocab_size
    state, mesh = restore_on_one_device(workdir, config, vocab_size, step)
    validation = streams.validation[phase_at(config, int(state.step))]
    graph, specs = model_graph(config.model, vocab_size), parameter_specs(state.params, mesh)
    evaluation_step = make_evaluation_step(graph, mesh, specs)
    found = evaluate_params(state.params, evaluation_step, validation, mesh)
    if not found['nsp_loss']:  # of pairs it is above 0: their weight is 0
        found |= {'nsp_loss': None, 'nsp_accuracy': None}
    result = {'step': int(state.step)} | found | baselines(streams.unigram_counts())
    write_whole(epath.Path(workdir) / 'evaluation.json', json.dumps(result) + '\n')
    return result


def describe(result: dict[str, float | None]) -> str:
    """The figures next to their baselines, for a terminal."""
    below = result['unigram_entropy'] - result['mlm_loss']
    lines = [
        f'Held-out text at step {result["step"]}:',
        f'  MLM loss      {result["mlm_loss"]:.3f} nats   ({below:.2f} under the {result["unigram_entropy"]:.3f}'
        ' of knowing only how frequent each token is)',
        f'  MLM accuracy  {result["mlm_accuracy"]:6.1%}       (the most frequent token: '
        f'{result["most_frequent_accuracy"]:.1%})',
    ]
    if result['nsp_accuracy'] is not None:
        lines.append(f'  NSP accuracy  {result["nsp_accuracy"]:6.1%}       (chance: 50.0%)')
    return '\n'.join(lines)

"""Orders the passages that a first stage retrieved by the scores of a cross-encoder.

`Q` queries.
"""

import dataclasses
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from bert_jax.activity import counted
from bert_jax.config.finetuning import SCORES
from bert_jax.data.labelled import Record
from bert_jax.errors import BadInput
from bert_jax.evaluation.retrieval.dataset import RetrievalSet
from bert_jax.evaluation.retrieval.evaluate import Ranked
from bert_jax.evaluation.retrieval.metrics import measure
from bert_jax.finetune.exported import task_architecture
from bert_jax.finetune.load import load_model
from bert_jax.finetune.predict import FineTuned, columns_of
from bert_jax.finetune.workdirs import read_run, seeds_of
from bert_jax.json_files import read_given_json
from bert_jax.pretrained.families import TASK_OF_CLASS
from bert_jax.text.sources.lines import batched
from bert_jax.workdir import identity

_PAIRS_AT_ONCE = 1024  # pairs encoded and run together


def check_cross_encoder(name: str) -> None:
    """Checks the files of a cross-encoder before anything is computed.

    Raises:
      BadInput: if the model does not score pairs of texts.
    """
    directory, _ = identity.split_step(name)
    if seeds := seeds_of(directory):
        task = read_run(seeds[0]).task
        if task.kind not in SCORES or not task.text_pair:
            raise _not_a_cross_encoder(name)
        return
    architecture = task_architecture(Path(directory))
    if architecture is None or TASK_OF_CLASS[architecture] != 'classification':
        raise _not_a_cross_encoder(name)
    content = read_given_json(Path(directory) / 'config.json', 'a Hugging Face directory')
    outputs = content.get('id2label') or range(content.get('num_labels') or 2)
    if len(outputs) != 1:
        raise _not_a_cross_encoder(name)


def load_cross_encoder(name: str) -> FineTuned:
    """Loads a cross-encoder; see `check_cross_encoder`."""
    trained = load_model(name)
    if not isinstance(trained, FineTuned) or trained.task.kind not in SCORES or trained.takes_pairs is False:
        raise _not_a_cross_encoder(name)
    return trained


def _not_a_cross_encoder(name: str) -> BadInput:
    expected = (
        'a model that was fine-tuned to score pairs of texts, in a workdir, an export or a Hugging Face directory'
    )
    return BadInput(
        f'--rerank={name}', 'is not a cross-encoder', expected, 'bert-jax finetune --config=finetune/ranking.py'
    )


def rerank_passages(name: str, trained: FineTuned, dataset: RetrievalSet, rankings: np.ndarray, depth: int) -> Ranked:
    """Reorders rankings by the scores of a cross-encoder, and measures the result.

    Args:
      rankings: [Q, k], indices of passages, best first; -1 where there is no further passage.
      depth: passages per query that are reordered; the others stay behind them in their order.
    """
    start, counts = time.monotonic(), Counter()
    scores = np.full(rankings[:, :depth].shape, -np.inf, np.float32)
    scores[rankings[:, :depth] >= 0] = list(_scores(trained, dataset, rankings[:, :depth], counts))
    order = np.argsort(-scores, axis=1, kind='stable')  # of equal scores, the order of the first stage
    reordered = rankings.copy()
    reordered[:, :depth] = np.take_along_axis(rankings[:, :depth], order, axis=1)
    system = {
        'system': name,
        'dims': None,
        **dataclasses.asdict(measure(reordered.tolist(), dataset.judgements)),
        'mean_cosine': None,
        'truncated': counts['text cut'],
        'seconds': round(time.monotonic() - start, 3),
    }
    return Ranked(system, reordered)


def _scores(trained: FineTuned, dataset: RetrievalSet, rankings: np.ndarray, counts: Counter) -> Iterator[float]:
    """Yields the logit of each query with each of its passages, in the order of `rankings` without -1."""
    needed = {int(index) for index in np.unique(rankings)}
    texts = {index: text for index, text in enumerate(dataset.passages()) if index in needed}
    first, second = columns_of(trained).names
    query_of, passage_of = np.nonzero(rankings >= 0)[0], rankings[rankings >= 0]
    records = (
        Record('a pair', {first: dataset.queries[query], second: texts[passage]})
        for query, passage in zip(query_of.tolist(), passage_of.tolist(), strict=True)
    )
    num_chunks = -(-len(query_of) // _PAIRS_AT_ONCE)
    for chunk in counted(batched(records, _PAIRS_AT_ONCE), num_chunks, 'reranking', 'blocks'):
        yield from trained.logits(chunk, counts).tolist()

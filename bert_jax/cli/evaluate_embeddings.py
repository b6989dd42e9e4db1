"""`evaluate --retrieval` and `evaluate --sts`: measures the vectors that `embed` writes."""

import dataclasses
import json
from typing import Any

from absl import flags

from bert_jax.cli.devices import enable_compilation_cache
from bert_jax.cli.flags import MODEL, Command, Flag, print_result, required, workdir_and_step
from bert_jax.console import say
from bert_jax.errors import BadInput
from bert_jax.files import write_whole

_DEFAULT_SPLIT, _DEFAULT_COLUMNS = 'test', 'sentence1,sentence2,score'
_TASKS = ('retrieval', 'sts')
_MAX_DEPTH = 100  # `DEPTH` of the metrics, which is not imported here because commands start fast

PROMPTS = (
    Flag('queries_prompt', 'text before each query (default: as config_sentence_transformers.json says)'),
    Flag('passages_prompt', 'text before each passage (default: as config_sentence_transformers.json says)'),
)
SIMILARITY = Flag(
    'similarity',
    'how queries and passages are compared, cosine or dot (default: as config_sentence_transformers.json says, '
    'otherwise cosine)',
)
FLAGS = (
    Flag('retrieval', 'set in BEIR format: a directory with corpus.jsonl, queries.jsonl and qrels/SPLIT.tsv'),
    Flag('sts', 'scored pairs of texts, FILE.jsonl, FILE.csv, FILE.tsv or FILE.parquet'),
    dataclasses.replace(
        MODEL, meaning=f'for --retrieval and --sts, instead of --workdir: {MODEL.meaning}', group='common'
    ),
    Flag('baseline', 'another model in the same table, as --model; for example the one that training started from'),
    Flag('rerank', 'cross-encoder that reorders the passages that the model finds, as another row of the table'),
    Flag(
        'rerank_depth',
        f'passages per query that --rerank reorders (default: {_MAX_DEPTH})',
        flags.DEFINE_integer,
        None,
        {'lower_bound': 1, 'upper_bound': _MAX_DEPTH},
    ),
    Flag('bm25', 'BM25 in the same table (default: if bm25s is installed)', flags.DEFINE_boolean),
    Flag('split', f'judgements of --retrieval, qrels/SPLIT.tsv (default: {_DEFAULT_SPLIT})'),
    *PROMPTS,
    SIMILARITY,
    Flag('keep_empty', 'accept passages without text', flags.DEFINE_boolean, group='advanced'),
    Flag(
        'sts_columns',
        f'columns of the two texts and the score of --sts (default: {_DEFAULT_COLUMNS})',
        group='advanced',
    ),
)


def is_requested(values: flags.FlagValues) -> bool:
    """Returns whether vectors are to be measured.

    Raises:
      BadInput: if a flag is given that only applies to them, or that does not apply to them.
    """
    if any(values[name].value for name in _TASKS):
        for name in ('source', 'average', 'config', 'sample'):
            if values[name].present:
                raise BadInput(f'--{name}', 'does not apply to --retrieval and --sts', f'no --{name}')
        of_retrieval = ('split', 'bm25', 'keep_empty', 'rerank')
        needs = {'retrieval': of_retrieval, 'rerank': ('rerank_depth',), 'sts': ('sts_columns',)}
        for task, names in needs.items():
            if not values[task].value:
                _check_not_given(values, names, task)
        return True
    _check_not_given(values, tuple(flag.name for flag in FLAGS if flag.name not in _TASKS), 'retrieval')
    return False


def _check_not_given(values: flags.FlagValues, names: tuple[str, ...], task: str) -> None:
    for name in names:
        if values[name].value is not None:
            raise BadInput(f'--{name}', f'applies only with --{task}', f'--{task} too, or no --{name}')


def run(command: Command, values: flags.FlagValues) -> int:
    """Measures the model, the baseline and BM25; prints a table and writes `--output`."""
    from bert_jax.evaluation.retrieval import bm25, dataset, evaluate, similarity
    from bert_jax.finetune.rerank import check_cross_encoder
    from bert_jax.workdir.result import check_output

    name, step = _model_and_step(command, values)
    check_output(values.output or '')
    split, has_bm25 = values.split or _DEFAULT_SPLIT, bm25.is_installed() if values.bm25 is None else values.bm25
    if values.bm25:
        bm25.check_is_installed()
    models = _settings_of_models(values, name, step)
    if values.rerank:
        check_cross_encoder(values.rerank)
    retrieval = values.retrieval and dataset.read_set(values.retrieval, split, keep_empty=bool(values.keep_empty))
    pairs = values.sts and similarity.read_scored_pairs(values.sts, _columns(values))
    retrieved, scored = _measure_models(models, retrieval, pairs, values.rerank, values.rerank_depth or _MAX_DEPTH)
    if retrieval and has_bm25:
        retrieved.append(evaluate.evaluate_bm25(retrieval))
    elif retrieval and values.bm25 is None:
        say("BM25 is left out, because bm25s is not installed; pip install -e '.[retrieval]' installs it")
    result: dict[str, Any] = {'model': name, 'step': step}
    tables = []
    if retrieval:
        result['retrieval'] = evaluate.summarize(values.retrieval, split, retrieval, retrieved)
        tables.append(evaluate.describe(result['retrieval']))
    if pairs:
        result['sts'] = {'file': values.sts, 'pairs': len(pairs.scores), 'systems': scored}
        tables.append(similarity.describe(result['sts']))
    if values.output:
        write_whole(values.output, json.dumps(result) + '\n')
    print_result(values, result, '\n\n'.join(tables), is_in_files=bool(values.output))
    return 0


def _model_and_step(command: Command, values: flags.FlagValues) -> tuple[str, int | None]:
    if values.model and values.workdir:
        raise BadInput('--model', 'is given together with --workdir', 'one of the two')
    if values.workdir:
        return workdir_and_step(command, values)
    return required(command, values, 'model'), values.step


def _columns(values: flags.FlagValues) -> tuple[str, str, str]:
    names = tuple((values.sts_columns or _DEFAULT_COLUMNS).split(','))
    if len(names) != 3 or len({*names}) < 3 or not all(names):
        raise BadInput(f'--sts_columns={values.sts_columns}', 'does not name three columns', _DEFAULT_COLUMNS)
    return names


def _settings_of_models(values: flags.FlagValues, name: str, step: int | None) -> dict[str, tuple[Any, int | None]]:
    """Returns {name: (settings, step)} of the model and of the baseline, if there is one."""
    from bert_jax.finetune.sentences import read_settings
    from bert_jax.pretrained.sentences import read_retrieval_settings

    names = {name: step} | ({values.baseline: None} if values.baseline else {})
    if values.baseline == name:
        raise BadInput(f'--baseline={name}', 'is the model itself', 'another model')
    given = values.queries_prompt, values.passages_prompt, values.similarity
    return {
        each: (read_retrieval_settings(each, *given, settings=read_settings(each)), step)
        for each, step in names.items()
    }


def _measure_models(
    models: dict[str, tuple[Any, int | None]], retrieval: Any, pairs: Any, rerank: str | None, depth: int
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Returns the results of each model, one model in memory at a time: (on the retrieval set, on the scored pairs).

    Args:
      rerank: the cross-encoder that reorders the first `depth` passages of the first model, if any.
    """
    from bert_jax.evaluation.retrieval.evaluate import rank_passages
    from bert_jax.evaluation.retrieval.similarity import evaluate_similarity
    from bert_jax.finetune.load import load_model
    from bert_jax.finetune.rerank import evaluate_reranked, load_cross_encoder
    from bert_jax.finetune.sentences import read_settings

    enable_compilation_cache()
    retrieved, scored, rankings = [], [], {}
    for name, (settings, step) in models.items():
        pretrained = load_model(settings.queries.directory, step)
        if retrieval:
            system, rankings[name] = rank_passages(name, pretrained, settings, retrieval)
            retrieved.append(system)
        if pairs:
            scored.append(evaluate_similarity(name, pretrained, read_settings(name), pairs))
    if rerank:
        del pretrained
        first, title = next(iter(rankings)), f'{next(iter(rankings))} + {rerank}'
        reranked = evaluate_reranked(title, load_cross_encoder(rerank), retrieval, rankings[first], depth)
        retrieved.insert(1, reranked)
    return retrieved, scored

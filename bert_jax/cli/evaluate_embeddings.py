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
_FIRST_STAGES = ('model', 'bm25')
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
    Flag(
        'first_stage',
        f'whose passages --rerank reorders, {" or ".join(_FIRST_STAGES)} (default: model); bm25 needs no --model',
    ),
    Flag(
        'dims',
        'use the first dims of the vectors, as `embed` (default: all, then each of those that the model was trained '
        'for)',
        flags.DEFINE_integer,
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
        of_retrieval = ('split', 'bm25', 'keep_empty', 'rerank', *(flag.name for flag in (*PROMPTS, SIMILARITY)))
        needs = {'retrieval': of_retrieval, 'rerank': ('rerank_depth', 'first_stage'), 'sts': ('sts_columns',)}
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

    starts_with_bm25 = _starts_with_bm25(values)
    name, step = _model_and_step(command, values, is_needed=not starts_with_bm25)
    check_output(values.output or '')
    split, has_bm25 = values.split or _DEFAULT_SPLIT, bm25.is_installed() if values.bm25 is None else values.bm25
    if values.bm25 or starts_with_bm25:
        bm25.check_is_installed()
    models = _settings_of_models(values, name, step)
    if values.rerank:
        check_cross_encoder(values.rerank)
    retrieval = values.retrieval and dataset.read_set(values.retrieval, split, keep_empty=bool(values.keep_empty))
    pairs = values.sts and similarity.read_scored_pairs(values.sts, _columns(values))
    enable_compilation_cache()
    retrieved, scored = _measure_models(models, retrieval, pairs, values.dims)
    if retrieval and (has_bm25 or starts_with_bm25):
        retrieved['BM25'] = [evaluate.rank_with_bm25(retrieval)]
    elif retrieval and values.bm25 is None:
        say("BM25 is left out, because bm25s is not installed; pip install -e '.[retrieval]' installs it")
    if values.rerank:
        first = 'BM25' if starts_with_bm25 else str(name)
        retrieved[first].append(_rerank(retrieved[first][0], values.rerank, retrieval, values.rerank_depth))
    result: dict[str, Any] = {'model': name, 'step': step}
    tables = []
    if retrieval:
        systems = [ranked.system for rows in retrieved.values() for ranked in rows]
        result['retrieval'] = evaluate.summarize(values.retrieval, split, retrieval, systems)
        tables.append(evaluate.describe(result['retrieval']))
    if pairs:
        result['sts'] = {'file': values.sts, 'pairs': len(pairs.scores), 'systems': scored}
        tables.append(similarity.describe(result['sts']))
    if values.output:
        write_whole(values.output, json.dumps(result) + '\n')
    print_result(values, result, '\n\n'.join(tables), is_in_files=bool(values.output))
    return 0


def _starts_with_bm25(values: flags.FlagValues) -> bool:
    """Returns whether `--rerank` reorders the passages that BM25 finds."""
    stage = values.first_stage or _FIRST_STAGES[0]
    if stage not in _FIRST_STAGES:
        raise BadInput(f'--first_stage={stage}', 'is not a first stage', ' or '.join(_FIRST_STAGES))
    if stage == 'bm25' and values.bm25 is False:
        raise BadInput('--nobm25', 'is given together with --first_stage=bm25', 'one of the two')
    return stage == 'bm25'


def _model_and_step(command: Command, values: flags.FlagValues, *, is_needed: bool) -> tuple[str | None, int | None]:
    """Returns the model and its step; (None, None) if none is given, which is an error if one is needed."""
    if values.model and values.workdir:
        raise BadInput('--model', 'is given together with --workdir', 'one of the two')
    if values.workdir:
        return workdir_and_step(command, values)
    if not values.model and not values.sts and not is_needed:
        return None, None
    return required(command, values, 'model'), values.step


def _columns(values: flags.FlagValues) -> tuple[str, str, str]:
    names = tuple((values.sts_columns or _DEFAULT_COLUMNS).split(','))
    if len(names) != 3 or len({*names}) < 3 or not all(names):
        raise BadInput(f'--sts_columns={values.sts_columns}', 'does not name three columns', _DEFAULT_COLUMNS)
    return names


def _settings_of_models(
    values: flags.FlagValues, name: str | None, step: int | None
) -> dict[str, tuple[Any, int | None]]:
    """Returns {name: (settings, step)} of the model and of the baseline, if there are any."""
    from bert_jax.finetune.sentences import read_settings
    from bert_jax.pretrained.sentences import read_retrieval_settings

    names = ({name: step} if name else {}) | ({values.baseline: None} if values.baseline else {})
    if values.baseline and values.baseline == name:
        raise BadInput(f'--baseline={name}', 'is the model itself', 'another model')
    given = values.queries_prompt, values.passages_prompt, values.similarity
    return {each: (read_retrieval_settings(each, read_settings(each), *given), step) for each, step in names.items()}


def _measure_models(
    models: dict[str, tuple[Any, int | None]], retrieval: Any, pairs: Any, dims: int | None
) -> tuple[dict[str, list[Any]], list[dict[str, Any]]]:
    """Measures each model, one in memory at a time.

    Args:
      dims: size of the vectors; None for all, then each of the Matryoshka dims of the model.

    Returns:
      ({name: a `Ranked` of each size} on the retrieval set, the results of each size on the scored pairs).
    """
    from bert_jax.evaluation.retrieval.evaluate import rank_passages
    from bert_jax.evaluation.retrieval.similarity import evaluate_similarity
    from bert_jax.finetune.load import load_model
    from bert_jax.finetune.sentences import read_settings
    from bert_jax.pretrained.embed import num_dims

    retrieved, scored = {}, []
    for name, (settings, step) in models.items():
        pretrained = load_model(settings.queries.directory, step)
        num_dims(settings.queries, pretrained.config.hidden_size, dims)  # checks them
        smaller = () if dims else settings.queries.matryoshka_dims
        if retrieval:
            retrieved[name] = rank_passages(name, pretrained, settings, retrieval, dims, smaller)
        if pairs:
            scored += evaluate_similarity(name, pretrained, read_settings(name), pairs, dims, smaller)
    return retrieved, scored


def _rerank(first: Any, rerank: str, retrieval: Any, depth: int | None) -> Any:
    """Returns a `Ranked`: what the first stage found, of which a cross-encoder reorders the first `depth` passages."""
    from bert_jax.finetune.rerank import load_cross_encoder, rerank_passages

    title = f'{first.system["system"]} + {rerank}'
    return rerank_passages(title, load_cross_encoder(rerank), retrieval, first.rankings, depth or _MAX_DEPTH)

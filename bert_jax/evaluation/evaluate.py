"""Evaluates a pretrained model on held-out text or on other text, and computes trivial baselines."""

import contextlib
import dataclasses
import functools
import json
import math
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh

from bert_jax.activity import activity
from bert_jax.config import Config, is_records, model_at, phase_at, positions_trained
from bert_jax.console import say
from bert_jax.data.batches import CorpusStream
from bert_jax.data.evaluation_rows import rows_by_length, rows_of_phase
from bert_jax.data.streams import HeldOutStream, open_streams
from bert_jax.errors import BadInput
from bert_jax.evaluation import causal_text, evaluation_file, masked_words, pseudo_perplexity
from bert_jax.evaluation.held_out import evaluate_params
from bert_jax.evaluation.sample import Window, read_held_out_windows, read_source_windows
from bert_jax.files import json_digest
from bert_jax.model.replaced_tokens import build_of, to_family
from bert_jax.pretrained.average import averaged_params, evaluation_stem
from bert_jax.pretrained.families import hub_of
from bert_jax.pretrained.hub import MLM_HEAD
from bert_jax.pretrained.load import from_params
from bert_jax.pretrained.provenance import AveragedCheckpoint, of_run, start_of
from bert_jax.runtime.mesh import make_mesh, mesh_of_run
from bert_jax.text.corpus import load_corpus
from bert_jax.text.merge import MIN_DOCUMENTS
from bert_jax.text.prepare import prepare
from bert_jax.text.tokenizer import Tokenizer, load_saved_tokenizer
from bert_jax.train.objectives import objective_of
from bert_jax.train.program import build_program
from bert_jax.train.state import TrainState, distribute
from bert_jax.workdir import identity
from bert_jax.workdir.checkpoint import restore_on
from bert_jax.workdir.result import save

_NOT_LEARNED = dict.fromkeys(('mlm_loss', 'mlm_accuracy', 'nsp_loss', 'nsp_accuracy'))  # by some objectives
_PERPLEXITY_STRIDE = 8  # pseudo-perplexity uses one window in eight, because it needs one row per token


def baselines(unigram_counts: np.ndarray) -> dict[str, float | None]:
    """Computes the baselines of a model that knows only the frequency of each token in the evaluated text.

    Args:
      unigram_counts: [V], how often each token occurs.

    Returns:
      unigram_entropy: its MLM loss in nats.
      most_frequent_accuracy: its MLM accuracy. Both are None for text without tokens.
    """
    counts = unigram_counts[unigram_counts > 0]
    if not len(counts):
        return {'unigram_entropy': None, 'most_frequent_accuracy': None}
    frequencies = counts / counts.sum()
    entropy = float(-(frequencies * np.log(frequencies)).sum())
    return {'unigram_entropy': entropy, 'most_frequent_accuracy': float(frequencies.max())}


def evaluate(
    workdir: str,
    step: int | None = None,
    *,
    source: str = '',
    sample: int = 512,
    output: str = '',
    config: Config | None = None,
    devices: list[jax.Device] | None = None,
    workers: int = 1,
    average: Sequence[AveragedCheckpoint] = (),
) -> dict[str, Any]:
    """Evaluates a checkpoint on the whole validation split of its run, or on all text of a source.

    Writes WORKDIR/evaluation.json, or WORKDIR/evaluation-NAME.json if `source` or `average` is given; both keep samples
    of other sizes (`evaluation_file.py`). With `output`, writes only that file. If the workdir is not writable, reports
    that and writes nothing. A source is encoded in a temporary directory, with the run's tokenizer and settings.

    Args:
      step: the checkpoint to evaluate; by default the newest.
      source: other text to evaluate on, as in `data.source`.
      sample: number of text windows for the masked-word metric, one in eight also for pseudo-perplexity; 0 disables
        both.
      output: the file to write.
      config: overrides the mesh and `data.local_copy`. By default the mesh is the run's if it fits the devices, or else
        a single device.
      devices: the devices to use; by default all.
      workers: number of processes that read a source.
      average: checkpoints whose mean is evaluated instead, the first of the workdir (`pretrained.average.parse`).

    Returns:
      step, mlm_loss, mlm_accuracy, nsp_loss, nsp_accuracy, mlm_loss_by_length and the `baselines`. A metric is None if
      the text contains nothing to measure it on (no pairs, no token to mask), or the phase of the step does not learn
      it. Other objectives have their own: clm_loss and clm_accuracy, mntp_loss and mntp_accuracy. With a sample also
      the results of `masked_words.measure`, `pseudo_perplexity`, and its baseline `unigram_perplexity`; in a phase that
      reads causally and fills no masks, those of `causal_text.measure`; if the source of the validation split cannot be
      read again, `sample_missing` says why instead. With `average`, the averaged checkpoints and the largest of their
      steps.

    Raises:
      BadInput: if the run, its checkpoint or its corpus does not exist, or if the source cannot be read.
    """
    run_config = identity.load_config(workdir)
    if config is not None:
        data = dataclasses.replace(run_config.data, local_copy=config.data.local_copy)
        run_config = dataclasses.replace(run_config, data=data)
    mesh = _choose_mesh(run_config, config, jax.devices() if devices is None else devices)
    restore = functools.partial(_restore, mesh, workdir, run_config, step, average)
    if source:
        with _errors_naming_flag(source), tempfile.TemporaryDirectory(prefix='bert_jax-evaluate-') as directory:
            result = _evaluate_source(workdir, run_config, restore, mesh, source, sample, directory, workers)
    else:
        result = _evaluate_validation_split(workdir, run_config, restore, mesh, sample)
    if average:
        result |= {'average': [part.to_json() for part in average]}
    if run_config.train.ema:
        result |= {'ema': run_config.train.ema}
    _report_untrained_weights(workdir, run_config, result['step'])
    name = f'{evaluation_stem(average)}{_file_suffix(source)}.json'
    content = result if output else evaluation_file.merge(evaluation_file.read(epath.Path(workdir) / name), result)
    save(json.dumps(content) + '\n', workdir, name, output)
    return result


def _report_untrained_weights(workdir: str, run_config: Config, step: int) -> None:
    """Reports metrics that depend on untrained weights, such as the MLM head of an imported encoder."""
    provenance = of_run(run_config, step, start_of(workdir))
    if not hub_of(run_config.model).fills_masks(provenance.untrained_heads):
        say(f'{workdir}: the {MLM_HEAD} is untrained, so its metrics say nothing about the encoder')
    length = rows_of_phase(run_config, phase_at(run_config, step)).data.sequence_length
    if length > (trained := provenance.max_length(run_config.model.max_positions)):
        say(f'{workdir}: evaluated on rows of {length} tokens, but trained only on rows of up to {trained}')


@contextlib.contextmanager
def _errors_naming_flag(source: str) -> Iterator[None]:
    """Makes errors about `data.source` name the flag --source instead."""
    try:
        yield
    except BadInput as error:
        if 'data.source' not in error.where:
            raise
        raise BadInput(f'--source={source}', error.found, error.expected, error.fix) from error


def _restore(
    mesh: Mesh,
    workdir: str,
    run_config: Config,
    step: int | None,
    average: Sequence[AveragedCheckpoint],
    vocab_size: int,
) -> TrainState:
    """Returns the state to evaluate: that of a checkpoint, with the weights of `average` if that is given."""
    if not average:
        return restore_on(mesh, workdir, run_config, vocab_size, step)
    state = restore_on(mesh, workdir, run_config, vocab_size, average[0].step)
    params = jax.tree.map(lambda mean, leaf: distribute(mean, leaf.sharding), averaged_params(average), state.params)
    return state._replace(step=max(part.step for part in average), params=params, ema=None)


def _file_suffix(source: str) -> str:
    """Returns the end of a result file's stem: a readable part plus a hash, so that distinct sources never collide."""
    readable = re.sub(r'[^A-Za-z0-9.]+', '-', source).strip('-.')[-40:]
    return f'-{readable}-{json_digest(source)[:8]}' if source else ''


def _choose_mesh(run_config: Config, override: Config | None, devices: list[jax.Device]) -> Mesh:
    """Returns the mesh of `override`; without it the run's mesh if it fits the devices, or else one device."""
    if override is not None:
        return mesh_of_run(dataclasses.replace(run_config, mesh=override.mesh), devices)
    try:
        return mesh_of_run(run_config, devices)
    except BadInput:
        return make_mesh(Config().mesh, run_config.model, Config().train, devices[:1])


def _evaluate_validation_split(
    workdir: str, run_config: Config, restore: Callable[[int], TrainState], mesh: Mesh, sample: int
) -> dict[str, Any]:
    identity.check_corpus_exists(workdir, run_config)
    streams = open_streams(run_config).of_workdir(workdir)
    validation = [stream for stream in streams.validation if stream is not None]
    if len(validation) < len(streams.validation):
        raise BadInput(
            'config.data.validation_fraction',
            'held out too little text for the objective',
            'a validation split with enough text',
            'prepare the corpus with a larger fraction, or with a data.validation_source',
        )
    if streams.tokenizer.hash != identity.load_fingerprint(workdir)['tokenizer']:  # imported model, or corpus rebuilt
        raise BadInput(run_config.data.corpus, 'was prepared with another tokenizer', f'the tokenizer in {workdir}')
    state = restore(streams.tokenizer.vocab_size)
    stream = validation[phase_at(run_config, int(state.step))]
    by_length = streams.validation_by_length(positions_trained(streams.config, int(state.step)))
    result = _evaluate_streams(state, run_config, streams.tokenizer, stream, by_length, mesh)
    result |= baselines(streams.unigram_counts())
    if not sample:
        return result
    try:
        windows = read_held_out_windows(run_config.data, sample)
    except BadInput as error:
        return result | {'sample_missing': f'{error.where}: {error.found}'}
    return result | _evaluate_sample(workdir, state, run_config, streams.tokenizer, windows, result['unigram_entropy'])


def _evaluate_source(
    workdir: str,
    run_config: Config,
    restore: Callable[[int], TrainState],
    mesh: Mesh,
    source: str,
    sample: int,
    directory: str,
    workers: int,
) -> dict[str, Any]:
    if is_records(source):
        raise BadInput(f'--source={source}', 'contains ids, not text', 'a source of text')
    fields = {'source': source, 'validation_source': '', 'validation_fraction': 0.0, 'local_copy': ''}
    kept_whole = {'deduplicate_lines': False, 'languages': (), 'quality_rules': (), 'boilerplate_documents': 0}
    data = dataclasses.replace(run_config.data, **fields, **kept_whole, corpus=f'{directory}/corpus')
    tokenizer = load_saved_tokenizer(epath.Path(workdir) / 'tokenizer')
    unpaired = dataclasses.replace(data, pairing='none')
    prepare(unpaired, Config().tokenizer, initial=tokenizer, workers=workers)
    corpus = load_corpus(data.corpus)
    state = restore(tokenizer.vocab_size)
    has_pairs = len(corpus.train.documents) - 1 >= MIN_DOCUMENTS
    run = dataclasses.replace(run_config, data=data if has_pairs else unpaired)
    rows = rows_of_phase(run, phase_at(run, int(state.step)))
    stream, *streams = (
        CorpusStream(corpus, each.data, 'train', batch_size=each.batch_size, seed=None)
        for each in (rows, *rows_by_length(run, positions_trained(run, int(state.step))).values())
    )
    by_length = {each.data.sequence_length: each for each in streams}
    result: dict[str, Any] = {'source': source}
    result |= _evaluate_streams(state, run_config, tokenizer, stream, by_length, mesh)
    result |= baselines(corpus.train.unigram_counts(tokenizer.vocab_size))
    if not sample:
        return result
    windows = read_source_windows(data, source, sample)
    return result | _evaluate_sample(workdir, state, run_config, tokenizer, windows, result['unigram_entropy'])


def _evaluate_streams(
    state: TrainState,
    run_config: Config,
    tokenizer: Tokenizer,
    stream: HeldOutStream,
    by_length: Mapping[int, HeldOutStream],
    mesh: Mesh,
) -> dict[str, Any]:
    """Computes the metrics on the rows of a stream, and the MLM loss on fixed rows of each length."""
    model, optimizer, train = model_at(run_config, int(state.step)), run_config.optimizer, run_config.train
    phase = run_config.in_phases[phase_at(run_config, int(state.step))]
    program = build_program(
        model,
        optimizer,
        train,
        tokenizer.vocab_size,
        mesh,
        phases=run_config.phases,
        build=build_of(phase.objective),
        objective=objective_of(phase.objective),
    )

    def measure(rows: HeldOutStream) -> dict[str, float | None]:
        metrics = evaluate_params(state.weights, program, rows)
        assert metrics is not None  # None means interrupted
        return metrics

    metrics = measure(stream)
    of_lengths = {
        str(length): metrics if rows.data == stream.data else measure(rows) for length, rows in by_length.items()
    }
    losses = {length: of_length['mlm_loss'] for length, of_length in of_lengths.items() if 'mlm_loss' in of_length}
    return {'step': int(state.step), **_NOT_LEARNED} | metrics | {'mlm_loss_by_length': losses}


def _evaluate_sample(
    workdir: str,
    state: TrainState,
    run_config: Config,
    tokenizer: Tokenizer,
    windows: list[Window],
    unigram_entropy: float | None,
) -> dict[str, Any]:
    """Computes the metrics on raw text, in rows no longer than the run has been trained on up to this step.

    Masked words where the phase of the step learns to fill masks; text read causally where it only learns other tokens.
    """
    step = int(state.step)
    objective = run_config.in_phases[phase_at(run_config, step)].objective
    provenance = of_run(run_config, step, start_of(workdir))
    model = model_at(run_config, step)
    params = to_family(state.weights, objective, model, tokenizer.vocab_size)
    pretrained = from_params(params, model, tokenizer, step, provenance)
    if not (objective.fills_masks or objective.reads_causally):
        return {}
    if not objective.fills_masks:
        with activity('text read causally'):
            return causal_text.measure(pretrained, windows)
    with activity('masked words'):
        metrics = masked_words.measure(pretrained, windows)
    with activity('pseudo-perplexity'):
        perplexity = pseudo_perplexity.measure(pretrained, windows[::_PERPLEXITY_STRIDE])
    baseline = None if unigram_entropy is None else math.exp(unigram_entropy)
    return metrics | {'pseudo_perplexity': perplexity, 'unigram_perplexity': baseline}


def describe(result: dict[str, Any]) -> str:
    """Formats the metrics and their baselines as a table for a terminal; '–' if the text has nothing to measure."""
    rows = [*_loss_rows(result)]
    if result.get('causal_nats_per_character') is not None:
        unigram_nats = f'{result["unigram_nats_per_character"]:.3f} (character frequencies alone)'
        rows.append(('Read causally', f'{result["causal_nats_per_character"]:.3f} nats per character', unigram_nats))
    if result['nsp_accuracy'] is not None:
        rows.append(('NSP accuracy', f'{result["nsp_accuracy"]:.1%}', '50.0% (chance)'))
    if result.get('masked_word_nats_per_character') is not None:
        unigram_nats = f'{result["unigram_nats_per_character"]:.3f} (character frequencies alone)'
        nats = f'{result["masked_word_nats_per_character"]:.3f} nats per character'
        rows.append(('Masked words', nats, unigram_nats))
    if result.get('pseudo_perplexity') is not None:
        unigram_perplexity = f'{_format(result["unigram_perplexity"], ".1f")} (token frequencies alone)'
        rows.append(('Pseudo-perplexity', f'{result["pseudo_perplexity"]:.1f}', unigram_perplexity))
    averaged, ema = result.get('average'), result.get('ema')
    weights = f'with the average of {len(averaged)} checkpoints' if averaged else f'at step {result["step"]}'
    weights += f', moving average of the weights (train.ema={ema})' if ema else ''
    lines = [f'{result.get("source", "Held-out text")} {weights}:']
    lines += [f'  {name:17}  {value:24}  baseline: {baseline}' for name, value, baseline in rows]
    return '\n'.join([*lines, *_describe_lengths(result), *_describe_sample(result)])


def _loss_rows(result: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Yields (name, value, baseline) of the losses and accuracies of tokens that were measured, or the missing MLM."""
    entropy, most_frequent = _format(result['unigram_entropy'], '.3f'), _format(result['most_frequent_accuracy'], '.1%')
    of_loss, of_accuracy = f'{entropy} (token frequencies alone)', f'{most_frequent} (always the most frequent token)'
    titles = {'mlm': 'MLM', 'clm': 'CLM', 'mntp': 'MNTP', 'generator': 'Generator', 'rtd': 'RTD'}
    names = [name for name in titles if result.get(f'{name}_accuracy') is not None] or ['mlm']
    for name in names:
        if name == 'rtd':
            share = result['replaced_share']
            chance = -sum(p * math.log(p) for p in (share, 1 - share) if p > 0)
            of_loss, of_accuracy = (
                f'{chance:.3f} (share of replaced tokens alone)',
                f'{1 - share:.1%} (always original)',
            )
        yield f'{titles[name]} loss', f'{_format(result[f"{name}_loss"], ".3f")} nats per token', of_loss
        yield f'{titles[name]} accuracy', _format(result[f'{name}_accuracy'], '.1%'), of_accuracy


def _describe_lengths(result: dict[str, Any]) -> list[str]:
    """Returns a line with the loss on rows of each length, if there are several."""
    losses = result.get('mlm_loss_by_length', {})
    if len(losses) < 2:
        return []
    listed = ', '.join(f'{_format(loss, ".3f")} at {length}' for length, loss in losses.items())
    return [f'  MLM loss by row length: {listed} positions']


def _describe_sample(result: dict[str, Any]) -> list[str]:
    """Returns lines about the sample of words, or about why there is none."""
    if 'sample_missing' in result:
        return [f'  Masked words and pseudo-perplexity were not measured: {result["sample_missing"]}']
    if result.get('masked_word_nats_per_character') is None:
        return []
    return [
        f'  Masked words are {result["masked_words"]:,} words in {result["windows"]:,} text windows (--sample); '
        f'{_format(result["unknown_characters"], ".1%")} of their characters are [UNK]; '
        f'{result["windows_cut"]:,} windows were too long for one row.',
        f'  Compare them only with results on the same sample: {result["words_sample"]}',
    ]


def _format(value: float | None, format_spec: str) -> str:
    return '–' if value is None else f'{value:{format_spec}}'

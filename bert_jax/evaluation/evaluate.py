"""How good the model is on text that it was not trained on, and the baselines to read that by."""

import contextlib
import dataclasses
import json
import math
import re
import tempfile
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh

from bert_jax.activity import activity
from bert_jax.config import Config, is_records, phase_at
from bert_jax.console import say
from bert_jax.data.batches import CorpusStream, Stream
from bert_jax.data.streams import open_streams
from bert_jax.errors import BadInput
from bert_jax.evaluation import pseudo_perplexity, recorded, words
from bert_jax.evaluation.held_out import evaluate_params
from bert_jax.evaluation.sample import Window, held_out_windows, windows_of_source
from bert_jax.files import json_digest
from bert_jax.pretrained.hub import MLM_HEAD
from bert_jax.pretrained.load import from_params
from bert_jax.pretrained.provenance import of_run, start_of
from bert_jax.runtime.mesh import make_mesh, mesh_of_run
from bert_jax.text.corpus import load_corpus
from bert_jax.text.merge import MIN_DOCUMENTS
from bert_jax.text.prepare import prepare
from bert_jax.text.tokenizer import Tokenizer, load_saved_tokenizer
from bert_jax.train.program import build_program
from bert_jax.train.state import TrainState
from bert_jax.workdir import identity
from bert_jax.workdir.checkpoint import restore_on
from bert_jax.workdir.result import save

_WINDOWS_A_PERPLEXITY = 8  # of so many windows one is taken for pseudo-perplexity, which takes a row for every token


def baselines(unigram_counts: np.ndarray) -> dict[str, float | None]:
    """What knowing only how frequent the tokens of the evaluated text are gives: entropy (nats) and best hit rate.

    None for a text without tokens.
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
) -> dict[str, Any]:
    """Evaluates a checkpoint of a workdir: on the whole validation split, or on all text of a source.

    Writes WORKDIR/evaluation.json, or with `source` WORKDIR/evaluation-NAME.json, which keeps samples of other sizes
    (`recorded.py`); with `output` that file alone. A workdir that cannot be written to is reported and left as it is.
    The corpus of a source is made in the directory for temporary files, with the run's tokenizer and settings, and
    removed at the end.

    Args:
      source: as `data.source`, of text.
      sample: windows of text in which words are masked; every eighth is taken for pseudo-perplexity. 0: neither.
      output: file to write.
      config: gives `data.local_copy`, and the mesh, where it fits the devices. Without it the mesh is the run's, where
        that fits, else one device.
      devices: all without it.
      workers: processes that read a source.

    Returns:
      step, mlm_loss, mlm_accuracy, nsp_loss, nsp_accuracy, and the `baselines`, each None where the text holds nothing
      to measure it on (no pairs, no token to mask); of the sample what `words.measure` returns, `pseudo_perplexity`,
      and its baseline `unigram_perplexity`. Where the source of the validation split cannot be read again,
      `sample_missing` says why instead.

    Raises:
      BadInput: when there is no run, no checkpoint or no corpus, or for a source that cannot be read.
    """
    run_config = identity.load_config(workdir)
    if config is not None:
        data = dataclasses.replace(run_config.data, local_copy=config.data.local_copy)
        run_config = dataclasses.replace(run_config, data=data)
    mesh = _mesh(run_config, config, jax.devices() if devices is None else devices)
    if source:
        with _named_by_its_flag(source), tempfile.TemporaryDirectory(prefix='bert_jax-evaluate-') as directory:
            result = _on_source(workdir, run_config, step, mesh, source, sample, directory, workers)
    else:
        result = _on_validation(workdir, run_config, step, mesh, sample)
    _report_untrained(workdir, run_config, result['step'])
    name = f'{_name(source)}.json'
    kept = result if output else recorded.merged(recorded.read(epath.Path(workdir) / name), result)
    save(json.dumps(kept) + '\n', workdir, name, output)
    return result


def _report_untrained(workdir: str, run_config: Config, step: int) -> None:
    """Says which figures are of weights that were not trained, as those of an imported encoder may be."""
    provenance = of_run(run_config, step, start_of(workdir))
    if MLM_HEAD in provenance.untrained_heads:
        say(f'{workdir}: the {MLM_HEAD} is not trained, so its figures say nothing about the model')
    length = run_config.in_phases[phase_at(run_config, step)].data.sequence_length
    if length > (trained := provenance.max_length(run_config.model.max_positions)):
        say(f'{workdir}: evaluated on rows of {length} tokens, and trained on up to {trained}')


@contextlib.contextmanager
def _named_by_its_flag(source: str) -> Iterator[None]:
    try:
        yield
    except BadInput as error:
        if 'data.source' not in error.where:
            raise
        raise BadInput(f'--source={source}', error.found, error.expected, error.fix) from error


def _name(source: str) -> str:
    """What the figures on a source are called; nothing of it is lost, for a hash tells apart what looks the same."""
    readable = re.sub(r'[^A-Za-z0-9.]+', '-', source).strip('-.')[-40:]
    return f'evaluation-{readable}-{json_digest(source)[:8]}' if source else 'evaluation'


def _mesh(run_config: Config, given: Config | None, devices: list[jax.Device]) -> Mesh:
    """Over all devices, as the config says; where the run's own does not fit them, the first device."""
    if given is not None:
        changed = dataclasses.replace(run_config, mesh=given.mesh)
        return mesh_of_run(changed, devices)
    try:
        return mesh_of_run(run_config, devices)
    except BadInput:
        return make_mesh(Config().mesh, run_config.model, Config().train, devices[:1])


def _on_validation(workdir: str, run_config: Config, step: int | None, mesh: Mesh, sample: int) -> dict[str, Any]:
    identity.check_corpus_exists(workdir, run_config)
    streams = open_streams(run_config).of_workdir(workdir)
    validation = [stream for stream in streams.validation if stream is not None]
    if len(validation) < len(streams.validation):
        raise BadInput(
            'config.data.validation_fraction',
            'held out too little text for the objective',
            'a validation split',
            'a larger fraction, or a data.validation_source',
        )
    if streams.tokenizer.hash != identity.load_fingerprint(workdir)['tokenizer']:  # of an imported model, or made anew
        raise BadInput(run_config.data.corpus, 'was made with another tokenizer', f'the tokenizer in {workdir}')
    state = restore_on(mesh, workdir, run_config, streams.tokenizer.vocab_size, step)
    stream = validation[phase_at(run_config, int(state.step))]
    result = _losses(state, run_config, streams.tokenizer, stream, mesh) | baselines(streams.unigram_counts())
    if not sample:
        return result
    try:
        windows = held_out_windows(run_config.data, sample)
    except BadInput as error:
        return result | {'sample_missing': f'{error.where}: {error.found}'}
    return result | _on_sample(workdir, state, run_config, streams.tokenizer, windows, result['unigram_entropy'])


def _on_source(
    workdir: str,
    run_config: Config,
    step: int | None,
    mesh: Mesh,
    source: str,
    sample: int,
    directory: str,
    workers: int,
) -> dict[str, Any]:
    if is_records(source):
        raise BadInput(f'--source={source}', 'holds ids, not text', 'a source of text')
    fields = {'source': source, 'validation_source': '', 'validation_fraction': 0.0, 'local_copy': ''}
    data = dataclasses.replace(run_config.data, **fields, corpus=f'{directory}/corpus', deduplicate_lines=False)
    tokenizer = load_saved_tokenizer(epath.Path(workdir) / 'tokenizer')
    unpaired = dataclasses.replace(data, pairing='none')
    prepare(unpaired, Config().tokenizer, initial=tokenizer, workers=workers)
    corpus = load_corpus(data.corpus)
    state = restore_on(mesh, workdir, run_config, tokenizer.vocab_size, step)
    phase = dataclasses.replace(run_config, data=data).in_phases[phase_at(run_config, int(state.step))]
    has_pairs = len(corpus.train.documents) - 1 >= MIN_DOCUMENTS
    data = phase.data if has_pairs else dataclasses.replace(phase.data, pairing='none')
    stream = CorpusStream(corpus, data, 'train', batch_size=phase.train.global_batch_size, seed=None)
    result: dict[str, Any] = {'source': source}
    result |= _losses(state, run_config, tokenizer, stream, mesh)
    result |= baselines(corpus.train.unigram_counts(tokenizer.vocab_size))
    if not sample:
        return result
    windows = windows_of_source(data, source, sample)
    return result | _on_sample(workdir, state, run_config, tokenizer, windows, result['unigram_entropy'])


def _losses(state: TrainState, run_config: Config, tokenizer: Tokenizer, stream: Stream, mesh: Mesh) -> dict[str, Any]:
    model, optimizer, train, phases = run_config.model, run_config.optimizer, run_config.train, run_config.phases
    program = build_program(model, optimizer, train, tokenizer.vocab_size, mesh, phases=phases)
    found = evaluate_params(state.params, program, stream)
    assert found is not None  # nothing stops it
    return {'step': int(state.step)} | found


def _on_sample(
    workdir: str,
    state: TrainState,
    run_config: Config,
    tokenizer: Tokenizer,
    windows: list[Window],
    unigram_entropy: float | None,
) -> dict[str, Any]:
    """What is measured on raw text; in rows no longer than those that the run was trained on up to here."""
    step = int(state.step)
    provenance = of_run(run_config, step, start_of(workdir))
    pretrained = from_params(state.params, run_config.model, tokenizer, step, provenance)
    with activity('masked words'):
        found = words.measure(pretrained, windows)
    with activity('pseudo-perplexity'):
        perplexity = pseudo_perplexity.measure(pretrained, windows[::_WINDOWS_A_PERPLEXITY])
    baseline = None if unigram_entropy is None else math.exp(unigram_entropy)
    return found | {'pseudo_perplexity': perplexity, 'unigram_perplexity': baseline}


def describe(result: dict[str, Any]) -> str:
    """The figures next to their baselines, for a terminal; a dash for what the text holds nothing to measure on."""
    loss, entropy = result['mlm_loss'], result['unigram_entropy']
    lines = [
        f'{result.get("source", "Held-out text")} at step {result["step"]}:',
        f'  MLM loss      {_show(loss, ".3f")} nats   ({_compared(loss, entropy)})',
        f'  MLM accuracy  {_show(result["mlm_accuracy"], "6.1%")}       (the most frequent token: '
        f'{_show(result["most_frequent_accuracy"], ".1%")})',
    ]
    if result['nsp_accuracy'] is not None:
        lines.append(f'  NSP accuracy  {result["nsp_accuracy"]:6.1%}       (chance: 50.0%)')
    if 'sample_missing' in result:
        lines.append(f'  Masked words and pseudo-perplexity were not measured: {result["sample_missing"]}')
    if result.get('masked_word_nats_per_character') is not None:
        lines += [
            f'  Masked words  {result["masked_word_nats_per_character"]:.3f} nats a character   '
            f'({result["unigram_nats_per_character"]:.3f}: knowing only how frequent each character is)',
            f'    {result["masked_words"]:,} words in {result["windows"]:,} windows of text (--sample), sample '
            f'{result["words_sample"]}; {_show(result["unknown_characters"], ".1%")} of their characters unknown; '
            f'{result["windows_cut"]:,} windows cut',
        ]
    if result.get('pseudo_perplexity') is not None:
        lines.append(
            f'  Pseudo-perplexity {result["pseudo_perplexity"]:.1f}   ({_show(result["unigram_perplexity"], ".1f")}: '
            'knowing only how frequent each token is)'
        )
    return '\n'.join(lines)


def _compared(loss: float | None, entropy: float | None) -> str:
    baseline = f'the {_show(entropy, ".3f")} of knowing only how frequent each token is'
    if loss is None or entropy is None:
        return f'not measured; {baseline}'
    return f'{abs(entropy - loss):.2f} {"under" if loss <= entropy else "over"} {baseline}'


def _show(value: float | None, form: str) -> str:
    return '–' if value is None else f'{value:{form}}'

"""The model card of an export: what the files of the run know, what `config.card` adds, and nothing else."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from etils import epath

from bert_jax import config
from bert_jax.json_files import read_json
from bert_jax.model.family import num_parameters
from bert_jax.pretrained.load import Pretrained
from bert_jax.pretrained.provenance import Provenance
from bert_jax.pretrained.tensor_names import MLM_HEAD, NSP_HEAD
from bert_jax.text.corpus import read_manifest
from bert_jax.version import __version__
from bert_jax.workdir import identity

_PAIRS = {
    'nsp': 'next-sentence prediction (label 0: the second text follows the first; 1: it is from another document)',
    'sop': 'sentence order (label 0: the two texts are in order; 1: they are swapped)',
}
_UNITS = dict.fromkeys(('loss', 'mlm_loss', 'nsp_loss', 'unigram_entropy'), ' nats')
_OF_WINDOWS = ('masked_word_nats_per_character', 'unigram_nats_per_character')


def model_card(workdir: str, resolved: config.Config, card: config.Card, trained: Pretrained, name: str) -> str:
    """README.md of an export: YAML front matter for a model hub, and the facts of the training."""
    untrained, step = trained.provenance.untrained_heads, trained.step or 0
    fills_masks = MLM_HEAD not in untrained
    pipeline = (
        {'pipeline_tag': 'fill-mask', 'mask_token': '[MASK]'} if fills_masks else {'pipeline_tag': 'feature-extraction'}
    )
    classes = [
        'AutoTokenizer',
        'AutoModel',
        *(['AutoModelForMaskedLM'] if fills_masks else []),
        *(['AutoModelForNextSentencePrediction'] if NSP_HEAD not in untrained else []),
        *(['AutoModelForPreTraining'] if not untrained else []),
    ]
    sections = [
        front_matter(card, pipeline),
        f'# {name}\n\n{_origin(identity.load_fingerprint(workdir), step)} `proof.json` says what was compared '
        'before this directory got its name, and holds the SHA-256 of its files.',
        *_heads(resolved.data.pairing, step, trained.provenance),
        f'Opens with {", ".join(f"`{each}`" for each in classes)}.',
        '## Model\n\n' + table(_model_facts(trained)),
    ]
    if step:
        sections.append('## Training\n\n' + table(_training_facts(resolved, step, identity.load_fingerprint(workdir))))
    if step and (corpus := _corpus_facts(workdir, resolved.data.corpus)):
        sections.append('## Corpus\n\n' + table(corpus))
    if metrics := _evaluation(workdir, step, resolved.data.pairing):
        sections.append('## Evaluation\n\nOn held-out text of the corpus, at this step:\n\n' + table(metrics))
    return '\n\n'.join(sections) + '\n'


def front_matter(card: config.Card, about: dict[str, str]) -> str:
    """The YAML that a model hub reads; `about`, what kind of model it is."""
    given = {key: [part.strip() for part in value.split(',')] for key, value in dataclasses.asdict(card).items()}
    lines: dict[str, Any] = {'library_name': 'transformers', **about, 'tags': ['bert']}
    for key, parts in given.items():
        if any(parts):
            lines[key] = parts[0] if len(parts) == 1 and key != 'datasets' else parts
    # JSON is YAML: whatever was written into a field stays a string.
    return '\n'.join(
        ['---', *(f'{key}: {json.dumps(value, ensure_ascii=False)}' for key, value in lines.items()), '---']
    )


def _origin(fingerprint: dict[str, Any], step: int) -> str:
    """Where the weights come from, in a sentence."""
    if 'imported' in fingerprint:
        return f'A BERT encoder that was trained elsewhere, imported and exported by bert_jax {__version__}.'
    if not step:
        return f'A BERT encoder before its first training step with bert_jax {__version__}.'
    begun = ', starting from another model' if 'init' in fingerprint else ''
    return f'A BERT encoder pretrained with bert_jax {__version__}{begun}.'


def _heads(pairing: str, step: int, provenance: Provenance) -> Iterator[str]:
    """What the heads were trained on, and what is left out, a paragraph each."""
    untrained = provenance.untrained_heads
    if untrained:
        reason = 'It was trained on single texts (`pairing=none`). ' if step and pairing == 'none' else ''
        names = (
            ' and the '.join(untrained) if len(untrained) < 3 else f'{", ".join(untrained[:-1])} and {untrained[-1]}'
        )
        yield (
            f'{reason}Not trained, and left out of this directory: the {names}. `transformers` initializes them at '
            'random in the classes that have them; train them before you use their outputs.'
        )
    if not step:
        yield 'Saved before any training step: the weights are those that the run started from.'
    elif pairing != 'none':
        yield f'The pooler and the pair head were trained on {_PAIRS[pairing]}.'
    if provenance.rows_dropped:
        yield (
            f'The imported embeddings had {provenance.rows_dropped:,} more rows, beyond the tokens of the tokenizer. '
            'No text can reach them, and they are left out.'
        )


def _model_facts(trained: Pretrained) -> dict[str, Any]:
    model, tokenizer = trained.config, trained.tokenizer
    return {
        'Layers': model.num_layers,
        'Hidden size': model.hidden_size,
        'Attention heads': model.num_heads,
        'Intermediate size': model.intermediate_size,
        'Positions': model.max_positions,
        'Positions trained': trained.max_length,
        'Parameters, with all heads': num_parameters(model, tokenizer.vocab_size),
        'Vocabulary': f'{tokenizer.vocab_size:,} tokens, {tokenizer.kind}',
        'Lower case': 'yes' if tokenizer.lowercase else 'no',
        'Accents stripped': 'yes' if tokenizer.strip_accents else 'no',
    }


def _training_facts(resolved: config.Config, step: int, fingerprint: dict[str, Any]) -> dict[str, Any]:
    data, train, optimizer = resolved.data, resolved.train, resolved.optimizer
    masking = data.masking
    units = {'token': 'tokens', 'word': 'tokens, by whole words', 'ngram': 'tokens, by spans of 1 to 3 words'}
    batches = [
        f'{phase.train.global_batch_size:,} rows of {phase.data.sequence_length} tokens' for phase in resolved.in_phases
    ]
    begun = {'Started from': f'another model (hash of its weights: {fingerprint["init"]})'} if resolved.init else {}
    return begun | {
        'Steps': f'{step:,} of {train.steps:,} planned',
        'Batch': ', then '.join(batches) + (', several sequences packed in a row' if data.packing else ''),
        'Masked-LM': f'{masking.rate:.0%} of the {units[masking.unit]}; of these {masking.mask_fraction:.0%} become '
        f'[MASK], {masking.random_fraction:.0%} a random token',
        'Pairs': _PAIRS.get(data.pairing, 'none'),
        'Optimiser': f'{optimizer.name}, {optimizer.schedule} schedule, peak learning rate '
        f'{optimizer.peak_learning_rate:g}, {optimizer.warmup_steps:,} warm-up steps, '
        f'weight decay {optimizer.weight_decay:g}',
        'Computed in': resolved.model.dtype,
        'Seed': train.seed,
    }


def _corpus_facts(workdir: str, corpus: str) -> dict[str, Any]:
    """Counts of the training split; empty where the corpus that was trained on is not at hand."""
    manifest = read_manifest(Path(corpus))
    if manifest is None or manifest['content_hash'] != identity.load_fingerprint(workdir).get('corpus'):
        return {}
    return {name.capitalize(): manifest['splits']['train'][name] for name in ('documents', 'sentences', 'tokens')}


def _evaluation(workdir: str, step: int, pairing: str) -> dict[str, Any]:
    """What `evaluate` found at this very step; empty without it."""
    path = epath.Path(workdir) / 'evaluation.json'
    result = read_json(path) if path.exists() else {}
    if result.get('step') != step:
        return {}
    measured = {name: value for name, value in result.items() if isinstance(value, float)}
    windows = f' ({result["windows"]:,} windows of text)' if 'windows' in result else ''
    return {
        name.replace('_', ' '): f'{value:.4f}' + _UNITS.get(name, '') + (windows if name in _OF_WINDOWS else '')
        for name, value in measured.items()
        if pairing != 'none' or not name.startswith('nsp')
    }


def table(rows: dict[str, Any]) -> str:
    """Two columns of Markdown."""
    lines = [
        f'| {name} | {value:,} |' if isinstance(value, int) else f'| {name} | {value} |' for name, value in rows.items()
    ]
    return '\n'.join(['| | |', '|---|---|', *lines])

"""Writes the model card of an export from the files of the run and from `config.card`."""

import dataclasses
import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from etils import epath

from bert_jax import config
from bert_jax.files import is_local
from bert_jax.json_files import read_json
from bert_jax.model.family import num_parameters
from bert_jax.pretrained.average import describe_average, evaluation_stem
from bert_jax.pretrained.families import hub_of
from bert_jax.pretrained.hub import MLM_HEAD, PREDICTION_HEAD, HubFamily
from bert_jax.pretrained.load import Pretrained
from bert_jax.pretrained.provenance import Provenance
from bert_jax.pretrained.sentences import SentenceSettings
from bert_jax.text.corpus import read_manifest
from bert_jax.version import __version__
from bert_jax.workdir import identity

_PAIRS = {
    'nsp': 'next-sentence prediction (label 0: the second text follows the first; 1: it is from another document)',
    'sop': 'sentence-order prediction (label 0: the two texts are in order; 1: they are swapped)',
}
_GENERIC_NAMES = {'', 'export', 'model', 'out', 'output', 'run', 'workdir'}  # of directories: they name no model

_FILL_MASK = """\
from transformers import pipeline

fill_mask = pipeline('fill-mask', model='.')  # this directory, or the name of the model on the hub
for prediction in fill_mask(f'The weather is {fill_mask.tokenizer.mask_token} today.'):
    print(prediction['token_str'], prediction['score'])"""
_FEATURES = """\
from transformers import pipeline

extract = pipeline('feature-extraction', model='.')  # this directory, or the name of the model on the hub
vectors = extract('The weather is nice today.', return_tensors=True)  # [1, tokens, hidden size]
print(vectors.mean(dim=1))"""
_SENTENCE_VECTORS = """\
from sentence_transformers import SentenceTransformer

model = SentenceTransformer('.')  # this directory, or the name of the model on the hub
vectors = model.encode(['The weather is nice today.', 'It is sunny.'])
print(model.similarity(vectors, vectors))"""

_SOFTWARE = f"""\
@software{{bert_jax,
  title = {{bert_jax: pretraining BERT-type encoders with JAX}},
  author = {{{{The bert_jax authors}}}},
  version = {{{__version__}}}
}}"""


@dataclasses.dataclass(frozen=True)
class Measurement:
    """A row of the evaluation table.

    Attributes:
      key: the type of the metric in the front matter.
      shown: the value with its unit.
      baseline: the value of a trivial predictor with its unit, and what the predictor is; '' if there is none.
    """

    key: str
    name: str
    value: float
    shown: str
    baseline: str = ''


def model_card(
    workdir: str,
    resolved: config.Config,
    card: config.Card,
    trained: Pretrained,
    vectors: SentenceSettings,
    hub: HubFamily | None = None,
) -> str:
    """Returns README.md of an export: YAML front matter for a model hub, then Markdown.

    Args:
      vectors: how sentence-transformers and `embed` make a vector of a text.
      hub: the family that the files are of; by default, that of the model.
    """
    hub = hub or hub_of(trained.config)
    untrained, step = trained.provenance.untrained_heads, trained.step or 0
    parameters = num_parameters(trained.config, trained.tokenizer.vocab_size)
    name = title(card, workdir, f'{hub.title} encoder, {parameters / 1e6:,.1f}M parameters')
    fills_masks = hub.fills_masks(untrained)
    task = 'fill-mask' if fills_masks else 'feature-extraction'
    measured = _measured(workdir, step, resolved.data.pairing, trained)
    training = _training_facts(resolved, step, identity.load_fingerprint(workdir)) | _weights_facts(resolved, trained)
    about = {'pipeline_tag': task} | ({'mask_token': trained.tokenizer.special_tokens.mask} if fills_masks else {})
    index = model_index(name, task, 'Held-out text of the training corpus', measured)
    sections = [
        front_matter(card, hub, about, index, ('sentence-transformers',)),
        f'# {name}',
        *([card.description] if card.description else []),
        _origin(hub, identity.load_fingerprint(workdir), step),
        '## Intended use\n\n' + _intended_use(hub, fills_masks),
        how_to_use(_FILL_MASK if fills_masks else _FEATURES, _classes(hub, untrained)),
        sentence_vectors(vectors, trained.config.hidden_size),
        '## Limitations\n\n' + bullets(_limitations(trained, step, resolved.data.pairing)),
        '## Model\n\n' + table(model_facts(trained) | {'Parameters, with all heads': parameters}),
        *training_data(card, _corpus_facts(workdir, resolved.data.corpus) if step else {}),
    ]
    if step:
        sections.append('## Training\n\n' + table(training))
        if hub.predicts_pairs(untrained):
            sections += [f'The pooler and the pair head were trained on {pair}.' for pair in _pair_objective(resolved)]
    sections += ['## Evaluation\n\n' + _evaluation(measured), citation(hub)]
    return '\n\n'.join(sections) + '\n'


def title(card: config.Card, workdir: str, generic: str) -> str:
    """Returns the name of a model: `config.card.name`, else the workdir's, or `generic` where that says nothing."""
    path = os.path.realpath(workdir) if is_local(workdir) else workdir.rstrip('/')
    name = path.rpartition('/')[2]
    return card.name or (generic if name.lower() in _GENERIC_NAMES else name)


def front_matter(
    card: config.Card,
    hub: HubFamily,
    about: dict[str, str],
    index: list[dict[str, Any]],
    tags: tuple[str, ...] = (),
) -> str:
    """Returns the YAML that a model hub reads.

    Args:
      about: further entries, such as the pipeline that runs the model.
      index: see `model_index`.
      tags: besides the name of the family.
    """
    lines: dict[str, Any] = {'library_name': 'transformers', **about, 'tags': [hub.name, *tags]}
    for key in ('license', 'language', 'datasets'):
        parts = [part.strip() for part in getattr(card, key).split(',') if part.strip()]
        if parts:
            lines[key] = parts[0] if len(parts) == 1 and key != 'datasets' else parts
    if index:
        lines['model-index'] = index
    # JSON is YAML, and quotes whatever a field holds.
    return '\n'.join(
        ['---', *(f'{key}: {json.dumps(value, ensure_ascii=False)}' for key, value in lines.items()), '---']
    )


def model_index(name: str, task: str, dataset: str, measured: list[Measurement]) -> list[dict[str, Any]]:
    """Returns the `model-index` of a model hub; [] without measurements."""
    metrics = [{'type': each.key, 'name': each.name, 'value': each.value} for each in measured]
    result = {'task': {'type': task}, 'dataset': {'type': 'custom', 'name': dataset}, 'metrics': metrics}
    return [{'name': name, 'results': [result]}] if metrics else []


def how_to_use(code: str, classes: list[str]) -> str:
    """Returns the section with a snippet of Python and the classes of `transformers` that load the model."""
    return (
        f'## How to use\n\n```python\n{code}\n```\n\nLoads with {", ".join(f"`{each}`" for each in classes)}. '
        'Before this directory was published, its outputs were compared with those of the checkpoint; `proof.json` '
        'records the comparison and the SHA-256 of each file.'
    )


def sentence_vectors(settings: SentenceSettings, hidden_size: int) -> str:
    """Returns the section on the vector of a text: how sentence-transformers and `embed` compute it."""
    rows: dict[str, Any] = {
        'Dims': hidden_size * len(settings.modes),
        'Pooling': ' and '.join(settings.modes),
        'Normalized': 'yes' if settings.normalize else 'no',
        'Similarity': settings.similarity,
        'Truncated to': f'{settings.max_length:,} tokens',
    }
    if settings.matryoshka_dims:
        rows['Matryoshka dims'] = ', '.join(map(str, settings.matryoshka_dims))
    rows |= {f'Prompt {name!r}': json.dumps(text, ensure_ascii=False) for name, text in settings.prompts.items()}
    return f'## Sentence vectors\n\n```python\n{_SENTENCE_VECTORS}\n```\n\n{table(rows)}'


def training_data(card: config.Card, counts: dict[str, Any]) -> Iterator[str]:
    """Yields the section on the training data: the user's description, and counts where the corpus is available."""
    text = card.training_data or ('Its sources were not described.' if counts else '')
    parts = [*([text] if text else []), *([table(counts)] if counts else [])]
    if parts:
        yield '\n\n'.join(['## Training data', *parts])


def evaluation_table(measured: list[Measurement]) -> str:
    """Returns a Markdown table with a row for each metric; a column of baselines if there are any."""
    has_baselines = any(each.baseline for each in measured)
    head = ['| Metric | Value | Baseline |', '|---|---|---|'] if has_baselines else ['| Metric | Value |', '|---|---|']
    rows = [
        f'| {each.name} | {each.shown} |' + (f' {each.baseline or "–"} |' if has_baselines else '') for each in measured
    ]
    return '\n'.join([*head, *rows])


def bullets(lines: Iterator[str]) -> str:
    """Returns a Markdown list."""
    return '\n'.join(f'- {line}' for line in lines)


def table(rows: dict[str, Any]) -> str:
    """Returns a Markdown table of two columns without headings."""
    lines = [
        f'| {name} | {value:,} |' if isinstance(value, int) else f'| {name} | {value} |' for name, value in rows.items()
    ]
    return '\n'.join(['| | |', '|---|---|', *lines])


def model_facts(trained: Pretrained) -> dict[str, Any]:
    """Returns the rows of the table on architecture and tokenizer."""
    model, tokenizer = trained.config, trained.tokenizer
    return {
        'Architecture': hub_of(model).title,
        'Layers': model.num_layers,
        'Hidden size': model.hidden_size,
        'Attention heads': model.num_heads,
        'Intermediate size': model.intermediate_size,
        **hub_of(model).card_facts(model),
        'Maximum positions': model.max_positions,
        'Trained positions': trained.max_length,
        'Vocabulary': f'{tokenizer.vocab_size:,} tokens, {tokenizer.kind}',
        'Lower-cases text': 'yes' if tokenizer.lowercase else 'no',
        'Strips accents': 'yes' if tokenizer.strip_accents else 'no',
    }


def citation(hub: HubFamily) -> str:
    """Returns the section with the BibTeX entries of the software and of the paper on the family."""
    return (
        f'## Citation\n\nPlease cite the software and the paper that introduced {hub.title}:\n\n'
        f'```bibtex\n{_SOFTWARE}\n\n{hub.citation}\n```'
    )


def _origin(hub: HubFamily, fingerprint: dict[str, Any], step: int) -> str:
    """Returns a sentence on where the weights come from."""
    if 'imported' in fingerprint:
        return f'A {hub.title} encoder that was trained elsewhere, imported and exported by bert_jax {__version__}.'
    if not step:
        return (
            f'A {hub.title} encoder before its first training step with bert_jax {__version__}: the weights are those '
            'that the run started from.'
        )
    origin = ', starting from another model' if 'init' in fingerprint else ''
    return f'A {hub.title} encoder pretrained with bert_jax {__version__}{origin}.'


def _intended_use(hub: HubFamily, fills_masks: bool) -> str:
    tasks = ['text classification', 'token classification (such as named entities)']
    tasks += ['extractive question answering'] * ('spans' in hub.tasks)
    listed = f'{", ".join(tasks[:-1])} or {tasks[-1]}'
    predicts = ' As it is, it predicts masked words.' if fills_masks else ''
    return (
        f'Fine-tune this model for {listed}, or use its vectors as features.{predicts} It is not meant for generating '
        'text.'
    )


def _classes(hub: HubFamily, untrained: tuple[str, ...]) -> list[str]:
    fills_masks, predicts_pairs = hub.fills_masks(untrained), hub.predicts_pairs(untrained)
    return [
        'AutoTokenizer',
        'AutoModel',
        *(['AutoModelForMaskedLM'] if fills_masks else []),
        *(['AutoModelForNextSentencePrediction'] if predicts_pairs else []),
        *(['AutoModelForPreTraining'] if fills_masks and predicts_pairs else []),
    ]


def _limitations(trained: Pretrained, step: int, pairing: str) -> Iterator[str]:
    provenance = trained.provenance
    is_shorter = trained.max_length < trained.config.max_positions
    reason = ': later positions were not trained' if is_shorter else ', the number of positions of the model'
    yield f'Texts of up to {trained.max_length:,} tokens{reason}.'
    yield from _untrained(provenance, step, pairing)
    if trained.unused_rows:
        unused = f'{trained.unused_rows:,} more rows than the tokenizer has tokens'
        yield f'The word embeddings have {unused}; no text uses them.'
    yield 'The model can reproduce errors and social biases of its training text. It was not evaluated for bias.'


def _untrained(provenance: Provenance, step: int, pairing: str) -> Iterator[str]:
    heads = provenance.untrained_heads
    if not heads:
        return
    names = ' and the '.join(heads) if len(heads) < 3 else f'{", ".join(heads[:-1])} and {heads[-1]}'
    is_one = len(heads) == 1
    reason = ', because training used single texts (`data.pairing=none`)' if step and pairing == 'none' else ''
    reason = ', because the last objective trains none' if step and {MLM_HEAD, PREDICTION_HEAD} & {*heads} else reason
    yield (
        f'The {names} {"is" if is_one else "are"} untrained and {"was" if is_one else "were"} not exported{reason}. '
        f'`transformers` initializes {"it" if is_one else "them"} at random in the classes that need '
        f'{"it" if is_one else "them"}: train before using those outputs.'
    )


def _pair_objective(resolved: config.Config) -> Iterator[str]:
    if resolved.data.pairing != 'none':
        yield _PAIRS[resolved.data.pairing]


def _training_facts(resolved: config.Config, step: int, fingerprint: dict[str, Any]) -> dict[str, Any]:
    data, train, phases = resolved.data, resolved.train, resolved.in_phases
    batches = [f'{phase.train.global_batch_size:,} rows of {phase.data.sequence_length} tokens' for phase in phases]
    begun = {'Initial model': f'another model (hash of its weights: {fingerprint["init"]})'} if resolved.init else {}
    if (objectives := ', then '.join(dict.fromkeys(str(phase.objective) for phase in phases))) != 'mlm':
        begun |= {'Objective': objectives}
    return begun | {
        'Steps': f'{step:,} of {train.steps:,} planned',
        'Batch': ', then '.join(batches) + (', several sequences packed in a row' if data.packing else ''),
        'Masking': '; then '.join(dict.fromkeys(_masking(phase.data.masking) for phase in phases)),
        'Pair objective': _PAIRS.get(data.pairing, 'none').partition(' (')[0],
        'Optimizer': f'{resolved.optimizer.name}, {"; then ".join(_learning_rate(each.optimizer) for each in phases)}',
        'Precision': resolved.model.dtype,
        'Seed': train.seed,
    }


def _weights_facts(resolved: config.Config, trained: Pretrained) -> dict[str, str]:
    """Returns the row that says what was averaged; {} for the weights of a step."""
    ema = f'moving average over the steps (decay {resolved.train.ema:g} per step)' if resolved.train.ema else ''
    average = f'average of {describe_average(trained.average)}' if trained.average else ''
    return {'Weights': f'the {" of the ".join(filter(None, (average, ema)))}'} if average or ema else {}


def _masking(masking: config.Masking) -> str:
    units = {'token': 'tokens', 'word': 'tokens, by whole words', 'ngram': 'tokens, by spans of 1 to 3 words'}
    return (
        f'{masking.rate:.0%} of the {units[masking.unit]}; of these, {masking.mask_fraction:.0%} become '
        f'the mask token and {masking.random_fraction:.0%} a random token'
    )


def _learning_rate(optimizer: config.Optimizer) -> str:
    return (
        f'{optimizer.schedule} schedule, peak learning rate {optimizer.peak_learning_rate:g}, '
        f'{optimizer.warmup_steps:,} warm-up steps, weight decay {optimizer.weight_decay:g}'
    )


def _corpus_facts(workdir: str, corpus: str) -> dict[str, Any]:
    """Returns counts of the training split; {} where the corpus of the run is not available."""
    manifest = read_manifest(Path(corpus))
    if manifest is None or manifest['content_hash'] != identity.load_fingerprint(workdir).get('corpus'):
        return {}
    return {name.capitalize(): manifest['splits']['train'][name] for name in ('documents', 'sentences', 'tokens')}


def _evaluation(measured: list[Measurement]) -> str:
    if not measured:
        return 'No evaluation of these weights was recorded.'
    return f'On held-out text of the training corpus, with the exported weights:\n\n{evaluation_table(measured)}'


def _measured(workdir: str, step: int, pairing: str, trained: Pretrained) -> list[Measurement]:
    """Returns what `evaluate` measured at this step, for the heads that are trained."""
    hub, untrained = hub_of(trained.config), trained.provenance.untrained_heads
    path = epath.Path(workdir) / f'{evaluation_stem(trained.average)}.json'
    result = read_json(path) if path.exists() else {}
    if result.get('step') != step:
        return []
    of_pairs = {'nsp': 'Next-sentence', 'sop': 'Sentence-order'}.get(pairing)
    rows = [*_of_masked_lm(result)] if hub.fills_masks(untrained) else []
    if of_pairs and hub.predicts_pairs(untrained):
        accuracy = 'nsp_accuracy', f'{of_pairs} accuracy', '{:.1%}', '50.0% (chance)'
        loss = 'nsp_loss', f'{of_pairs} loss', '{:.3f} nats per pair', f'{math.log(2):.3f} nats per pair (chance)'
        rows += [accuracy, loss]
    measured = [(key, name, result.get(key), form, baseline) for key, name, form, baseline in rows]
    return [
        Measurement(key, name, value, form.format(value), baseline)
        for key, name, value, form, baseline in measured
        if isinstance(value, float)
    ]


def _of_masked_lm(result: dict[str, Any]) -> Iterator[tuple[str, str, str, str]]:
    """Yields (key, name, format of the value, baseline) of the metrics of the masked-LM head."""

    def baseline(key: str, form: str, meaning: str) -> str:
        return f'{form.format(result[key])} ({meaning})' if isinstance(result.get(key), float) else ''

    nats, by_character = '{:.3f} nats per masked token', '{:.3f} nats per character'
    windows = f', {result["windows"]:,} text windows' if 'windows' in result else ''
    by_frequency = 'guessing by token frequency'
    yield 'mlm_loss', 'Masked-LM loss', nats, baseline('unigram_entropy', nats, by_frequency)
    most = baseline('most_frequent_accuracy', '{:.1%}', 'always the most frequent token')
    yield 'mlm_accuracy', 'Masked-LM accuracy', '{:.1%}', most
    key, unigram = 'masked_word_nats_per_character', 'unigram_nats_per_character'
    characters = baseline(unigram, by_character, 'guessing by character frequency')
    yield key, f'Masked words{windows}', by_character, characters
    yield 'unknown_characters', 'Unknown characters in masked words', '{:.2%}', ''
    perplexity = baseline('unigram_perplexity', '{:,.1f}', by_frequency)
    yield 'pseudo_perplexity', 'Pseudo-perplexity per token', '{:,.1f}', perplexity

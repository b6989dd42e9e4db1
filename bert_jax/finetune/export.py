"""Exports a fine-tuned checkpoint with its labels as a Hugging Face directory, after comparing its logits."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx

from bert_jax.config import Card
from bert_jax.config.finetuning import POOLED, SCORES, FinetuneConfig
from bert_jax.finetune.embedding import EMBEDDING
from bert_jax.finetune.exported import cross_encoder_json, read_finetuned, write_task
from bert_jax.finetune.load import choose_seed, load_finetuned
from bert_jax.finetune.metrics import is_fraction
from bert_jax.finetune.predict import FineTuned, forward
from bert_jax.finetune.sentences import settings_of, without_task
from bert_jax.finetune.workdirs import read_results, read_run, seeds_of
from bert_jax.pretrained import hugging_face
from bert_jax.pretrained.card import (
    Measurement,
    bullets,
    citation,
    evaluation_table,
    front_matter,
    how_to_use,
    model_facts,
    model_index,
    sentence_vectors,
    table,
    title,
    training_data,
)
from bert_jax.pretrained.export import check_output, prove, publish, write_files
from bert_jax.pretrained.families import hub_of
from bert_jax.pretrained.hub import TASK_CLASSES
from bert_jax.version import __version__
from bert_jax.workdir import identity

PIPELINES = dict.fromkeys(POOLED, 'text-classification') | {  # of the hub, by kind of task
    'ranking': 'text-ranking',
    'tagging': 'token-classification',
    'spans': 'question-answering',
    EMBEDDING: 'sentence-similarity',
}


def export(workdir: str, output: str, step: int | None = None, card: Card | None = None) -> dict[str, Any]:
    """Writes a directory that `transformers` opens; returns its proof.

    Args:
      card: texts for the model card, instead of the `config.card` of the run.

    Raises:
      BadInput: when `output` exists and is not an export, or the checkpoint does not exist.
    """
    target, seed_workdir = check_output(output), choose_seed(workdir)
    resolved, trained = read_run(seed_workdir), load_finetuned(seed_workdir, step)
    kind = resolved.task.kind
    architecture = _architecture(trained, kind)
    readme = _card(workdir, seed_workdir, dataclasses.replace(resolved, card=card or resolved.card), trained)

    def fill(directory: Path) -> dict[str, object]:
        if kind == EMBEDDING:
            settings = settings_of(resolved, output)
            return write_files(directory, without_task(trained, seed_workdir), settings, readme)
        params, tokenizer = nnx.state(trained.model, nnx.Param), trained.tokenizer
        hugging_face.write_model(
            directory,
            params,
            trained.config,
            tokenizer,
            architecture,
            _labels_json(kind, trained.labels) | cross_encoder_json(kind),
        )
        # `CrossEncoder` truncates to the length in the tokenizer's settings; `predict` to the length in task.json.
        length = min(trained.max_length, trained.task.sequence_length) if kind in SCORES else trained.max_length
        tokenizer.save(directory, length, hub_of(trained.config).has_token_types)
        write_task(directory, trained.task, trained.null_threshold)
        (directory / 'README.md').write_text(readme, 'utf-8')
        return prove(directory, trained, architecture, _logits, lambda: read_finetuned(directory, architecture))

    return publish(target, fill) | {'workdir': seed_workdir, 'architecture': architecture, 'kind': kind}


def _architecture(trained: FineTuned, kind: str) -> str:
    hub = hub_of(trained.config)
    return f'{hub.class_prefix}Model' if kind == EMBEDDING else hub.task_class(kind)


def _labels_json(kind: str, labels: tuple[str, ...]) -> dict[str, object]:
    """Returns the entries for a head in the config.json of `transformers`."""
    if kind == 'spans':
        return {}
    names = labels or ('LABEL_0',)
    problem = {'classification': 'single_label_classification', 'regression': 'regression'}.get(kind)
    return {
        'id2label': {str(i): name for i, name in enumerate(names)},
        'label2id': {name: i for i, name in enumerate(names)},
    } | ({'problem_type': problem} if problem else {})


def _logits(trained: FineTuned, ids: np.ndarray, types: np.ndarray) -> list[np.ndarray]:
    outputs = np.asarray(forward(*nnx.split(trained.model), ids, types, np.ones_like(ids)))
    return [outputs[..., 0], outputs[..., 1]] if trained.model.kind == 'spans' else [outputs]


def _card(requested: str, workdir: str, resolved: FinetuneConfig, trained: FineTuned) -> str:
    """Returns README.md of an export.

    Args:
      requested: the workdir of the whole fine-tune, or `workdir`.
      workdir: the workdir of the exported seed.
    """
    task, hub = resolved.task, hub_of(trained.config)
    architecture, pipeline = _architecture(trained, task.kind), PIPELINES[task.kind]
    is_embedding = task.kind == EMBEDDING
    if is_embedding:
        usage = sentence_vectors(settings_of(resolved, workdir), trained.config.hidden_size)
    else:
        auto_class = f'AutoModel{TASK_CLASSES[task.kind]}'
        usage = how_to_use(_snippet(task.kind, pipeline, trained.takes_pairs), ['AutoTokenizer', auto_class])
    whole = workdir.rstrip('/').rpartition('/')[0] if 'seed-' in workdir.rstrip('/').rpartition('/')[2] else workdir
    name = title(resolved.card, whole, f'{hub.title} for {pipeline.replace("-", " ")}')
    measured = _measured(workdir, trained.step)
    sections = [
        front_matter(
            resolved.card,
            hub,
            {'pipeline_tag': pipeline},
            model_index(name, pipeline, 'Validation file of the task', measured),
            ('sentence-transformers',) if is_embedding else (),
        ),
        f'# {name}',
        *([resolved.card.description] if resolved.card.description else []),
        f'A `{architecture}` fine-tuned with bert_jax {__version__}.',
        f'## Intended use\n\n{_USES[task.kind]} Evaluate it on your own text before relying on its predictions.',
        usage,
        '## Limitations\n\n' + bullets(_limitations(resolved, trained)),
        '## Model\n\n' + table(model_facts(trained)),
        *training_data(resolved.card, {}),
        '## Training\n\n' + table(_training_facts(workdir, resolved, trained)),
        '## Evaluation\n\n' + _evaluation(requested, measured),
        citation(hub),
    ]
    return '\n\n'.join(sections) + '\n'


_USES = {
    'classification': 'This model assigns one of its labels to a text or a pair of texts.',
    'regression': 'This model assigns a score to a text or a pair of texts.',
    'ranking': 'This model scores how relevant a passage is to a query, from 0 to 1, to rank passages.',
    'tagging': 'This model assigns a label to each token of a text.',
    'spans': 'This model finds the answer to a question in a given text.',
    EMBEDDING: 'This model turns a text into a vector; texts that belong together have similar vectors.',
}


def _snippet(kind: str, pipeline: str, takes_pairs: bool | None) -> str:
    if kind == 'ranking':
        return (
            'from sentence_transformers import CrossEncoder\n\n'
            "model = CrossEncoder('.')  # this directory, or the name of the model on the hub\n"
            "print(model.predict([('What is nice today?', 'The weather is nice today.')]))"
        )
    calls = {
        'spans': "predict(question='What is nice today?', context='The weather is nice today.')",
        'pairs': "predict({'text': 'The weather is nice today.', 'text_pair': 'The sun is shining.'})",
        'text': "predict('The weather is nice today.')",
    }
    call = calls['spans' if kind == 'spans' else 'pairs' if takes_pairs else 'text']
    settings = ", function_to_apply='none'" if kind == 'regression' else ''
    return (
        'from transformers import pipeline\n\n'
        "name = '.'  # this directory, or the name of the model on the hub\n"
        f"predict = pipeline('{pipeline}', model=name{settings})\n"
        f'print({call})'
    )


def _limitations(resolved: FinetuneConfig, trained: FineTuned) -> Iterator[str]:
    yield f'Texts of up to {trained.max_length:,} tokens; fine-tuning used up to {resolved.task.sequence_length:,}.'
    if trained.labels:
        yield 'The model knows only the labels of its training data, and picks one of them for any text.'
    yield (
        'The model can reproduce errors and social biases of its training text and labels. It was not evaluated for '
        'bias.'
    )


def _training_facts(workdir: str, resolved: FinetuneConfig, trained: FineTuned) -> dict[str, Any]:
    task, train, optimizer = resolved.task, resolved.train, resolved.optimizer
    recorded = identity.load_fingerprint(workdir)
    initial = (
        'random weights' if resolved.init == 'scratch' else f'another model (hash of its weights: {recorded["init"]})'
    )
    facts = {
        'Task': task.kind,
        'Labels': ', '.join(trained.labels) or 'none',
        'Initial model': initial,
        'Steps': f'{trained.step:,} of {recorded["train.steps"]:,}',
        'Batch': f'{train.global_batch_size:,} rows of {task.sequence_length} tokens',
        'Optimizer': f'{optimizer.name}, peak learning rate {optimizer.peak_learning_rate:g}, bias correction '
        + ('on' if optimizer.bias_correction else 'off'),
        'Seed': train.seed,
    }
    if trained.null_threshold is not None:
        facts['No answer'] = (
            f'predicted when its score exceeds the score of the best span by more than {trained.null_threshold:.3f}'
        )
    return facts


def _measured(workdir: str, step: int | None) -> list[Measurement]:
    """Returns the metrics of the validation file, if they were measured at `step`."""
    results = read_results(workdir)
    metrics = results['metrics'] if results and results['step'] == step else {}
    return [
        Measurement(name, _NAMES.get(name, name), value, _with_unit(name, value)) for name, value in metrics.items()
    ]


_NAMES = {
    'accuracy': 'Accuracy',
    'token_accuracy': 'Token accuracy',
    'f1': 'F1',
    'macro_f1': 'Macro F1',
    'matthews': 'Matthews correlation',
    'pearson': 'Pearson correlation',
    'spearman': 'Spearman correlation',
    'ndcg_at_10': 'nDCG@10',
    'mrr_at_10': 'MRR@10',
    'average_precision': 'Average precision',
    'sts_spearman': 'Spearman correlation of scores and cosine similarities',
    'mrr': 'Mean reciprocal rank',
    'exact': 'Exact match',
    'exact_match': 'Exact match',
    'HasAns_exact': 'Exact match, questions with an answer',
    'HasAns_f1': 'F1, questions with an answer',
    'NoAns_exact': 'Exact match, questions without an answer',
    'NoAns_f1': 'F1, questions without an answer',
    'best_exact': 'Best exact match over all thresholds',
    'best_f1': 'Best F1 over all thresholds',
    'best_exact_thresh': 'Threshold of the best exact match',
    'best_f1_thresh': 'Threshold of the best F1',
}


def _with_unit(name: str, value: float) -> str:
    if not is_fraction(name):
        return f'{value:.3f} (difference of scores)'
    return f'{value:.3f}' if name in ('matthews', 'pearson', 'spearman') else f'{value:.1%}'


def _evaluation(requested: str, measured: list[Measurement]) -> str:
    if not measured:
        return 'No evaluation of this step was recorded.'
    num_seeds = len(seeds_of(requested))
    selection = (
        f' This run is the best of {num_seeds} seeds on that file, so expect a little less on other text.'
        if num_seeds > 1
        else ''
    )
    return f'On the validation file of the task, at the exported step.{selection}\n\n{evaluation_table(measured)}'

"""A fine-tuned checkpoint as a Hugging Face directory with its labels, written only after its logits were compared."""

from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx

from bert_jax.config.finetuning import FinetuneConfig
from bert_jax.finetune.exported import read_finetuned, write_task
from bert_jax.finetune.heads import ARCHITECTURES
from bert_jax.finetune.load import choose_seed, load_finetuned
from bert_jax.finetune.predict import FineTuned, forward
from bert_jax.finetune.workdirs import read_results, read_run
from bert_jax.pretrained import hugging_face
from bert_jax.pretrained.card import front_matter, table
from bert_jax.pretrained.export import check_output, prove, publish
from bert_jax.version import __version__
from bert_jax.workdir import identity

PIPELINES = {  # of `transformers`
    'BertForSequenceClassification': 'text-classification',
    'BertForTokenClassification': 'token-classification',
    'BertForQuestionAnswering': 'question-answering',
}


def export(workdir: str, output: str, step: int | None = None) -> dict[str, Any]:
    """Writes OUTPUT as a directory that `transformers` opens; returns its proof.

    Raises:
      BadInput: when OUTPUT exists and is no export, or there is no such checkpoint.
    """
    target, place = check_output(output), choose_seed(workdir)
    resolved, trained = read_run(place), load_finetuned(place, step)
    architecture, kind = ARCHITECTURES[resolved.task.kind], resolved.task.kind
    readme = _card(place, resolved, trained, target.resolve().name)

    def fill(directory: Path) -> dict[str, object]:
        params, tokenizer = nnx.state(trained.model, nnx.Param), trained.tokenizer
        hugging_face.write_model(
            directory,
            params,
            trained.config,
            tokenizer.vocab_size,
            tokenizer.pad_id,
            architecture,
            _labels_json(kind, trained.labels),
        )
        tokenizer.save(directory, trained.max_length)
        write_task(directory, trained.task, trained.null_threshold)
        (directory / 'README.md').write_text(readme, 'utf-8')
        return prove(directory, trained, architecture, _logits, lambda: read_finetuned(directory, architecture))

    return publish(target, fill) | {'workdir': place, 'architecture': architecture}


def _labels_json(kind: str, labels: tuple[str, ...]) -> dict[str, object]:
    """What the config.json of `transformers` says of a head."""
    if kind == 'spans':
        return {}
    names = labels or ('LABEL_0',)
    problem = {'classification': 'single_label_classification', 'regression': 'regression'}.get(kind)
    return {
        'id2label': {str(number): name for number, name in enumerate(names)},
        'label2id': {name: number for number, name in enumerate(names)},
    } | ({'problem_type': problem} if problem else {})


def _logits(trained: FineTuned, ids: np.ndarray, types: np.ndarray) -> list[np.ndarray]:
    outputs = np.asarray(forward(*nnx.split(trained.model), ids, types, np.ones_like(ids)))
    return [outputs[..., 0], outputs[..., 1]] if trained.model.kind == 'spans' else [outputs]


def _card(workdir: str, resolved: FinetuneConfig, trained: FineTuned, name: str) -> str:
    """README.md of the export: what was learnt, how, and how well."""
    task, train, optimizer = resolved.task, resolved.train, resolved.optimizer
    architecture, recorded = ARCHITECTURES[task.kind], identity.load_fingerprint(workdir)
    begun = (
        'random weights' if resolved.init == 'scratch' else f'another model (hash of its weights: {recorded["init"]})'
    )
    facts = {
        'Task': task.kind,
        'Labels': ', '.join(trained.labels) or 'none',
        'Started from': begun,
        'Steps': f'{trained.step:,} of {recorded["train.steps"]:,}',
        'Batch': f'{train.global_batch_size:,} rows of {task.sequence_length} tokens',
        'Optimiser': f'{optimizer.name}, peak learning rate {optimizer.peak_learning_rate:g}, bias correction '
        + ('on' if optimizer.bias_correction else 'off'),
        'Seed': train.seed,
    }
    if trained.null_threshold is not None:
        facts['No answer'] = f'where its score exceeds that of the best span by more than {trained.null_threshold:.3f}'
    sections = [
        front_matter(resolved.card, {'pipeline_tag': PIPELINES[architecture]}),
        f'# {name}\n\nA `{architecture}` fine-tuned with bert_jax {__version__}. `proof.json` says what was compared '
        'before this directory got its name, and holds the SHA-256 of its files.',
        '## Training\n\n' + table(facts),
    ]
    results = read_results(workdir)
    if results and results['step'] == trained.step:
        figures = {metric: f'{value:.4f}' for metric, value in results['metrics'].items()}
        sections.append('## Evaluation\n\nOn the validation file of the task, as fractions:\n\n' + table(figures))
    return '\n\n'.join(sections) + '\n'

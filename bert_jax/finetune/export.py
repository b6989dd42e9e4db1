"""A fine-tuned checkpoint as a Hugging Face directory with its labels, written only after its logits were compared."""

import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from bert_jax.config.finetuning import FinetuneConfig
from bert_jax.finetune.evaluator import model_outputs
from bert_jax.finetune.heads import ARCHITECTURES
from bert_jax.finetune.load import FineTuned, choose_seed, load_finetuned, task_builder
from bert_jax.finetune.rows import TaskBatch
from bert_jax.finetune.workdirs import read_results, read_run
from bert_jax.pretrained import hugging_face, tensor_names
from bert_jax.pretrained.card import front_matter, table
from bert_jax.pretrained.export import check_output, prove, publish
from bert_jax.pretrained.safetensors_files import read_tensors
from bert_jax.train.state import model_of
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
        (directory / 'README.md').write_text(readme, 'utf-8')
        return prove(directory, trained, architecture, _logits, lambda: _read_back(directory, resolved, trained))

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


def _read_back(directory: Path, resolved: FinetuneConfig, trained: FineTuned) -> FineTuned:
    model, vocab_size = hugging_face.read_model_json(directory)
    file, tensors = read_tensors(directory)
    build = task_builder(resolved, trained.labels)
    names = tensor_names.TASK_TABLES[ARCHITECTURES[resolved.task.kind]]
    params = tensor_names.from_tensors(tensors, model, vocab_size, str(file), build=build, table=names)
    merged = model_of(params, model, vocab_size, build)
    tokenizer = hugging_face.read_tokenizer(directory)
    return FineTuned(merged, tokenizer, model, None, trained.provenance, trained.labels)


def _logits(trained: FineTuned, ids: np.ndarray, types: np.ndarray) -> list[np.ndarray]:
    outputs = np.asarray(_forward(*nnx.split(trained.model), ids, types))
    return [outputs[..., 0], outputs[..., 1]] if trained.model.kind == 'spans' else [outputs]


@functools.partial(jax.jit, static_argnums=0)
def _forward(graph: nnx.GraphDef, params: nnx.State, ids: jax.Array, types: jax.Array) -> jax.Array:
    positions = jnp.broadcast_to(jnp.arange(ids.shape[1]), ids.shape)
    rows, nothing = jnp.zeros((len(ids), 1), jnp.int32), jnp.zeros(len(ids))
    batch = TaskBatch(ids, types, jnp.ones_like(ids), positions, rows, nothing, nothing)
    return model_outputs(nnx.merge(graph, params), batch)


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

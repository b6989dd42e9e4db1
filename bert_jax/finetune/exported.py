"""Reads a fine-tuned model from a Hugging Face directory: an export of a fine-tune, or a third-party model.

An export also holds task.json, which describes the layout of the task's texts; config.json has no keys for it. For a
third-party model, the defaults of `config.task` are used, limited to the positions the model has.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

from bert_jax.config.fields import resolve_section
from bert_jax.config.finetuning import FRAME, POOLED, SCORES, Task, num_outputs, unknown_field
from bert_jax.errors import BadInput
from bert_jax.finetune.heads import builder
from bert_jax.finetune.predict import FineTuned
from bert_jax.json_files import read_given_json
from bert_jax.pretrained import hugging_face
from bert_jax.pretrained.families import TASK_OF_CLASS, hub_of
from bert_jax.pretrained.hub import MLM_HEAD, NSP_HEAD
from bert_jax.pretrained.provenance import of_files
from bert_jax.pretrained.safetensors_files import read_tensors
from bert_jax.pretrained.tensor_names import from_tensors
from bert_jax.text.tokenizer import load_tokenizer
from bert_jax.train.state import model_of
from bert_jax.workdir import identity

TASK_FILE = 'task.json'
_SAVED_FIELDS = (
    'kind',
    'text',
    'text_pair',
    'sequence_length',
    'stride',
    'max_question_tokens',
    'max_answer_tokens',
    'n_best',
    'token_prefix',
    'columns',
)


def task_architecture(directory: Path) -> str | None:
    """Returns the `transformers` class of the fine-tuned model in a directory; None if it holds something else.

    Raises:
      BadInput: if config.json is not JSON.
    """
    path = directory / 'config.json'
    if identity.is_workdir(str(directory)) or not path.is_file():
        return None
    architectures = read_given_json(path, 'a Hugging Face directory').get('architectures')
    if not isinstance(architectures, list):
        return None
    return next((name for name in architectures if isinstance(name, str) and name in TASK_OF_CLASS), None)


def write_task(directory: Path, task: Task, null_threshold: float | None) -> None:
    """Writes task.json; null_threshold: see `FineTuned`."""
    content: dict[str, Any] = {name: getattr(task, name) for name in _SAVED_FIELDS}
    text = json.dumps(content | {'null_threshold': null_threshold}, indent=2, ensure_ascii=False)
    (directory / TASK_FILE).write_text(text + '\n', 'utf-8')


def read_finetuned(directory: Path, architecture: str) -> FineTuned:
    """Loads a fine-tuned model from a directory; architecture: what `task_architecture` returned.

    Raises:
      BadInput: names the file, and the tensors, labels or settings in it that do not fit.
    """
    path = directory / 'config.json'
    content = read_given_json(path, 'a Hugging Face directory')
    model, tokenizer = hugging_face.read_model_json(directory), load_tokenizer(directory)
    hub = hub_of(model)
    file, tensors = read_tensors(directory)
    kind = TASK_OF_CLASS[architecture]
    if kind not in POOLED:  # `transformers` may save a pooler that no head uses
        tensors = {name: tensor for name, tensor in tensors.items() if '.pooler.' not in f'.{name}'}
    [weight] = [tensor.name for tensor in hub.task_tensors(model, kind) if tensor.path == 'classifier/kernel']
    found_outputs = _num_outputs(tensors, weight, file)
    if kind == 'classification' and (content.get('problem_type') == 'regression' or found_outputs == 1):
        kind = 'ranking' if _has_sigmoid(content) else 'regression'
    if content.get('problem_type') == 'multi_label_classification':
        found = "problem_type is 'multi_label_classification', which bert_jax does not support"
        raise BadInput(str(path), found, 'a model that predicts one label per text')
    expected = num_outputs(kind, found_outputs)
    if found_outputs != expected:
        raise BadInput(str(file), f'the {kind} head has {found_outputs} outputs', str(expected))
    labels = () if kind in (*SCORES, 'spans') else _labels(content, expected, path)
    provenance = of_files(directory, model.max_positions, (MLM_HEAD, NSP_HEAD))
    task, takes_pairs, null_threshold = _read_task(directory, kind, provenance.max_length(model.max_positions))
    build, num_tokens = builder(kind, expected), tokenizer.vocab_size
    hugging_face.check_rows(model, tokenizer, file)
    params = from_tensors(tensors, model, num_tokens, str(file), build, hub.task_tensors(model, kind))
    for head in set(hub.absent_heads(tensors, model)) & set(hub.task_heads(model, kind)):
        raise BadInput(str(file), f'has no {head}, which the classifier needs', 'all tensors of the model')
    merged = model_of(params, model, num_tokens, build)
    return FineTuned(merged, tokenizer, model, None, provenance, labels, task, takes_pairs, null_threshold)


# What `CrossEncoder` of sentence-transformers applies to the logit.
_ACTIVATIONS = {
    'regression': 'torch.nn.modules.linear.Identity',
    'ranking': 'torch.nn.modules.activation.Sigmoid',
}


def cross_encoder_json(kind: str) -> dict[str, object]:
    """Returns the entry of config.json from which `CrossEncoder` takes its activation; {} unless `kind` is a score."""
    return {'sentence_transformers': {'activation_fn': _ACTIVATIONS[kind]}} if kind in SCORES else {}


def _has_sigmoid(content: dict[str, Any]) -> bool:
    settings = content.get('sentence_transformers')
    return isinstance(settings, dict) and settings.get('activation_fn') == _ACTIVATIONS['ranking']


def _num_outputs(tensors: dict[str, Any], name: str, file: Path) -> int:
    weight = tensors.get(name)
    if weight is None or weight.ndim != 2 or not len(weight):
        raise BadInput(str(file), f'has no {name} with two dimensions', 'the tensors of a fine-tuned model')
    return len(weight)


def _labels(content: dict[str, Any], count: int, path: Path) -> tuple[str, ...]:
    """Returns the names of the outputs; without id2label, the default names of `transformers`."""
    id2label = content.get('id2label') or {str(i): f'LABEL_{i}' for i in range(count)}
    names = [id2label.get(str(i)) for i in range(count)] if isinstance(id2label, dict) else []
    if len(id2label) != count or not all(isinstance(name, str) for name in names) or len({*names}) != count:
        raise BadInput(
            str(path),
            'id2label does not name the outputs of the head',
            f'{count} different names, with keys "0" to "{count - 1}"',
        )
    return tuple(map(str, names))


def _read_task(directory: Path, kind: str, max_length: int) -> tuple[Task, bool | None, float | None]:
    """Returns (task, takes_pairs, null_threshold) from task.json, or else defaults that fit `max_length`."""
    path = directory / TASK_FILE
    if not path.is_file():
        num_question_tokens = max(1, min(Task.max_question_tokens, max_length // 4))
        stride = max(1, min(Task.stride, (max_length - FRAME['spans'] - num_question_tokens) // 2))
        task = Task(kind=kind, text='text', sequence_length=max_length, stride=stride)
        return dataclasses.replace(task, max_question_tokens=num_question_tokens), None, None
    content = read_given_json(path, 'the task.json that export wrote')
    threshold = content.pop('null_threshold', None)
    try:
        if threshold is not None and type(threshold) not in (int, float):
            raise BadInput('null_threshold', f'is {threshold!r}', 'a number or null')
        task = resolve_section(Task, content, 'task.', unknown_field)
        if task.kind != kind or task.sequence_length > max_length:
            found = f'describes {task.kind} with up to {task.sequence_length} tokens'
            raise BadInput('task', found, f'{kind} with up to {max_length} tokens')
    except BadInput as error:
        raise BadInput(f'{path}: {error.where}', error.found, error.expected, 'export the model again') from None
    return task, bool(task.text_pair), threshold

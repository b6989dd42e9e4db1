"""Prepares the initial state of a fine-tune: encoder and tokenizer of an initial model, or random weights (`scratch`).

The classifier is always initialized from the seed, even if the initial model is fine-tuned, and so is a pooler or
prediction head that the initial model lacks or has not trained. With `config.reinitialized_layers`, so are that many
top layers, and the pooler or prediction head (Zhang et al. 2021, "Revisiting Few-sample BERT Fine-tuning").
"""

import dataclasses
from pathlib import Path

import numpy as np
from flax import nnx

from bert_jax import config
from bert_jax.config.finetuning import FinetuneConfig, too_long
from bert_jax.config.finetuning_models import adapt_to_initial
from bert_jax.console import say
from bert_jax.errors import BadInput
from bert_jax.finetune.embedding import EMBEDDING
from bert_jax.finetune.exported import task_architecture
from bert_jax.finetune.heads import flat_params, new_head
from bert_jax.finetune.load import choose_seed, load_finetuned
from bert_jax.finetune.model import build_of, task_model
from bert_jax.finetune.sentences import without_task
from bert_jax.finetune.workdirs import read_run, seeds_of
from bert_jax.pretrained import hugging_face, tensor_names
from bert_jax.pretrained.families import TASK_OF_CLASS, hub_of
from bert_jax.pretrained.initialize import Initialization, hash_weights, load_initial
from bert_jax.pretrained.load import Pretrained, from_tensors
from bert_jax.pretrained.provenance import Provenance, start_of
from bert_jax.pretrained.safetensors_files import read_tensors
from bert_jax.text.tokenizer import (
    Tokenizer,
    load_configured_tokenizer,
    load_saved_tokenizer,
    load_tokenizer,
    prefer_saved_tokenizer,
)
from bert_jax.workdir import identity
from bert_jax.workdir.identity import split_step


@dataclasses.dataclass(frozen=True)
class FinetuningStart:
    """The starting state of every seed. config: with the architecture of the initial model."""

    config: FinetuneConfig
    tokenizer: Tokenizer
    initialization: Initialization

    @property
    def fingerprint(self) -> dict[str, str]:
        """{'init': hash of the initial weights, or 'scratch'}."""
        return self.initialization.fingerprint

    @property
    def provenance(self) -> Provenance | None:
        """The provenance of the initial weights; None for random ones."""
        return self.initialization.start

    def params(self, num_outputs: int, seed: int) -> nnx.State | None:
        """Returns the initial encoder with a new head and reinitialized layers; None if all weights are random.

        Raises:
          BadInput: see `Initialization.params`.
        """
        return self.initialization.params(lambda initial: self._with_new_head(initial, num_outputs, seed))

    def _with_new_head(self, initial: Pretrained, num_outputs: int, seed: int) -> nnx.State:
        rngs, model, task = nnx.Rngs(seed), self.config.model, self.config.task
        task_class, num_new = task_model(self.config), self.config.reinitialized_layers
        params = dict(nnx.to_flat_state(nnx.state(initial.model, nnx.Param)))
        if task.kind != EMBEDDING:
            params |= flat_params(new_head(model, num_outputs, task.head_initializer, rngs), 'classifier')
        if num_new or task_class.LAYER_ABOVE in (None, *initial.provenance.untrained_heads):
            # A reinitialized pooler has the distribution of the layers below it, an absent one that of the classifier.
            params |= task_class.new_layer_above(model, 'truncated_normal' if num_new else task.head_initializer, rngs)
        if num_new:
            for path, leaf in task_class.new_layers(model, num_new, rngs).items():
                lower = params[path].get_value()[:-num_new]
                params[path] = leaf.replace(np.concatenate([lower, leaf.get_value()]))
        build = build_of(self.config, num_outputs)
        shapes = nnx.eval_shape(lambda: build(model, self.tokenizer.vocab_size, nnx.Rngs(0)))
        paths = [path for path, _ in nnx.to_flat_state(nnx.state(shapes, nnx.Param))]
        return nnx.from_flat_state({path: params[path] for path in paths})


def prepare_start(given: FinetuneConfig, workdirs: list[str]) -> FinetuningStart:
    """Loads `config.init`, or defers loading if one of the workdirs already holds a run that started from it.

    Raises:
      BadInput: if it is missing, has too few positions, or has a different tokenizer than `config.tokenizer.path`.
    """
    settings = given.tokenizer
    configured = None
    if settings.path:
        configured = load_configured_tokenizer(settings)
    if given.init == 'scratch':
        assert configured is not None  # see `config.finetuning.resolve`
        for workdir in workdirs:
            configured = prefer_saved_tokenizer(configured, settings, f'{workdir}/tokenizer')
        say(f'Starting from random weights: {given.model.num_layers} layers, hidden size {given.model.hidden_size}')
        return FinetuningStart(given, configured, Initialization(fingerprint={'init': 'scratch'}))
    for workdir in workdirs:
        if not identity.is_workdir(workdir):
            continue
        recorded, fingerprint = read_run(workdir), identity.load_fingerprint(workdir)
        if recorded.init == given.init:
            tokenizer = load_saved_tokenizer(Path(workdir) / 'tokenizer')
            _check(given, tokenizer, configured, recorded.model)
            resolved = dataclasses.replace(given, model=adapt_to_initial(given.model, recorded.model))
            init_fingerprint = {'init': fingerprint['init']}
            initialization = Initialization(given.init, init_fingerprint, start=start_of(workdir), load=_load)
            return FinetuningStart(resolved, tokenizer, initialization)
    initial = _load(given.init)
    model, tokenizer = initial.config, initial.tokenizer
    _check(given, tokenizer, configured, model)
    say(
        f'Starting from {given.init}: {model.num_layers} layers, hidden size {model.hidden_size}, '
        f'{tokenizer.vocab_size:,} tokens'
    )
    uses_heads = not given.reinitialized_layers and given.task.kind != EMBEDDING
    heads = hub_of(model).task_heads(model, given.task.kind) if uses_heads else ()
    for note in initial.notes(heads):
        say(f'{given.init}: {note}')
    if given.task.sequence_length > initial.max_length:
        say(
            f'config.task.sequence_length is {given.task.sequence_length}, but {given.init} was trained on texts of up '
            f'to {initial.max_length} tokens: positions beyond that are trained on this task only'
        )
    resolved = dataclasses.replace(given, model=adapt_to_initial(given.model, model))
    fingerprint, start = {'init': hash_weights(initial)}, initial.provenance
    return FinetuningStart(resolved, tokenizer, Initialization(given.init, fingerprint, initial, start, _load))


def _load(init: str) -> Pretrained:
    """Loads the model that `config.init` names, without its head if it is fine-tuned (a workdir or an export).

    Raises:
      BadInput: if it is missing or cannot be used.
    """
    directory, step = split_step(init)
    if seeds_of(directory):
        trained = load_finetuned(choose_seed(directory), step)
        if trained.model.kind == EMBEDDING:
            return without_task(trained, directory)
        kind, params, path = trained.model.kind, nnx.state(trained.model, nnx.Param), Path(directory)
        table = hub_of(trained.config).task_tensors(trained.config, kind)
        tensors = tensor_names.to_tensors(params, trained.config, trained.tokenizer.vocab_size, table)
        headless = _without_head(path, path, tensors, kind, trained.config, trained.tokenizer)
        absent = headless.provenance.untrained_heads  # of a tagger, also the pooler
        return dataclasses.replace(headless, provenance=dataclasses.replace(trained.provenance, untrained_heads=absent))
    path = Path(directory)
    if (architecture := task_architecture(path)) is None:
        return load_initial(init)
    model, tokenizer = hugging_face.read_model_json(path), load_tokenizer(path)
    file, tensors = read_tensors(path)
    return _without_head(path, file, tensors, TASK_OF_CLASS[architecture], model, tokenizer)


def _without_head(
    directory: Path,
    file: Path,
    tensors: dict[str, np.ndarray],
    kind: str,
    model: config.Model,
    tokenizer: Tokenizer,
) -> Pretrained:
    hub = hub_of(model)
    say(f'{directory} is a {hub.task_class(kind)}: using its encoder without the classifier')
    encoder = {name: tensor for name, tensor in tensors.items() if not name.startswith(hub.classifiers)}
    return from_tensors(directory, file, encoder, model, tokenizer)


def _check(given: FinetuneConfig, tokenizer: Tokenizer, configured: Tokenizer | None, model: config.Model) -> None:
    hub = hub_of(model)
    if given.task.kind not in (*hub.tasks, EMBEDDING):
        found = f'is {given.task.kind!r}, for which `transformers` has no class of the family {hub.name!r}'
        raise BadInput('config.task.kind', found, ', '.join(hub.tasks), 'use an initial model of another family')
    if configured is not None and not configured.agrees_with(tokenizer):
        raise BadInput(
            f'config.tokenizer.path={given.tokenizer.path}',
            f'differs from the tokenizer of config.init ({configured.vocab_size} and {tokenizer.vocab_size} tokens)',
            'the tokenizer that the weights were trained with',
            "use that of config.init: --config.tokenizer.path=''",
        )
    if given.reinitialized_layers > model.num_layers:
        found, expected = f'is {given.reinitialized_layers}', f'at most the {model.num_layers} layers of config.init'
        fix = f'--config.reinitialized_layers={model.num_layers}'
        raise BadInput('config.reinitialized_layers', found, expected, fix)
    if given.task.sequence_length > model.max_positions:
        raise too_long(given.task.sequence_length, model.max_positions)

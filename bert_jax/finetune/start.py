"""What a fine-tune starts from: the encoder and the tokenizer of a model that is there, or random weights (`scratch`).

The head is always new, drawn by the seed, also where the model is a fine-tuned one; so are the pooler and as many top
layers as `config.reinitialized_layers` says (Zhang et al. 2021, "Revisiting Few-sample BERT Fine-tuning"). What the
encoder lacks (a tagger has no pooler) is drawn as the original draws it, with a fixed seed.
"""

import dataclasses
from pathlib import Path
from typing import Any, cast

import numpy as np
from flax import nnx

from bert_jax import config
from bert_jax.config.finetuning import FinetuneConfig, too_long
from bert_jax.console import say
from bert_jax.errors import BadInput
from bert_jax.finetune.exported import task_architecture
from bert_jax.finetune.heads import ARCHITECTURES, POOLED, builder, new_head
from bert_jax.finetune.load import choose_seed, load_finetuned
from bert_jax.finetune.workdirs import read_run, seeds_of
from bert_jax.model.bert import BertForPreTraining, Encoder, new_pooler
from bert_jax.pretrained import hugging_face, tensor_names
from bert_jax.pretrained.initialize import Initialization, hash_weights, load_initial, with_sizes
from bert_jax.pretrained.load import Pretrained, from_tensors
from bert_jax.pretrained.provenance import Provenance, start_of
from bert_jax.pretrained.safetensors_files import read_tensors
from bert_jax.pretrained.tensor_names import POOLER
from bert_jax.text.tokenizer import Tokenizer, load_configured_tokenizer, load_saved_tokenizer, prefer_saved_tokenizer
from bert_jax.workdir import identity
from bert_jax.workdir.identity import split_step


@dataclasses.dataclass(frozen=True)
class FinetuningStart:
    """Where each seed of a fine-tune begins. config: with the sizes of the initial model."""

    config: FinetuneConfig
    tokenizer: Tokenizer
    initialization: Initialization

    @property
    def fingerprint(self) -> dict[str, str]:
        """{'init': hash of the initial weights, or 'scratch'}."""
        return self.initialization.fingerprint

    @property
    def start(self) -> Provenance | None:
        """What is known of the initial weights; None for random ones."""
        return self.initialization.start

    def params(self, num_outputs: int, seed: int) -> nnx.State | None:
        """The initial encoder under a new head, and what else is to be new; None where all is random.

        Raises:
          BadInput: as `Initialization.params`.
        """
        return self.initialization.params(lambda initial: self._under_new_head(initial, num_outputs, seed))

    def _under_new_head(self, initial: Pretrained, num_outputs: int, seed: int) -> nnx.State:
        rngs = nnx.Rngs(seed)
        new = new_head(self.config.model, num_outputs, self.config.task.head_initializer, rngs)
        head = dict(nnx.to_flat_state(nnx.state(new, nnx.Param)))
        of: dict[Any, dict[tuple, nnx.Param]] = {'bert': self._encoder(initial, rngs), 'classifier': head}
        build = builder(self.config.task.kind, num_outputs)
        shapes = nnx.eval_shape(lambda: build(self.config.model, self.tokenizer.vocab_size, nnx.Rngs(0)))
        paths = [path for path, _ in nnx.to_flat_state(nnx.state(shapes, nnx.Param))]
        return nnx.from_flat_state({path: of[path[0]][path[1:]] for path in paths})

    def _encoder(self, initial: Pretrained, rngs: nnx.Rngs) -> dict[tuple, nnx.Param]:
        """The parameters of `Bert` by path; the pooler and the top layers new where they are to be."""
        found = dict(nnx.to_flat_state(nnx.state(cast(BertForPreTraining, initial.model).bert, nnx.Param)))
        if num_new := self.config.reinitialized_layers:
            model = dataclasses.replace(self.config.model, num_layers=num_new)
            for path, leaf in nnx.to_flat_state(nnx.state(new_pooler(model, rngs), nnx.Param)):
                found['pooler', *path] = leaf
            for path, leaf in nnx.to_flat_state(nnx.state(Encoder(model, rngs), nnx.Param)):
                kept = found['encoder', *path].get_value()[:-num_new]
                found['encoder', *path] = leaf.replace(np.concatenate([kept, leaf.get_value()]))
        return found


def finetuning_start(given: FinetuneConfig, workdirs: list[str]) -> FinetuningStart:
    """Settles `config.init`: loads it, unless one of the workdirs was begun from it already and knows what it was.

    Raises:
      BadInput: when it cannot be used: not there, too few positions, another tokenizer than `config.tokenizer.path`.
    """
    settings = given.tokenizer
    own = None
    if settings.path:
        own = load_configured_tokenizer(settings)
    if given.init == 'scratch':
        assert own is not None  # see `config.finetuning.resolve`
        for workdir in workdirs:
            own = prefer_saved_tokenizer(own, settings, f'{workdir}/tokenizer')
        say(f'Starting from random weights: {given.model.num_layers} layers, hidden size {given.model.hidden_size}')
        return FinetuningStart(given, own, Initialization(fingerprint={'init': 'scratch'}))
    for workdir in workdirs:
        if not identity.is_workdir(workdir):
            continue
        recorded, fingerprint = read_run(workdir), identity.load_fingerprint(workdir)
        if recorded.init == given.init:
            tokenizer = load_saved_tokenizer(Path(workdir) / 'tokenizer')
            _check(given, tokenizer, own, recorded.model)
            resolved = _like(given, recorded.model)
            begun_from = {'init': fingerprint['init']}
            initialization = Initialization(given.init, begun_from, start=start_of(workdir), load=_load)
            return FinetuningStart(resolved, tokenizer, initialization)
    initial = _load(given.init)
    model, tokenizer = initial.config, initial.tokenizer
    _check(given, tokenizer, own, model)
    say(
        f'Starting from {given.init}: {model.num_layers} layers, hidden size {model.hidden_size}, '
        f'{tokenizer.vocab_size:,} tokens'
    )
    heads = (POOLER,) if given.task.kind in POOLED and not given.reinitialized_layers else ()
    for note in initial.provenance.notes(heads):
        say(f'{given.init}: {note}')
    if given.task.sequence_length > initial.max_length:
        say(
            f'config.task.sequence_length is {given.task.sequence_length}, and {given.init} was trained on texts of up '
            f'to {initial.max_length} tokens: the positions beyond learn from this task alone'
        )
    resolved = _like(given, model)
    fingerprint, start = {'init': hash_weights(initial)}, initial.provenance
    return FinetuningStart(resolved, tokenizer, Initialization(given.init, fingerprint, initial, start, _load))


def _like(given: FinetuneConfig, initial: config.Model) -> FinetuneConfig:
    """A config with the sizes of the initial model, and its dropout rates where none are set."""
    sized = with_sizes(given, initial, initial.max_positions)
    return dataclasses.replace(sized, model=sized.model.with_defaults_from(initial))


def _load(init: str) -> Pretrained:
    """The model that `config.init` names; of a fine-tuned one (a workdir or an export) all but its head.

    Raises:
      BadInput: when it is not there or cannot be used.
    """
    directory, step = split_step(init)
    if seeds_of(directory):
        trained = load_finetuned(choose_seed(directory), step)
        architecture, params = ARCHITECTURES[trained.model.kind], nnx.state(trained.model, nnx.Param)
        table, vocab_size = tensor_names.TASK_TABLES[architecture], trained.tokenizer.vocab_size
        tensors = tensor_names.to_tensors(params, trained.config, vocab_size, table)
        where = Path(directory)
        found = _without_head(where, where, tensors, architecture, trained.config, vocab_size, trained.tokenizer)
        return dataclasses.replace(found, provenance=trained.provenance)
    path = Path(directory)
    if (architecture := task_architecture(path)) is None:
        return load_initial(init)
    tokenizer = hugging_face.read_tokenizer(path)
    model, vocab_size = hugging_face.read_model_json(path)
    file, tensors = read_tensors(path)
    return _without_head(path, file, tensors, architecture, model, vocab_size, tokenizer)


def _without_head(
    directory: Path,
    file: Path,
    tensors: dict[str, np.ndarray],
    architecture: str,
    model: config.Model,
    vocab_size: int,
    tokenizer: Tokenizer,
) -> Pretrained:
    say(f'{directory} is a {architecture}: its encoder is taken, its head is left out')
    encoder = {name: tensor for name, tensor in tensors.items() if not name.startswith(('classifier.', 'qa_outputs.'))}
    return from_tensors(directory, file, encoder, model, vocab_size, tokenizer)


def _check(given: FinetuneConfig, tokenizer: Tokenizer, own: Tokenizer | None, model: config.Model) -> None:
    if own is not None and not own.agrees_with(tokenizer):
        raise BadInput(
            f'config.tokenizer.path={given.tokenizer.path}',
            f'is another tokenizer ({own.vocab_size} tokens) than that of config.init ({tokenizer.vocab_size} tokens)',
            'the tokenizer that the weights were trained with',
            "--config.tokenizer.path='' takes it from config.init",
        )
    if given.reinitialized_layers > model.num_layers:
        found, expected = f'is {given.reinitialized_layers}', f'at most the {model.num_layers} layers of config.init'
        fix = f'--config.reinitialized_layers={model.num_layers}'
        raise BadInput('config.reinitialized_layers', found, expected, fix)
    if given.task.sequence_length > model.max_positions:
        raise too_long(given.task.sequence_length, model.max_positions)

"""Prepares the weights that a run starts from: random ones, or those of an initial model (`config.init`).

A run takes weights, architecture and tokenizer from its initial model. With `config.init_larger` the sizes are its own,
and the weights are tiled to them (`tiling.py`). It starts with new optimizer moments unless
`config.init_optimizer` keeps those of a workdir. The embedding (and output bias) of an added token is the mean of those
of the pieces that it was split into before. A longer position table repeats the existing rows in order (Beltagy et al.
2020, "Longformer").
"""

import dataclasses
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from bert_jax.config import Config, Model, check_family_of_phases, check_pairing
from bert_jax.console import say
from bert_jax.errors import BadInput
from bert_jax.model.family import family_of
from bert_jax.model.layers import is_variable, logical_axes
from bert_jax.model.vocabulary import padded_vocab_size
from bert_jax.pretrained import google, hugging_face, tensor_names, tiling
from bert_jax.pretrained.hub import MLM_HEAD, NSP_HEAD, POOLER
from bert_jax.pretrained.load import Pretrained, load_pretrained, training_command
from bert_jax.pretrained.provenance import Provenance, start_of
from bert_jax.text.tokenizer import Tokenizer, load_saved_tokenizer, load_tokenizer
from bert_jax.train.program import TrainProgram
from bert_jax.train.state import TrainState, distribute, is_schedule
from bert_jax.workdir import identity
from bert_jax.workdir.checkpoint import restore_whole
from bert_jax.workdir.identity import split_step


@dataclasses.dataclass(frozen=True)
class Initialization:
    """The weights that a run starts from.

    Attributes:
      init: `config.init`; '' for random weights.
      fingerprint: {'init': hash of the initial weights}, and further entries for the run's identity.
      initial: the initial model; None for a run that has begun, which loads it only if it needs it again.
      start: the provenance of the initial weights; None for random ones.
      load: init -> the initial model.
    """

    init: str = ''
    fingerprint: dict[str, Any] = dataclasses.field(default_factory=dict)
    initial: Pretrained | None = None
    start: Provenance | None = None
    load: Callable[[str], Pretrained] = lambda init: load_initial(init)

    def params(self, adapt: Callable[[Pretrained], nnx.State]) -> nnx.State | None:
        """Returns the weights of the initial model, adapted to the run; None for random ones.

        Raises:
          BadInput: if the initial model is missing, or its weights are not those that the run began with.
        """
        if not self.init:
            return None
        initial = self.initial or self.load(self.init)
        if hash_weights(initial) != self.fingerprint['init']:
            found = 'holds other weights than those that this run began with'
            raise BadInput(f'config.init={self.init}', found, 'the same initial model', 'choose another --workdir')
        return adapt(initial)


@dataclasses.dataclass(frozen=True)
class PretrainingStart:
    """The starting state of a pretraining run. config: with the architecture of the initial model."""

    config: Config
    initialization: Initialization

    @property
    def fingerprint(self) -> dict[str, Any]:
        """The entries for the initial weights in the run's identity; {} for random ones."""
        return self.initialization.fingerprint

    @property
    def start(self) -> Provenance | None:
        """The provenance of the initial weights; None for random ones."""
        return self.initialization.start

    def check(self, tokenizer: Tokenizer) -> None:
        """Checks that the tokenizer of a corpus is that of the initial model, possibly with tokens added.

        Raises:
          BadInput: if it is a different one.
        """
        initial = self.initialization.initial
        if initial is None:
            return
        theirs = initial.tokenizer
        known, words = tokenizer.tokens[: theirs.vocab_size], tokenizer.tokens[theirs.vocab_size :]
        expected = theirs.extended(words) if words and known == theirs.tokens else theirs
        if not expected.agrees_with(tokenizer):
            raise BadInput(
                f'config.data.corpus={self.config.data.corpus}',
                f'was made with another tokenizer ({tokenizer.vocab_size} tokens) than that of the initial model '
                f'({theirs.vocab_size} tokens)',
                'the tokenizer of config.init, or that with tokens added',
                f'bert-jax prepare --config=… --config.init={self.config.init} --config.data.corpus=ANOTHER',
            )

    def params(self, tokenizer: Tokenizer) -> nnx.State | None:
        """Returns the initial weights, with a row for every token and position of the run; None for random ones.

        Raises:
          BadInput: see `Initialization.params`.
        """
        model = self.config.model

        def adapt(initial: Pretrained) -> nnx.State:
            initial = tiling.enlarged(initial, model) if self.config.init_larger else initial
            return resize_embeddings(initial, tokenizer, model.max_positions)

        return self.initialization.params(adapt)

    def new_state(self, program: TrainProgram, seed: int, tokenizer: Tokenizer) -> TrainState:
        """Returns the state that the run starts from.

        Raises:
          BadInput: see `params` and `restore_moments`.
        """
        return self.restore_moments(program.init_state(seed, self.params(tokenizer)), program.shardings)

    def restore_moments(self, state: TrainState, shardings: TrainState) -> TrainState:
        """Returns a new state with the optimizer moments of the initial run if `config.init_optimizer` is set.

        The schedule starts from its first step.

        Raises:
          BadInput: if the moments are those of another optimizer or have other shapes.
        """
        if not self.config.init_optimizer:
            return state
        directory, step = split_step(self.config.init)
        theirs, ours = identity.load_config(directory), self.config.optimizer.name
        where = f'config.init_optimizer with config.init={self.config.init}'
        if theirs.optimizer.name != ours:
            fix = f'--config.optimizer.name={theirs.optimizer.name}, or --config.init_optimizer=False'
            raise BadInput(where, f'has the moments of {theirs.optimizer.name}; this run has {ours}', ours, fix)
        tokenizer = load_saved_tokenizer(Path(directory) / 'tokenizer')
        moments = restore_whole(directory, theirs, tokenizer.vocab_size, step).opt_state
        shapes = [[leaf.shape for leaf in jax.tree.leaves(tree)] for tree in (moments, state.opt_state)]
        if shapes[0] != shapes[1]:
            found = 'has moments of other shapes, because the vocabulary or the positions have grown'
            raise BadInput(where, found, 'the same sizes', '--config.init_optimizer=False')
        placed = jax.tree.map(distribute, moments, shardings.opt_state)
        kept = jax.tree.map(
            lambda new, old: new if is_schedule(new) else old, state.opt_state, placed, is_leaf=is_schedule
        )
        return state._replace(opt_state=kept)


def pretraining_start(config: Config, workdir: str) -> PretrainingStart:
    """Loads `config.init`, prints what it is, and puts its architecture into the config.

    A workdir that began from the same `config.init` records both, so the initial model may be gone.

    Raises:
      BadInput: if the initial model cannot be used, or the workdir holds an imported model.
    """
    recorded = identity.load_fingerprint(workdir) if identity.is_workdir(workdir) else {}
    if 'imported' in recorded:
        raise BadInput(
            workdir,
            'holds an imported model, which runs can start from but not continue',
            'another --workdir',
            training_command(workdir, identity.load_config(workdir).model),
        )
    if not config.init:
        return PretrainingStart(config, Initialization())
    kept = {'init_optimizer': True} if config.init_optimizer else {}
    if 'init' in recorded and identity.load_config(workdir).init == config.init:
        model = identity.load_config(workdir).model
        model = tiling.with_sizes(model, config.model) if config.init_larger else model
        initialization = Initialization(config.init, {'init': recorded['init']} | kept, start=start_of(workdir))
        return PretrainingStart(_with_architecture(config, model, model.max_positions), initialization)
    initial = load_initial(config.init)
    directory, _ = split_step(config.init)
    if kept and (not identity.is_workdir(directory) or 'imported' in identity.load_fingerprint(directory)):
        found = f'is True, but config.init={config.init} is not the workdir of a run and has no moments'
        raise BadInput('config.init_optimizer', found, 'WORKDIR or WORKDIR@STEP', '--config.init_optimizer=False')
    model, own = initial.config, initial.config.max_positions
    needed = max(phase.data.sequence_length for phase in config.in_phases)
    num_positions = own if needed <= own else max(config.model.max_positions, needed)
    growth = ', repeated to make' if family_of(model).has_position_table else ', extended to'
    say(
        f'Starting from {config.init}: {model.num_layers} layers, hidden size {model.hidden_size}, '
        f'{model.num_heads} heads, {initial.tokenizer.vocab_size:,} tokens, {own:,} positions'
        + (f'{growth} {num_positions:,}' if num_positions > own else '')
    )
    heads = (MLM_HEAD, *(() if config.data.pairing == 'none' else (POOLER, NSP_HEAD)))
    for note in initial.notes(heads):
        say(f'{config.init}: {note}')
    if config.init_larger:
        tiling.check_is_larger(model, config.model, config.init)
        larger = config.model
        say(
            f'Initialized from a smaller model: {model.num_layers} layers of {model.hidden_size} to '
            f'{larger.num_layers} of {larger.hidden_size}'
        )
        model = tiling.with_sizes(model, config.model)
    resolved = _with_architecture(config, model, num_positions)
    fingerprint = {'init': hash_weights(initial)} | kept
    start = dataclasses.replace(initial.provenance, positions_trained=initial.max_length)
    return PretrainingStart(resolved, Initialization(config.init, fingerprint, initial, start))


def initial_tokenizer(init: str) -> Tokenizer:
    """Returns the tokenizer of an initial model.

    Raises:
      BadInput: if it is missing.
    """
    directory, _ = split_step(init)
    if identity.is_workdir(directory):
        return load_saved_tokenizer(Path(directory) / 'tokenizer')
    _refuse_google(directory)
    hugging_face.read_model_json(Path(directory))
    return load_tokenizer(Path(directory))


def hash_weights(model: Pretrained) -> str:
    """Returns the SHA-256 of the names and values of all weights, which a workdir and its export share."""
    tensors = tensor_names.to_tensors(nnx.state(model.model, nnx.Param), model.config, model.tokenizer.vocab_size)
    digest = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        digest.update(f'{name} {value.shape} {value.dtype} '.encode())
        digest.update(value.data)
    return digest.hexdigest()


def resize_embeddings(initial: Pretrained, tokenizer: Tokenizer, num_positions: int) -> nnx.State:
    """Returns the weights for a tokenizer that extends the initial model's, and for `num_positions` positions.

    An added token takes a row of the word embeddings that no token uses, or else a new one.
    """
    num_known, model = initial.tokenizer.vocab_size, initial.config
    added = range(num_known, tokenizer.vocab_size)
    pieces = initial.tokenizer.encode_batch([tokenizer.word_text(index) for index in added])
    num_rows, kept = model.num_embeddings(tokenizer.vocab_size), model.num_embeddings(num_known)

    def with_tokens(table: np.ndarray) -> np.ndarray:  # [V, …]
        resized = np.zeros((padded_vocab_size(num_rows), *table.shape[1:]), table.dtype)
        resized[:kept] = table[:kept]
        for row, ids in enumerate(pieces, num_known):
            resized[row] = table[ids].mean(axis=0, dtype=np.float64)
        return resized

    def resize(variable: nnx.Variable) -> nnx.Variable:
        value, axis = np.asarray(variable.get_value()), logical_axes(variable)[0]
        if axis == 'vocab':
            value = with_tokens(value)
        elif axis == 'positions':
            value = value[np.arange(num_positions) % len(value)]
        return variable.replace(jnp.asarray(value))

    if pieces:
        say(f'{len(pieces)} tokens are new: each starts as the mean of the pieces that it was split into before')
    params = nnx.state(initial.model, nnx.Param)
    return jax.tree.map(resize, params, is_leaf=is_variable)


def _with_architecture(config: Config, model: Model, num_positions: int) -> Config:
    """Returns a config with the architecture of an initial model.

    Raises:
      BadInput: if the data settings do not suit its family.
    """
    model = dataclasses.replace(config.model.with_architecture_of(model), max_positions=num_positions)
    resolved = dataclasses.replace(config, model=model)
    check_pairing(resolved)
    check_family_of_phases(resolved)
    return resolved


def load_initial(init: str) -> Pretrained:
    """Loads the model that `config.init` names.

    Raises:
      BadInput: if it is missing or cannot be used.
    """
    _refuse_google(split_step(init)[0])
    return load_pretrained(init)


def _refuse_google(directory: str) -> None:
    if google.is_checkpoint(Path(directory)):
        fix = f'bert-jax import --from={directory} --workdir=IMPORTED, then --config.init=IMPORTED'
        raise BadInput(f'config.init={directory}', 'holds an original checkpoint', 'an imported model', fix)

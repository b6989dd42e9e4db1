"""What a run starts from: random weights, or a model that is there (`config.init`).

Of an initial model the run takes the weights, the sizes and the tokenizer; corpus, schedule and step are its own, and
the optimiser's moments too, unless `config.init_optimizer` keeps those of a workdir. The rows that it lacks are made
so: an appended word's embedding (and output bias) is the mean of those of the pieces it had before; a longer position
table repeats the rows that it has, in order (Beltagy et al. 2020, "Longformer"). `V` tokens, `N` positions, `D` hidden.
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

from bert_jax.config import Config, Model
from bert_jax.console import say
from bert_jax.errors import BadInput
from bert_jax.model.vocabulary import padded_vocab_size
from bert_jax.pretrained import google, hugging_face, tensor_names
from bert_jax.pretrained.load import Pretrained, load_pretrained
from bert_jax.pretrained.provenance import Provenance, start_of
from bert_jax.pretrained.tensor_names import MLM_HEAD, NSP_HEAD, POOLER
from bert_jax.text.tokenizer import Tokenizer, WordPiece, load_saved_tokenizer
from bert_jax.train.state import TrainState, distribute, is_schedule
from bert_jax.workdir import identity
from bert_jax.workdir.checkpoint import restore_whole
from bert_jax.workdir.identity import split_step

_SIZES = ('num_layers', 'hidden_size', 'num_heads', 'intermediate_size', 'layer_norm_eps')
_WORD, _POSITION = ('bert', 'embeddings', 'word'), ('bert', 'embeddings', 'position')
_MLM_BIAS = ('mlm_bias',)


@dataclasses.dataclass(frozen=True)
class Initialization:
    """The weights that a run starts from.

    Attributes:
      init: `config.init`; '' for random weights.
      fingerprint: {'init': hash of the initial weights}, and what else of them the run's identity records.
      initial: the initial model, unless the run has begun already: then it is loaded only if it is needed again.
      start: what is known of the initial weights; None for random ones.
      load: init -> the initial model.
    """

    init: str = ''
    fingerprint: dict[str, Any] = dataclasses.field(default_factory=dict)
    initial: Pretrained | None = None
    start: Provenance | None = None
    load: Callable[[str], Pretrained] = lambda init: load_initial(init)

    def params(self, adapt: Callable[[Pretrained], nnx.State]) -> nnx.State | None:
        """The initial model's weights, adapted to the run; None for random ones.

        Raises:
          BadInput: when the initial model is gone, or is not the one that the run has begun from.
        """
        if not self.init:
            return None
        initial = self.initial or self.load(self.init)
        if hash_weights(initial) != self.fingerprint['init']:
            found = 'holds other weights than those that this run has begun from'
            raise BadInput(f'config.init={self.init}', found, 'the same initial model', 'name another --workdir')
        return adapt(initial)


@dataclasses.dataclass(frozen=True)
class PretrainingStart:
    """Where a pretraining run begins. config: the run's, with the sizes of the initial model."""

    config: Config
    initialization: Initialization

    @property
    def fingerprint(self) -> dict[str, Any]:
        """What the run's identity records of its initial weights; empty for random ones."""
        return self.initialization.fingerprint

    @property
    def start(self) -> Provenance | None:
        """What is known of the initial weights; None for random ones."""
        return self.initialization.start

    def check(self, tokenizer: Tokenizer) -> None:
        """Checks that a corpus's tokenizer is the initial model's, or that with words appended.

        Raises:
          BadInput: when it is another.
        """
        initial = self.initialization.initial
        if initial is None:
            return
        theirs = initial.tokenizer
        words = tokenizer.tokens[theirs.vocab_size :]
        expected = theirs.extended(words) if words and isinstance(theirs, WordPiece) else theirs
        if not expected.agrees_with(tokenizer):
            raise BadInput(
                f'config.data.corpus={self.config.data.corpus}',
                f'was made with another tokenizer ({tokenizer.vocab_size} tokens) than that of the initial model '
                f'({theirs.vocab_size} tokens)',
                'the tokenizer of config.init, or that with tokens added',
                f'bert-jax prepare --config=… --config.init={self.config.init} --config.data.corpus=ANOTHER',
            )

    def params(self, tokenizer: Tokenizer) -> nnx.State | None:
        """The initial weights, with a row for every token and position of the run; None for random ones.

        Raises:
          BadInput: as `Initialization.params`.
        """
        positions = self.config.model.max_positions
        return self.initialization.params(lambda initial: resize_embeddings(initial, tokenizer, positions))

    def with_moments(self, state: TrainState, shardings: TrainState) -> TrainState:
        """A new state with the optimiser's moments of the initial run, where `config.init_optimizer` asks for them.

        The schedule starts anew.

        Raises:
          BadInput: when that run has none, or they are of another optimiser or other shapes.
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
            found = 'has moments of other shapes: the vocabulary or the positions have grown'
            raise BadInput(where, found, 'the same sizes', '--config.init_optimizer=False')
        placed = jax.tree.map(distribute, moments, shardings.opt_state)
        kept = jax.tree.map(
            lambda new, old: new if is_schedule(new) else old, state.opt_state, placed, is_leaf=is_schedule
        )
        return state._replace(opt_state=kept)


def pretraining_start(config: Config, workdir: str) -> PretrainingStart:
    """Settles `config.init`: says what it is, and puts its sizes into the config.

    A workdir that was begun from the same `config.init` knows both, and the initial model may be gone.

    Raises:
      BadInput: when the initial model cannot be used, or the workdir holds an imported model.
    """
    recorded = identity.load_fingerprint(workdir) if identity.is_workdir(workdir) else {}
    if 'imported' in recorded:
        raise BadInput(
            workdir,
            'holds an imported model: import only converts; runs start from it in workdirs of their own',
            'another --workdir',
            f'bert-jax train --config=configs/continue.py --config.init={workdir} --workdir=…',
        )
    if not config.init:
        return PretrainingStart(config, Initialization())
    kept = {'init_optimizer': True} if config.init_optimizer else {}
    if 'init' in recorded and identity.load_config(workdir).init == config.init:
        model = identity.load_config(workdir).model
        initialization = Initialization(config.init, {'init': recorded['init']} | kept, start=start_of(workdir))
        return PretrainingStart(with_sizes(config, model, model.max_positions), initialization)
    initial = load_initial(config.init)
    directory, _ = split_step(config.init)
    if kept and (not identity.is_workdir(directory) or 'imported' in identity.load_fingerprint(directory)):
        found = f'is True, and config.init={config.init} is no workdir of a run: it has no moments'
        raise BadInput('config.init_optimizer', found, 'WORKDIR or WORKDIR@STEP', '--config.init_optimizer=False')
    model, own = initial.config, initial.config.max_positions
    needed = max(phase.data.sequence_length for phase in config.in_phases)
    num_positions = own if needed <= own else max(config.model.max_positions, needed)
    say(
        f'Starting from {config.init}: {model.num_layers} layers, hidden size {model.hidden_size}, '
        f'{model.num_heads} heads, {initial.tokenizer.vocab_size:,} tokens, {own:,} positions'
        + (f', repeated to make {num_positions:,}' if num_positions > own else '')
    )
    heads = (MLM_HEAD, *(() if config.data.pairing == 'none' else (POOLER, NSP_HEAD)))
    for note in initial.provenance.notes(heads):
        say(f'{config.init}: {note}')
    resolved = with_sizes(config, model, num_positions)
    fingerprint = {'init': hash_weights(initial)} | kept
    start = dataclasses.replace(initial.provenance, positions_trained=initial.max_length)
    return PretrainingStart(resolved, Initialization(config.init, fingerprint, initial, start))


def initial_tokenizer(init: str) -> Tokenizer:
    """The tokenizer of an initial model.

    Raises:
      BadInput: when there is none.
    """
    directory, _ = split_step(init)
    if identity.is_workdir(directory):
        return load_saved_tokenizer(Path(directory) / 'tokenizer')
    _refuse_google(directory)
    hugging_face.read_model_json(Path(directory))
    return hugging_face.read_tokenizer(Path(directory))


def hash_weights(model: Pretrained) -> str:
    """SHA-256 over names and values of all weights: the same for a workdir and for its export."""
    tensors = tensor_names.to_tensors(nnx.state(model.model, nnx.Param), model.config, model.tokenizer.vocab_size)
    digest = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        digest.update(f'{name} {value.shape} {value.dtype} '.encode())
        digest.update(value.data)
    return digest.hexdigest()


def resize_embeddings(initial: Pretrained, tokenizer: Tokenizer, num_positions: int) -> nnx.State:
    """The weights of a model for a tokenizer that extends its own, and for N positions; see the top of this file."""
    num_known = initial.tokenizer.vocab_size
    pieces = initial.tokenizer.encode_batch(tokenizer.tokens[num_known:])
    rows = padded_vocab_size(tokenizer.vocab_size)

    def with_words(table: np.ndarray) -> np.ndarray:  # [V, …]
        known = table[:num_known]
        means = [known[ids].mean(axis=0, dtype=np.float64).astype(table.dtype)[None] for ids in pieces]
        table = np.concatenate([known, *means])
        return np.concatenate([table, np.zeros((rows - len(table), *table.shape[1:]), table.dtype)])

    flat = dict(nnx.to_flat_state(nnx.state(initial.model, nnx.Param)))
    position = np.asarray(flat[_POSITION].get_value())  # [N, D]
    changed = {path: with_words(np.asarray(flat[path].get_value())) for path in (_WORD, _MLM_BIAS)}
    changed[_POSITION] = position[np.arange(num_positions) % len(position)]
    flat |= {path: flat[path].replace(jnp.asarray(value)) for path, value in changed.items()}
    if pieces:
        say(f'{len(pieces)} tokens are new: each starts as the mean of the pieces it had before')
    return nnx.from_flat_state(flat)


def with_sizes(config: Any, model: Model, num_positions: int) -> Any:
    """A config (its section `model`) with the sizes of an initial model."""
    sizes = {name: getattr(model, name) for name in _SIZES}
    return dataclasses.replace(config, model=dataclasses.replace(config.model, **sizes, max_positions=num_positions))


def load_initial(init: str) -> Pretrained:
    """The model that `config.init` names.

    Raises:
      BadInput: when it is not there or cannot be used.
    """
    _refuse_google(split_step(init)[0])
    return load_pretrained(init)


def _refuse_google(directory: str) -> None:
    if google.is_checkpoint(Path(directory)):
        fix = f'bert-jax import --from={directory} --workdir=IMPORTED, then --config.init=IMPORTED'
        raise BadInput(f'config.init={directory}', 'holds an original checkpoint', 'an imported one', fix)

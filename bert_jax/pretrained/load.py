"""Loads a model and its tokenizer from a workdir, an export or a Hugging Face directory, and applies them to text.

`B` texts or rows, `L` positions, `D` hidden.
"""

import dataclasses
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from bert_jax import config
from bert_jax.activity import counted
from bert_jax.errors import BadInput
from bert_jax.files import is_local
from bert_jax.model.family import Build, PretrainingModel, build_model
from bert_jax.model.inputs import Inputs
from bert_jax.model.replaced_tokens import to_family
from bert_jax.pretrained import hugging_face, tensor_names
from bert_jax.pretrained.families import hub_of
from bert_jax.pretrained.hub import HEADS, MLM_HEAD
from bert_jax.pretrained.provenance import AveragedCheckpoint, Provenance, of_files, of_run, start_of
from bert_jax.pretrained.safetensors_files import read_tensors
from bert_jax.pretrained.sentences import pool
from bert_jax.text.tokenizer import Tokenizer, load_saved_tokenizer, load_tokenizer
from bert_jax.text.vocabulary import encode_with_masks
from bert_jax.train.state import model_of
from bert_jax.workdir import identity
from bert_jax.workdir.checkpoint import restore_whole

_BATCH_TOKENS = 8192  # in a batch to encode, padding included
_MANY_UNUSED = 0.1  # a larger share of word embeddings without a token is reported as a likely mistake
_SHORTEST = 16  # shorter texts are padded to this length


@dataclasses.dataclass(frozen=True)
class Filler:
    """A candidate token for a [MASK], and its probability."""

    token: str
    score: float


@dataclasses.dataclass(frozen=True)
class Encoded:
    """Vectors of texts, float32, in the order of the texts.

    Attributes:
      input_ids: the ids of each text, with [CLS] and [SEP].
      token_vectors: the last hidden state of each text, [L, D].
      mean_pooled: [B, D], the mean over L, including [CLS] and [SEP], as in sentence-transformers.
      num_truncated: number of texts that were truncated.
    """

    input_ids: list[list[int]]
    token_vectors: list[np.ndarray]
    mean_pooled: np.ndarray
    num_truncated: int


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """A model with its tokenizer, in float32 and without dropout.

    Attributes:
      step: the training step of its checkpoint; None if it does not come from a workdir.
      provenance: which positions and heads were trained.
      average: the checkpoints whose mean the weights are; () for the weights of one.
    """

    model: PretrainingModel
    tokenizer: Tokenizer
    config: config.Model
    step: int | None
    provenance: Provenance = Provenance()
    average: tuple[AveragedCheckpoint, ...] = dataclasses.field(default=(), kw_only=True)

    @property
    def max_length(self) -> int:
        """The most tokens of a text, including [CLS] and [SEP]: the number of trained positions."""
        return self.provenance.max_length(self.config.max_positions)

    @property
    def unused_rows(self) -> int:
        """The number of rows of the word embeddings that have no token."""
        return self.config.num_embeddings(self.tokenizer.vocab_size) - self.tokenizer.vocab_size

    def notes(self, needed: tuple[str, ...] = HEADS) -> list[str]:
        """Returns sentences on what is missing or unusual, for those who save or train the weights.

        Args:
          needed: the heads that are used.
        """
        notes = self.provenance.notes(needed)
        num_tokens, rows = self.tokenizer.vocab_size, self.config.num_embeddings(self.tokenizer.vocab_size)
        if self.unused_rows > _MANY_UNUSED * rows:
            notes.append(
                f'the tokenizer has {num_tokens:,} tokens, but the word embeddings have {rows:,} rows: check that the '
                'tokenizer belongs to these weights'
            )
        elif self.unused_rows:
            notes.append(f'{self.unused_rows:,} rows of the word embeddings have no token; they are kept')
        return notes

    def encode(self, texts: list[str], truncate: bool = True) -> Encoded:
        """Returns the contextual vectors of the tokens of each text, and their mean.

        Texts of similar length are encoded together. Batch sizes and lengths are rounded up to powers of two, so that
        at most a few tens of shapes are compiled. The characters '[MASK]' in a text are ordinary text. An empty text
        becomes `[CLS] [SEP]`.

        Args:
          texts: texts of any length.
          truncate: whether a text with more than `max_length` tokens is truncated; otherwise it is an error.

        Raises:
          BadInput: names the index of a text that is too long, if `truncate` is False.
        """
        input_ids, num_truncated = self.to_ids(texts, truncate, self.max_length)
        token_vectors: list[np.ndarray] = [np.zeros((0, 0), np.float32)] * len(texts)
        mean_pooled = np.zeros((len(texts), self.config.hidden_size), np.float32)
        for rows, hidden, mean in self._encode_batches(input_ids):
            mean_pooled[rows] = mean[: len(rows)]
            for row, vectors in zip(rows, np.asarray(hidden), strict=False):
                token_vectors[row] = vectors[: len(input_ids[row])].copy()
        return Encoded(input_ids, token_vectors, mean_pooled, num_truncated)

    def mean_pooled(self, texts: list[str], truncate: bool = True) -> tuple[np.ndarray, int]:
        """Returns ([B, D], number of truncated texts), as `encode` does, without the vectors of the tokens."""
        input_ids, num_truncated = self.to_ids(texts, truncate, self.max_length)
        vectors = np.zeros((len(input_ids), self.config.hidden_size), np.float32)
        for rows, _, mean in self._encode_batches(input_ids):
            vectors[rows] = mean[: len(rows)]
        return vectors, num_truncated

    def fill_mask(self, text: str, top_k: int = 5) -> list[list[Filler]]:
        """Returns the `top_k` most likely tokens for each [MASK] in a text, most likely first.

        Raises:
          BadInput: if the text has no [MASK] or more than `max_length` tokens, or the masked-LM head is untrained.
        """
        self._check_fills_masks()
        ids = encode_with_masks(self.tokenizer, text)
        if len(ids) > self.max_length:
            raise BadInput('the text', f'has {len(ids)} tokens', f'at most {self.max_length}, {self._limit()}')
        masked = np.flatnonzero(ids == self.tokenizer.mask_id)
        if not len(masked):
            raise BadInput('the text', 'has no [MASK]', 'a text with [MASK] in place of a word')
        ((_, hidden, _),) = self._encode_batches([ids.tolist()])
        positions = np.zeros((1, _power_of_two(len(masked))), np.int32)
        positions[0, : len(masked)] = masked
        logits = _mlm_logits(*self._parts, hidden, positions)[0, : len(masked)]
        probabilities = np.asarray(jax.nn.softmax(logits, axis=-1))
        # The word embeddings may have more rows than there are tokens.
        best = np.argsort(-probabilities[:, : self.tokenizer.vocab_size], axis=-1, kind='stable')[:, :top_k]
        return [
            [Filler(self.tokenizer.token(int(token_id)), float(row[token_id])) for token_id in token_ids]
            for row, token_ids in zip(probabilities, best, strict=True)
        ]

    def masked_losses(self, input_ids: list[list[int]], positions: list[list[int]]) -> list[np.ndarray]:
        """Returns -log p (nats) of the tokens at the given positions of each row, all of which are masked at once.

        Args:
          input_ids: the ids of each row, with [CLS] and [SEP]; at most `max_length`.
          positions: the positions of each row, at least one.

        Returns:
          For each row, the losses at its positions, float32.
        """
        masked = [list(ids) for ids in input_ids]
        for ids, row_positions in zip(masked, positions, strict=True):
            for position in row_positions:
                ids[position] = self.tokenizer.mask_id
        losses: list[np.ndarray] = [np.zeros(0, np.float32)] * len(input_ids)
        for rows, hidden, _ in self._encode_batches(masked):
            width = _power_of_two(max(len(positions[row]) for row in rows))
            batch_positions = np.zeros((len(hidden), width), np.int32)
            labels = np.zeros_like(batch_positions)
            for index, row in enumerate(rows):
                count = len(positions[row])
                batch_positions[index, :count] = positions[row]
                labels[index, :count] = np.take(input_ids[row], positions[row])
            batch_losses = np.asarray(_mlm_losses(*self._parts, hidden, batch_positions, labels))
            for index, row in enumerate(rows):
                losses[row] = batch_losses[index, : len(positions[row])]
        return losses

    def next_token_losses(self, input_ids: list[list[int]]) -> list[np.ndarray]:
        """Returns -log p (nats) of each token of a row but the first, from those before it, with causal attention.

        Args:
          input_ids: the ids of each row, with [CLS] and [SEP]; at most `max_length`.
        """
        losses: list[np.ndarray] = [np.zeros(0, np.float32)] * len(input_ids)
        for rows, hidden, _ in self._encode_batches(input_ids, is_causal=True):
            positions = np.broadcast_to(np.arange(hidden.shape[1], dtype=np.int32), hidden.shape[:2])
            labels = np.zeros(positions.shape, np.int32)
            for index, row in enumerate(rows):
                labels[index, : len(input_ids[row]) - 1] = input_ids[row][1:]
            batch_losses = np.asarray(_mlm_losses(*self._parts, hidden, positions, labels))
            for index, row in enumerate(rows):
                losses[row] = batch_losses[index, : len(input_ids[row]) - 1]
        return losses

    def to_ids(self, texts: list[str], truncate: bool, longest: int) -> tuple[list[list[int]], int]:
        """Returns (the ids of `[CLS] text [SEP]` for each text, number of truncated texts)."""
        if isinstance(texts, str):
            raise BadInput('texts', 'is one string', 'a list of strings')
        tokenizer = self.tokenizer
        rows = tokenizer.encode_batch(list(texts))
        too_long = [index for index, ids in enumerate(rows) if len(ids) > longest - 2]
        if too_long and not truncate:
            found = f'has {len(rows[too_long[0]]) + 2} tokens'
            raise BadInput(f'text {too_long[0]}', found, f'at most {longest}, {self._limit()}; or truncate=True')
        return [[tokenizer.cls_id, *ids[: longest - 2], tokenizer.sep_id] for ids in rows], len(too_long)

    def _encode_batches(
        self, input_ids: list[list[int]], is_causal: bool = False
    ) -> Iterator[tuple[list[int], jax.Array, jax.Array]]:
        """Yields (indices of texts, vectors [B, L, D], their means [B, D]).

        B and L are those of `batches_by_length`, so rows after the last text and positions after its end are padding.
        """
        batches = batches_by_length(list(map(len, input_ids)), self.config.max_positions)
        for rows, num_rows, length in counted(batches, len(batches), 'running the encoder'):
            batch = np.full((num_rows, length), self.tokenizer.pad_id, np.int32)
            lengths = np.zeros(num_rows, np.int32)
            for index, row in enumerate(rows):
                lengths[index] = len(input_ids[row])
                batch[index, : lengths[index]] = input_ids[row]
            yield rows, *_encode(*self._parts, batch, lengths, is_causal)

    def _limit(self) -> str:
        """Describes `max_length` for an error message."""
        was_trained = self.max_length < self.config.max_positions
        return 'which the model was trained on' if was_trained else 'the positions of the model'

    def _check_fills_masks(self) -> None:
        if not hub_of(self.config).fills_masks(self.provenance.untrained_heads):
            raise BadInput(
                'the model',
                f'has no trained {MLM_HEAD} and cannot predict [MASK]',
                'a model that was pretrained with masked tokens',
                f'train it: {training_command("MODEL", self.config)}',
            )

    @functools.cached_property
    def _parts(self) -> tuple[nnx.GraphDef, nnx.State]:
        return nnx.split(self.model)


def batches_by_length(lengths: list[int], max_length: int) -> list[tuple[list[int], int, int]]:
    """Groups rows of similar length; returns [(indices of rows, B, L)], where B is at least the number of rows.

    B and L are powers of two, except that L is at most `max_length`, so that few shapes are compiled.
    """
    by_length: dict[int, list[int]] = {}
    for row, length in enumerate(lengths):
        by_length.setdefault(min(max(_power_of_two(length), _SHORTEST), max_length), []).append(row)
    batches: list[tuple[list[int], int, int]] = []
    for length, rows in sorted(by_length.items()):
        size = max(1, _BATCH_TOKENS // length)
        for start in range(0, len(rows), size):
            batch = rows[start : start + size]
            batches.append((batch, min(_power_of_two(len(batch)), size), length))
    return batches


def _power_of_two(number: int) -> int:
    """Returns the smallest power of two that is at least `number`."""
    return 1 << (number - 1).bit_length()


@functools.partial(jax.jit, static_argnums=(0, 4))
def _encode(
    graph: nnx.GraphDef, params: nnx.State, input_ids: jax.Array, lengths: jax.Array, is_causal: bool
) -> tuple[jax.Array, jax.Array]:
    """Returns (vectors [B, L, D], their means [B, D]) of ids [B, L] with lengths [B]."""
    positions = jnp.broadcast_to(jnp.arange(input_ids.shape[1]), input_ids.shape)
    present = (positions < lengths[:, None]).astype(jnp.int32)
    causal_rows = jnp.ones(len(input_ids), bool) if is_causal else None
    inputs = Inputs(input_ids, jnp.zeros_like(input_ids), present, positions, causal_rows)
    hidden = nnx.merge(graph, params).encode(inputs)
    return hidden, pool(hidden, lengths, ('mean',))


@functools.partial(jax.jit, static_argnums=0)
def _mlm_logits(graph: nnx.GraphDef, params: nnx.State, hidden: jax.Array, positions: jax.Array) -> jax.Array:
    return nnx.merge(graph, params).mlm_logits(hidden, positions)


@functools.partial(jax.jit, static_argnums=0)
def _mlm_losses(
    graph: nnx.GraphDef, params: nnx.State, hidden: jax.Array, positions: jax.Array, labels: jax.Array
) -> jax.Array:
    return nnx.merge(graph, params).mlm_losses(hidden, positions, labels)[0]


def training_command(init: str, model: config.Model) -> str:
    """Returns the command that continues the pretraining of a model."""
    pairing = '' if model.LEARNS_PAIRS else ' --config.data.pairing=none'
    return f'bert-jax train --config=continue.py --config.init={init}{pairing} --workdir=…'


def load_pretrained(name: str, step: int | None = None) -> Pretrained:
    """Loads the model and tokenizer of a workdir, an export or a Hugging Face directory.

    Args:
      name: a directory, or `WORKDIR@STEP`.
      step: checkpoint of a workdir; by default, the newest.

    Raises:
      BadInput: names the file that is missing or does not fit.
    """
    directory, step_in_name = identity.split_step(name)
    step = step_in_name if step is None else step
    if identity.is_workdir(directory):
        return _from_workdir(directory, step)
    check_has_no_steps(directory, step)
    path = Path(directory)
    model = hugging_face.read_model_json(path)  # first, because its error names the kinds of directories
    tokenizer = load_tokenizer(path)
    file, tensors = read_tensors(path)
    return from_tensors(path, file, tensors, model, tokenizer)


def check_has_no_steps(directory: str, step: int | None) -> None:
    """Raises BadInput if a step of a directory is requested that is not a workdir."""
    if step is not None:
        if is_local(directory) and not Path(directory).is_dir():
            raise BadInput(directory, 'does not exist', 'the workdir of a run')
        raise BadInput(f'{directory}@{step}', 'is not a workdir, so it has no steps', 'WORKDIR@STEP', directory)


def from_tensors(
    directory: Path,
    file: Path,
    tensors: dict[str, np.ndarray],
    model: config.Model,
    tokenizer: Tokenizer,
) -> Pretrained:
    """Builds the model of a directory that is not a workdir from the tensors in its `file`.

    Raises:
      BadInput: if the tensors do not fit the model, or the tokenizer has more tokens than the embeddings have rows.
    """
    hub, num_tokens = hub_of(model), tokenizer.vocab_size
    hugging_face.check_rows(model, tokenizer, file)
    if model.vocab_size == num_tokens:  # the size follows from the tokenizer, as in a run
        model = dataclasses.replace(model, vocab_size=0)
    params = tensor_names.from_tensors(tensors, model, num_tokens, str(file))
    renamed = {hub.current_name(name): value for name, value in tensors.items()}
    derived = hub.buffers | hub.copies(model).keys()
    dtypes = hugging_face.dtypes_of({name: value for name, value in renamed.items() if name not in derived})
    provenance = of_files(directory, model.max_positions, hub.absent_heads(tensors, model), dtypes)
    return Pretrained(model_of(params, model, num_tokens), tokenizer, model, None, provenance)


def _from_workdir(workdir: str, step: int | None) -> Pretrained:
    resolved = identity.load_config(workdir)
    tokenizer = load_saved_tokenizer(Path(workdir) / 'tokenizer')
    state = restore_whole(workdir, resolved, tokenizer.vocab_size, step)
    step, start = int(state.step), start_of(workdir)
    model = config.model_at(resolved, step)
    params = to_family(state.weights, resolved.in_phases[0].objective, model, tokenizer.vocab_size)
    return from_params(params, model, tokenizer, step, of_run(resolved, step, start))


def from_params(
    params: nnx.State,
    model: config.Model,
    tokenizer: Tokenizer,
    step: int,
    provenance: Provenance,
    build: Build = build_model,
) -> Pretrained:
    """Returns the model of a run on one device, in float32.

    Args:
      params: on any mesh of this process.
      provenance: which positions and heads were trained by that step.
      build: makes the model. A model with the head of a task can be used for its encoder, but not for `fill_mask`.
    """
    whole = jax.device_put(jax.device_get(params), jax.local_devices()[0])
    model = dataclasses.replace(model, dtype='float32', remat='none')
    unfused = dataclasses.replace(model, attention='auto')  # 'fused' may need bfloat16
    # If it has the head of a task instead, only its encoder is used.
    merged = cast(PretrainingModel, model_of(whole, unfused, tokenizer.vocab_size, build))
    return Pretrained(merged, tokenizer, model, step, provenance)

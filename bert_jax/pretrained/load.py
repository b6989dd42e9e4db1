"""A trained model and its tokenizer, from wherever they lie, ready to use.

`B` texts, `L` positions, `D` hidden.
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
from bert_jax.model.losses import cross_entropy
from bert_jax.pretrained import hugging_face, tensor_names
from bert_jax.pretrained.families import hub_of
from bert_jax.pretrained.hub import HEADS, MLM_HEAD
from bert_jax.pretrained.provenance import Provenance, of_files, of_run, start_of
from bert_jax.pretrained.safetensors_files import read_tensors
from bert_jax.pretrained.sentences import SentenceSettings, pool
from bert_jax.text.tokenizer import Tokenizer, load_saved_tokenizer, load_tokenizer
from bert_jax.text.vocabulary import encode_with_masks
from bert_jax.train.state import model_of
from bert_jax.workdir import identity
from bert_jax.workdir.checkpoint import restore_whole

_BATCH_TOKENS = 8192  # in a batch to encode, filler included
_MANY_UNUSED = 0.1  # share of the word embeddings without a token that is reported as a likely mistake
_SHORTEST = 16  # shorter texts are filled up to this length


@dataclasses.dataclass(frozen=True)
class Filler:
    """A token that may stand at a [MASK], and its probability."""

    token: str
    score: float


@dataclasses.dataclass(frozen=True)
class Encoded:
    """Vectors of texts, in their order; float32.

    Attributes:
      input_ids: of each text, with [CLS] and [SEP].
      token_vectors: of each text, [L, D]: the last layer at each of its ids.
      mean_pooled: [B, D]: their mean over L, [CLS] and [SEP] included, as sentence-transformers does.
      num_truncated: texts that were cut.
    """

    input_ids: list[list[int]]
    token_vectors: list[np.ndarray]
    mean_pooled: np.ndarray
    num_truncated: int


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """A model with its tokenizer; float32, no dropout.

    Attributes:
      step: of the run that it comes from, where known.
      provenance: which positions and heads were trained.
    """

    model: PretrainingModel
    tokenizer: Tokenizer
    config: config.Model
    step: int | None
    provenance: Provenance = Provenance()

    @property
    def max_length(self) -> int:
        """Length of the longest text in tokens, `[CLS]` and `[SEP]` included: the positions that were trained."""
        return self.provenance.max_length(self.config.max_positions)

    @property
    def unused_rows(self) -> int:
        """Rows of the word embeddings beyond the tokens of the tokenizer."""
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
        """Contextual vectors of every token, and their mean, for each text.

        Texts of similar length run together, their number and length rounded up to powers of two: some tens of
        shapes are compiled at most, whatever the texts. A '[MASK]' in a text is text; an empty text is `[CLS] [SEP]`.

        Args:
          texts: of any length; one with more tokens than `max_length` loses its end.
          truncate: False refuses such a text instead.

        Raises:
          BadInput: naming the number of a text that is too long, without `truncate`.
        """
        input_ids, num_truncated = self._framed(texts, truncate, self.max_length)
        token_vectors: list[np.ndarray] = [np.zeros((0, 0), np.float32)] * len(texts)
        mean_pooled = np.zeros((len(texts), self.config.hidden_size), np.float32)
        for rows, hidden, mean in self._run(input_ids):
            mean_pooled[rows] = mean[: len(rows)]
            for row, vectors in zip(rows, np.asarray(hidden), strict=False):
                token_vectors[row] = vectors[: len(input_ids[row])].copy()
        return Encoded(input_ids, token_vectors, mean_pooled, num_truncated)

    def mean_pooled(self, texts: list[str], truncate: bool = True) -> tuple[np.ndarray, int]:
        """([B, D], number of texts cut): `encode` without the vectors of the tokens."""
        input_ids, num_truncated = self._framed(texts, truncate, self.max_length)
        return self._pooled(input_ids, ('mean',)), num_truncated

    def embed(self, texts: list[str], settings: SentenceSettings) -> tuple[np.ndarray, int]:
        """([B, M x D] float32, number of texts cut): the vectors of texts as sentence-transformers makes them.

        Args:
          settings: of the directory that the model was loaded from (`sentences.read_settings`).
        """
        longest = settings.limit(self.max_length, self.config.max_positions)
        input_ids, num_truncated = self._framed([settings.prepare(text) for text in texts], True, longest)
        vectors = self._pooled(input_ids, settings.modes)
        if settings.normalize:
            vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        return vectors, num_truncated

    def _pooled(self, input_ids: list[list[int]], modes: tuple[str, ...]) -> np.ndarray:
        vectors = np.zeros((len(input_ids), len(modes) * self.config.hidden_size), np.float32)
        for rows, _, pooled in self._run(input_ids, modes):
            vectors[rows] = pooled[: len(rows)]
        return vectors

    def fill_mask(self, text: str, top_k: int = 5) -> list[list[Filler]]:
        """The best fillers for every [MASK] of a text, best first.

        Raises:
          BadInput: when the text has no [MASK] or more tokens than `max_length`, or the masked-LM head is not trained.
        """
        self._check_fills_masks()
        ids = encode_with_masks(self.tokenizer, text)
        if len(ids) > self.max_length:
            raise BadInput('the text', f'has {len(ids)} tokens', f'at most {self.max_length}, {self._limit()}')
        where = np.flatnonzero(ids == self.tokenizer.mask_id)
        if not len(where):
            raise BadInput('the text', 'has no [MASK]', 'a text with [MASK] where a word is to be found')
        ((_, hidden, _),) = self._run([ids.tolist()])
        slots = np.zeros((1, _power_of_two(len(where))), np.int32)
        slots[0, : len(where)] = where
        logits = _mlm_logits(*self._parts, hidden, slots)[0, : len(where)]
        scores = np.asarray(jax.nn.softmax(logits, axis=-1))
        # The vocabulary is padded; no more fillers are given than it has tokens.
        best = np.argsort(-scores[:, : self.tokenizer.vocab_size], axis=-1, kind='stable')[:, :top_k]
        return [
            [Filler(self.tokenizer.token(int(token)), float(scores[slot, token])) for token in tokens]
            for slot, tokens in enumerate(best)
        ]

    def masked_losses(self, input_ids: list[list[int]], positions: list[list[int]]) -> list[np.ndarray]:
        """-log p (nats) of the tokens at some positions of each row, all of a row's masked at once.

        Args:
          input_ids: of each row, [CLS] and [SEP] included, at most `max_length`.
          positions: of each row, at least one.

        Returns:
          For each row a loss for each of its positions, float32.
        """
        masked = [list(ids) for ids in input_ids]
        for ids, places in zip(masked, positions, strict=True):
            for place in places:
                ids[place] = self.tokenizer.mask_id
        losses: list[np.ndarray] = [np.zeros(0, np.float32)] * len(input_ids)
        for rows, hidden, _ in self._run(masked):
            slots = np.zeros((len(hidden), _power_of_two(max(len(positions[row]) for row in rows))), np.int32)
            labels = np.zeros_like(slots)
            for slot, row in enumerate(rows):
                places = positions[row]
                slots[slot, : len(places)] = places
                labels[slot, : len(places)] = np.take(input_ids[row], places)
            found = np.asarray(_mlm_losses(*self._parts, hidden, slots, labels))
            for slot, row in enumerate(rows):
                losses[row] = found[slot, : len(positions[row])]
        return losses

    def _framed(self, texts: list[str], truncate: bool, longest: int) -> tuple[list[list[int]], int]:
        """(ids of each text as [CLS] text [SEP], number of texts cut)."""
        if isinstance(texts, str):
            raise BadInput('texts', 'is one string', 'a list of strings')
        tokenizer = self.tokenizer
        pieces = tokenizer.encode_batch(list(texts))
        too_long = [number for number, ids in enumerate(pieces) if len(ids) > longest - 2]
        if too_long and not truncate:
            found = f'has {len(pieces[too_long[0]]) + 2} tokens'
            raise BadInput(f'text {too_long[0]}', found, f'at most {longest}, {self._limit()}; or truncate=True')
        return [[tokenizer.cls_id, *ids[: longest - 2], tokenizer.sep_id] for ids in pieces], len(too_long)

    def _run(
        self, input_ids: list[list[int]], modes: tuple[str, ...] = ('mean',)
    ) -> Iterator[tuple[list[int], jax.Array, jax.Array]]:
        """Batches of (which texts, vectors [B, L, D], pooled [B, M x D]); what lies past the texts is filler."""
        batches = batches_by_length(list(map(len, input_ids)), self.config.max_positions)
        for some, num_rows, length in counted(batches, len(batches), 'running the encoder'):
            batch = np.full((num_rows, length), self.tokenizer.pad_id, np.int32)
            lengths = np.zeros(num_rows, np.int32)
            for slot, row in enumerate(some):
                lengths[slot] = len(input_ids[row])
                batch[slot, : lengths[slot]] = input_ids[row]
            yield some, *_encode(*self._parts, batch, lengths, modes)

    def _limit(self) -> str:
        """What `max_length` is, in words."""
        was_trained = self.max_length < self.config.max_positions
        return 'which the model was trained on' if was_trained else 'the positions of the model'

    def _check_fills_masks(self) -> None:
        if MLM_HEAD in self.provenance.untrained_heads:
            raise BadInput(
                'the model',
                f'has no trained {MLM_HEAD}: it cannot fill in [MASK]',
                'a model that was pretrained with masked tokens',
                'train it: bert-jax train --config=configs/continue.py --config.init=MODEL --workdir=…',
            )

    @functools.cached_property
    def _parts(self) -> tuple[nnx.GraphDef, nnx.State]:
        return nnx.split(self.model)


def batches_by_length(lengths: list[int], max_length: int) -> list[tuple[list[int], int, int]]:
    """Rows of similar length together: (which rows, B, L), with B at least their number.

    B and L are powers of two, L at most `max_length`: few shapes are compiled.
    """
    by_length: dict[int, list[int]] = {}
    for row, length in enumerate(lengths):
        by_length.setdefault(min(max(_power_of_two(length), _SHORTEST), max_length), []).append(row)
    batches: list[tuple[list[int], int, int]] = []
    for length, rows in sorted(by_length.items()):
        size = max(1, _BATCH_TOKENS // length)
        for start in range(0, len(rows), size):
            some = rows[start : start + size]
            batches.append((some, min(_power_of_two(len(some)), size), length))
    return batches


def _power_of_two(number: int) -> int:
    return 1 << (number - 1).bit_length()


@functools.partial(jax.jit, static_argnums=(0, 4))
def _encode(
    graph: nnx.GraphDef, params: nnx.State, input_ids: jax.Array, lengths: jax.Array, modes: tuple[str, ...]
) -> tuple[jax.Array, jax.Array]:
    """[B, L] ids and [B] lengths -> ([B, L, D] vectors, [B, M x D] pooled over the lengths)."""
    positions = jnp.broadcast_to(jnp.arange(input_ids.shape[1]), input_ids.shape)
    present = (positions < lengths[:, None]).astype(jnp.int32)
    hidden = nnx.merge(graph, params).encode(Inputs(input_ids, jnp.zeros_like(input_ids), present, positions))
    return hidden, pool(hidden, lengths, modes)


@functools.partial(jax.jit, static_argnums=0)
def _mlm_logits(graph: nnx.GraphDef, params: nnx.State, hidden: jax.Array, positions: jax.Array) -> jax.Array:
    return nnx.merge(graph, params).mlm_logits(hidden, positions)


@functools.partial(jax.jit, static_argnums=0)
def _mlm_losses(
    graph: nnx.GraphDef, params: nnx.State, hidden: jax.Array, positions: jax.Array, labels: jax.Array
) -> jax.Array:
    return cross_entropy(nnx.merge(graph, params).mlm_logits(hidden, positions), labels)[0]


def load_pretrained(name: str, step: int | None = None) -> Pretrained:
    """The model and the tokenizer in a workdir (newest checkpoint, or `step`), an export or a Hugging Face directory.

    Args: name, a directory or `WORKDIR@STEP`.

    Raises:
      BadInput: naming the file that is missing or does not fit.
    """
    directory, named = identity.split_step(name)
    step = named if step is None else step
    if identity.is_workdir(directory):
        return _from_workdir(directory, step)
    check_has_no_steps(directory, step)
    path = Path(directory)
    model = hugging_face.read_model_json(path)  # first, because its error names the kinds of directories
    tokenizer = load_tokenizer(path)
    file, tensors = read_tensors(path)
    return from_tensors(path, file, tensors, model, tokenizer)


def check_has_no_steps(directory: str, step: int | None) -> None:
    """Raises BadInput when a step is named of something that is no workdir."""
    if step is not None:
        if is_local(directory) and not Path(directory).is_dir():
            raise BadInput(directory, 'is not there', 'the workdir of a run')
        raise BadInput(f'{directory}@{step}', 'is no workdir of a run: it has no steps', 'WORKDIR@STEP', directory)


def from_tensors(
    directory: Path,
    file: Path,
    tensors: dict[str, np.ndarray],
    model: config.Model,
    tokenizer: Tokenizer,
) -> Pretrained:
    """Makes the model of a directory that is not a workdir from the tensors in its `file`.

    Raises:
      BadInput: if the tensors do not fit the model, or the tokenizer has more tokens than the embeddings have rows.
    """
    hub, num_tokens = hub_of(model), tokenizer.vocab_size
    hugging_face.check_rows(model, tokenizer, file)
    params = tensor_names.from_tensors(tensors, model, num_tokens, str(file))
    dtypes = hugging_face.dtypes_of({hub.todays_name(name): value for name, value in tensors.items()})
    provenance = of_files(directory, model.max_positions, hub.absent_heads(tensors, model), dtypes)
    return Pretrained(model_of(params, model, num_tokens), tokenizer, model, None, provenance)


def _from_workdir(workdir: str, step: int | None) -> Pretrained:
    resolved = identity.load_config(workdir)
    tokenizer = load_saved_tokenizer(Path(workdir) / 'tokenizer')
    state = restore_whole(workdir, resolved, tokenizer.vocab_size, step)
    provenance = of_run(resolved, int(state.step), start_of(workdir))
    return from_params(state.params, resolved.model, tokenizer, int(state.step), provenance)


def from_params(
    params: nnx.State,
    model: config.Model,
    tokenizer: Tokenizer,
    step: int,
    provenance: Provenance,
    build: Build = build_model,
) -> Pretrained:
    """The model of a run, on one device and in float32, from parameters that may lie on any mesh of this process.

    Args:
      provenance: which positions and heads were trained by that step.
      build: the class of the model; one with a task's head has an encoder, but fills no masks.
    """
    whole = jax.device_put(jax.device_get(params), jax.local_devices()[0])
    model = dataclasses.replace(model, dtype='float32', remat='none')
    unfused = dataclasses.replace(model, attention='auto')  # 'fused' may need bfloat16
    # With a task's head it is used for its encoder alone.
    merged = cast(PretrainingModel, model_of(whole, unfused, tokenizer.vocab_size, build))
    return Pretrained(merged, tokenizer, model, step, provenance)

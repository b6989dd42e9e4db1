"""Pairs from raw text alone: two neighbouring spans of a document of a prepared corpus, or one span twice.

An epoch takes one pair from each document, at another place in every epoch, so no two pairs of a batch are of the same
document. Spans are whole sentences where these fit.

`Q` documents of a batch with `n` = 2 Q texts and `t` tokens.
"""

import shlex
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bert_jax.config.embedding import Embedding
from bert_jax.config.finetuning import CORPUS, Task
from bert_jax.data import random
from bert_jax.errors import BadInput
from bert_jax.files import json_digest
from bert_jax.finetune.pairs import Texts
from bert_jax.finetune.splits import sampled
from bert_jax.text.corpus import load_corpus
from bert_jax.text.tokenizer import Tokenizer

_SHORTEST = 16  # tokens; spans are drawn with this length or more, where a document has as many
_BEGINNINGS = 'abcdefghijklmnopqrstuvwxyz0'  # of texts, each of which is tried after a prompt


class _Prompt(NamedTuple):
    """The ids of a prompt, joined with those of a span as the tokenizer encodes both texts together.

    Attributes:
      ids: before a span whose first token holds the blank at the end of the prompt, or that needs none.
      spaced_ids: before other spans.
      first_ids: [V] int32, what the first token of a span becomes: the same token with a blank before it, or itself.
      holds_blank: [V] bool, whether the first token of a span, after `first_ids`, holds the blank.
    """

    ids: np.ndarray
    spaced_ids: np.ndarray
    first_ids: np.ndarray
    holds_blank: np.ndarray


class CorpusPairs:
    """The documents of a split of a corpus, each of which yields a pair."""

    def __init__(self, directory: str, split: str, task: Task, embedding: Embedding, tokenizer: Tokenizer):
        """Args:
          split: `train`, or `validation` for the held-out documents.

        Raises:
          BadInput: if there is no corpus, it has another tokenizer, or no document has two sentences (spans).
        """
        source = f'config.task.{split}={CORPUS}:{directory}'
        corpus = load_corpus(Path(task.directory) / directory)
        if not corpus.tokenizer.agrees_with(tokenizer):
            raise BadInput(
                source,
                f'was prepared with another tokenizer than that of config.init ({corpus.tokenizer.vocab_size:,} and '
                f'{tokenizer.vocab_size:,} tokens)',
                'a corpus prepared with the tokenizer of the model',
                'bert-jax prepare --config.tokenizer.path=MODEL --config.data.corpus=OTHER',
            )
        self._split = getattr(corpus, split)
        self.counts: Counter[str] = Counter()
        self._is_dropout = embedding.corpus_pairs == 'dropout'
        fewest = 1 if self._is_dropout else 2
        self._documents = np.flatnonzero(np.diff(self._split.documents) >= fewest)
        if not len(self._documents):
            held_out = 'held-out ' if split == 'validation' else ''
            found = f'holds no {held_out}document of at least {fewest} sentences'
            raise BadInput(source, found, f'longer {held_out}documents')
        self._digest = json_digest([corpus.manifest['content_hash'], embedding.corpus_pairs])
        self._cls, self._sep = tokenizer.cls_id, tokenizer.sep_id
        fields = ('query_prompt', 'passage_prompt')
        self._prompts = [_encode_prompt(getattr(embedding, field), field, tokenizer) for field in fields]
        longest = max(len(prompt.spaced_ids) for prompt in self._prompts)
        self._room = task.sequence_length - 2 - longest
        if self._room < 1:
            found = f'is {task.sequence_length}; a prompt has {longest} tokens'
            raise BadInput('config.task.sequence_length', found, 'room for text after the prompt')

    def __len__(self) -> int:
        return len(self._documents)

    def sample(self, max_examples: int) -> 'CorpusPairs':
        """Limits the documents to `max_examples` of them (0: all), selected by a hash of their indices."""
        if 0 < max_examples < len(self):
            self._documents = self._documents[sampled(len(self), max_examples)]
            self._digest = json_digest([self._digest, max_examples])
        return self

    def draw(self, examples: np.ndarray, keys: np.ndarray) -> Texts:
        spans = self._spans(examples, keys)  # [Q, 2, 2]
        starts, stops = spans.reshape(-1, 2).T
        num_pairs = len(examples)
        roles = np.tile(np.array([0, 1]), num_pairs)  # query, positive
        first_ids = self._split.gather(starts)
        # [2 roles x (blank in the first token, or in the prompt)]
        prompts = [prompt.ids for prompt in self._prompts] + [prompt.spaced_ids for prompt in self._prompts]
        holds_blank = np.stack([prompt.holds_blank for prompt in self._prompts])[roles, first_ids]
        kinds = roles + 2 * ~holds_blank
        prompt_lengths = np.array([len(prompt) for prompt in prompts])[kinds]
        lengths = prompt_lengths + (stops - starts) + 2
        text = np.repeat(np.arange(2 * num_pairs), lengths)
        position = np.arange(len(text)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        offset = position - 1 - prompt_lengths[text]  # in the span
        is_text = (offset >= 0) & (position < lengths[text] - 1)
        ids = np.full(len(text), self._cls, np.int32)
        ids[position == lengths[text] - 1] = self._sep
        for kind, prompt in enumerate(prompts):
            is_prompt = (kinds[text] == kind) & (position >= 1) & (offset < 0)
            ids[is_prompt] = prompt[position[is_prompt] - 1]
        of_spans = self._split.gather((starts[text] + offset)[is_text])
        ids[is_text] = of_spans
        ids[is_text & (offset == 0)] = np.stack([prompt.first_ids for prompt in self._prompts])[roles, first_ids]
        mixed = random.mix(of_spans.astype(np.uint64) << np.uint64(32) | offset[is_text].astype(np.uint64))
        ends = np.cumsum(stops - starts)
        hashes = np.add.reduceat(mixed, ends - (stops - starts))
        groups = np.repeat(np.arange(num_pairs, dtype=np.int32), 2)
        return Texts(ids, lengths, groups, roles.astype(np.int32), hashes, np.zeros(2 * num_pairs, np.float32))

    def _spans(self, examples: np.ndarray, keys: np.ndarray) -> np.ndarray:
        """Returns the bounds of each pair, [Q, 2, 2] int64: (anchor, positive), (first token, stop)."""
        documents, sentences = self._split.documents, self._split.sentences
        chosen = self._documents[examples]
        first, last = documents[chosen], documents[chosen + 1]
        bits = random.bits(keys, 4)
        shortest = min(_SHORTEST, self._room)
        limits = shortest + random.below(bits[:, 1:3], self._room - shortest + 1)  # longest of both spans
        if self._is_dropout:
            border = first + random.below(bits[:, 0], last - first)
        else:
            border = first + 1 + random.below(bits[:, 0], last - first - 1)
        middle, low, high = sentences[border], sentences[first], sentences[last]
        stop = np.minimum(high, middle + limits[:, 1])
        whole = sentences[np.searchsorted(sentences, stop, 'right') - 1]
        after = np.stack([middle, np.where(whole > middle, whole, stop)], axis=1)
        if self._is_dropout:
            return np.stack([after, after], axis=1)
        start = np.maximum(low, middle - limits[:, 0])
        whole = sentences[np.searchsorted(sentences, start, 'left')]
        before = np.stack([np.where(whole < middle, whole, start), middle], axis=1)
        is_after = (bits[:, 3] >> np.uint64(63)).astype(bool)[:, None]  # the anchor is the later span of half the pairs
        return np.stack([np.where(is_after, after, before), np.where(is_after, before, after)], axis=1)

    def content_hash(self) -> str:
        return self._digest


def _encode_prompt(prompt: str, field: str, tokenizer: Tokenizer) -> _Prompt:
    """Encodes a prompt so that its ids and those of a span are the ids of their joined text.

    Byte-level BPE, for example, encodes a blank with the word after it: 'query: ' and 'film' become `query`, `:` and
    ` film`. The prompt then lacks its last blank, which the first token of the span holds. A word of several tokens may
    be split differently than in the joined text.

    Raises:
      BadInput: if the ids of a prompt depend on the text after it in another way, as those of a prompt that ends within
        a word.
    """
    same = np.arange(tokenizer.vocab_size, dtype=np.int32)
    ids, shorter, *joined = tokenizer.encode_batch(
        [prompt, prompt.removesuffix(' '), *(prompt + x for x in _BEGINNINGS)]
    )
    is_split = len(ids) > 0 and ids[:-1] == shorter and prompt.endswith(' ')  # the last token is the last blank
    kept = shorter if is_split else ids
    if any(each[: len(kept)] != kept for each in joined):
        found = f'is {prompt!r}, whose tokens depend on the text after it'
        fix = shlex.join([f'--config.embedding.{field}={prompt.rstrip()} '])
        raise BadInput(f'config.embedding.{field}', found, 'a prompt that ends in one blank', fix)
    if not is_split:
        prompt_ids = np.array(ids, np.int32)
        return _Prompt(prompt_ids, prompt_ids, same, np.ones(len(same), bool))
    blank = tokenizer.tokens[ids[-1]]
    index_of = {token: index for index, token in enumerate(tokenizer.tokens)}
    has_blank = np.array([token.startswith(blank) for token in tokenizer.tokens])
    with_blank = np.array([index_of.get(f'{blank}{token}', -1) for token in tokenizer.tokens], np.int32)
    becomes = ~has_blank & ~tokenizer.is_special & (with_blank >= 0)
    return _Prompt(
        np.array(shorter, np.int32), np.array(ids, np.int32), np.where(becomes, with_blank, same), has_blank | becomes
    )

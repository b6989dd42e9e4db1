"""Measures the throughput of the data pipeline, compared with the collators of Hugging Face transformers.

    python -m bert_jax prepare --config=configs/demo.py
    taskset -c 1 python -m benchmarks.batches --corpus=corpora/python-docs

bert_jax does all the work: the order of the epoch, pairs with random next sentences, packing and masking. The collators
get complete padded rows with special tokens, as lists, and only mask them. All use the same ids and take turns in one
process, on one thread. Only non-padding tokens count. `pip install -e '.[test]'` installs `transformers`.
"""

import argparse
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from bert_jax.config import Data, Masking, max_sequences, num_predictions
from bert_jax.data.batches import Batch, CorpusStream
from bert_jax.data.masking import num_masked
from bert_jax.data.packing import pack
from bert_jax.data.windows import num_special_tokens
from bert_jax.text.corpus import Corpus, load_corpus

TOKENS_IN_BATCH = 32_768


def unmasked_ids(batch: Batch) -> np.ndarray:
    """Returns the rows before masking, [B, L] int32."""
    ids = batch.input_ids.copy()
    rows, slots = np.nonzero(batch.masked_lm_weights)
    ids[rows, batch.masked_lm_positions[rows, slots]] = batch.masked_lm_ids[rows, slots]
    return ids


def collator_rows(batch: Batch, corpus: Corpus) -> list[dict[str, list]]:
    """Returns rows as the collators of transformers expect them, with offsets from which they find whole words."""
    ids, tokenizer = unmasked_ids(batch), corpus.tokenizer
    special = np.isin(ids, [tokenizer.cls_id, tokenizer.sep_id, tokenizer.pad_id])
    # A token that continues a word starts where the previous one ends; there is a gap before any other token.
    starts = np.cumsum(np.where(tokenizer.continues_word(ids), 1, 2), axis=1)
    offsets = np.where(special[..., None], 0, np.stack([starts, starts + 1], axis=-1))
    fields = {
        'input_ids': ids,
        'token_type_ids': batch.token_type_ids,
        'attention_mask': (batch.sequence_ids > 0).astype(int),
        'special_tokens_mask': special.astype(int),
        'offset_mapping': offsets,
    }
    columns = {name: values.tolist() for name, values in fields.items()}
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def contestants(corpus: Corpus) -> dict[str, tuple[Callable[[int], object], float]]:
    """Returns {name: (function from a step to its batch, mean number of non-padding tokens in a batch)}."""
    import torch
    from transformers import AutoTokenizer, DataCollatorForLanguageModeling

    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(Path(corpus.directory) / 'tokenizer')
    collators = {'token': DataCollatorForLanguageModeling(tokenizer)}
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # warns that it replaces every masked token by [MASK]
        collators['word'] = DataCollatorForLanguageModeling(tokenizer, whole_word_mask=True)
    found = {}
    for length, packing in ((128, False), (512, True)):
        rows = TOKENS_IN_BATCH // length
        for unit in ('token', 'word', 'ngram'):
            data = Data(sequence_length=length, packing=packing, masking=Masking(unit=unit))
            stream = CorpusStream(corpus, data, 'train', batch_size=rows, seed=0)
            batch = stream.batch(0)
            num_tokens = float(np.mean([(stream.batch(step).sequence_ids > 0).sum() for step in range(20)]))
            name = f'L={length}{", packed" * packing}, {unit}'
            found[f'bert_jax  {name}'] = stream.batch, num_tokens
            if unit in collators:
                examples, collator = collator_rows(batch, corpus), collators[unit]
                unused = {'token': ('offset_mapping',), 'word': ()}[unit]
                examples = [{key: value for key, value in row.items() if key not in unused} for row in examples]
                collate = lambda _, collator=collator, examples=examples: collator([dict(row) for row in examples])  # noqa: E731
                found[f'collator  {name}'] = collate, float((batch.sequence_ids > 0).sum())
    return found


def packing_seconds(corpus: Corpus) -> float:
    """Returns the CPU seconds to pack a million windows with lengths sampled from a corpus."""
    data = Data(sequence_length=512)
    targets = CorpusStream(corpus, data, 'train', batch_size=1, seed=0).windows.target
    lengths = np.random.default_rng(0).choice(targets, 1_000_000) + num_special_tokens(data)
    packed = replace(data, packing=True)
    most = num_predictions(packed)
    start = time.process_time()
    pack(
        lengths,
        np.minimum(num_masked(np.arange(513), data.masking.rate), most),
        capacity=512,
        max_predictions=most,
        max_sequences=max_sequences(packed),
    )
    return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        '--corpus', default='corpora/python-docs', help='directory written by `prepare` (default: corpora/python-docs)'
    )
    parser.add_argument('--rounds', type=int, default=15, help='number of turns of each contestant (default: 15)')
    arguments = parser.parse_args()
    corpus = load_corpus(arguments.corpus)
    sources = contestants(corpus)
    wall, cpu = ({name: [] for name in sources} for _ in range(2))
    for turn in range(arguments.rounds):
        for name, (make, num_tokens) in sources.items():
            repeats = 10 if name.startswith('bert_jax') else 1
            start, cpu_start = time.perf_counter(), time.process_time()
            for step in range(repeats):
                make(turn * repeats + step)
            wall[name].append(repeats * num_tokens / (time.perf_counter() - start) / 1e6)
            cpu[name].append(repeats * num_tokens / (time.process_time() - cpu_start) / 1e6)
    print(f'Million tokens per second, batches of {TOKENS_IN_BATCH:,} positions, {arguments.rounds} turns\n')
    print('| batches | median | best | per CPU second: median | best | non-padding | bert_jax / collator |')
    print('|---|--:|--:|--:|--:|--:|--:|')
    for name in sources:
        theirs = cpu.get(name.replace('bert_jax', 'collator'))
        ratio = ''
        if theirs and name.startswith('bert_jax'):
            ratio = f'{statistics.median(cpu[name]) / statistics.median(theirs):.0f}'
        values = [statistic(rates[name]) for rates in (wall, cpu) for statistic in (statistics.median, max)]
        fill = sources[name][1] / TOKENS_IN_BATCH
        print(f'| {name} | {" | ".join(f"{value:.2f}" for value in values)} | {fill:.1%} | {ratio} |')
    print(f'\nAssigning 100 M windows to rows of 512: {packing_seconds(corpus) * 100:.0f} CPU seconds')


if __name__ == '__main__':
    main()

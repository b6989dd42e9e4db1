"""Compares the speed of `embed` with sentence-transformers: same weights, same texts, one process, in turn.

    python -m benchmarks.embedding_speed --texts=FILE.jsonl.gz

The model is a BERT of a standard size with random weights, exported with a tokenizer that is trained on the texts.
Texts are cut into parts of random length, since reviews alone are long. Each contestant encodes all texts once before
the clock starts, so that compilation does not count; tokenization does. In float32 the vectors must agree.
"""

import json
import os
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
from absl import app, flags
from flax import nnx

from bert_jax import config, console
from bert_jax.model.family import build_model
from bert_jax.pretrained import hugging_face
from bert_jax.pretrained.embed_input import read_inputs
from bert_jax.pretrained.load import load_pretrained
from bert_jax.pretrained.sentences import SentenceSettings, read_settings, write_settings
from bert_jax.pretrained.vectors import TextEncoder
from bert_jax.runtime import devices
from bert_jax.text.tokenizer import train_tokenizer

_TEXTS = flags.DEFINE_string('texts', None, 'file of texts, as `embed --input` reads it', required=True)
_SIZE = flags.DEFINE_string('size', 'mini', 'size of BERT')
_COUNT = flags.DEFINE_integer('count', 4096, 'number of texts', lower_bound=1)
_TURNS = flags.DEFINE_integer('turns', 3, 'turns of each contestant', lower_bound=1)
_BATCH = flags.DEFINE_integer('batch', 32, 'batch size of sentence-transformers (its default is 32)', lower_bound=1)
_MAX_LENGTH = 512
_MEAN_WORDS = 60
_TOLERANCE = 1e-4


def _texts() -> list[str]:
    """Returns texts of 1 to several hundred words: an exponential distribution, like that of passages and queries."""
    rng, texts = np.random.default_rng(0), []
    for each in read_inputs(_TEXTS.value, 'text', 'id', Counter()):
        words = each.text.split()
        while words and len(texts) < _COUNT.value:
            length = 1 + int(rng.exponential(_MEAN_WORDS))
            texts.append(' '.join(words[:length]))
            words = words[length:]
        if len(texts) == _COUNT.value:
            break
    rng.shuffle(texts)
    return texts


def _write_model(directory: Path, texts: list[str]) -> None:
    """Writes a random model in the layout of sentence-transformers."""
    tokenizer = train_tokenizer(config.Tokenizer(vocab_size=8192), iter(texts))
    size = config.bert(_SIZE.value).model
    names = ('num_layers', 'hidden_size', 'num_heads', 'intermediate_size')
    model = config.Bert(**{name: size[name] for name in names}, max_positions=_MAX_LENGTH, dtype='float32')
    params = nnx.state(build_model(model, tokenizer.vocab_size, nnx.Rngs(0)), nnx.Param)
    hugging_face.write_model(directory, params, model, tokenizer)
    tokenizer.save(directory, _MAX_LENGTH)
    settings = SentenceSettings('', max_length=_MAX_LENGTH, normalize=True)
    write_settings(directory, settings, model.hidden_size)


def _contestants(directory: str, texts: list[str]) -> dict[str, Callable[[], np.ndarray]]:
    from sentence_transformers import SentenceTransformer

    pretrained, settings = load_pretrained(directory), read_settings(directory)
    theirs = SentenceTransformer(directory, device='cpu')

    def ours(dtype: str) -> Callable[[], np.ndarray]:
        encoder = TextEncoder(pretrained, settings, dtype=dtype)
        return lambda: next(iter(encoder.encode_chunks([texts])))[0]

    return {
        'sentence-transformers': lambda: theirs.encode(texts, batch_size=_BATCH.value, show_progress_bar=False),
        'bert_jax float32': ours('float32'),
        'bert_jax bfloat16': ours('bfloat16'),
    }


def _main(_: list[str]) -> None:
    devices.select_platform('')  # as every command does; on a CPU it keeps freed memory
    texts = _texts()
    with tempfile.TemporaryDirectory() as directory:
        _write_model(Path(directory), texts)
        contestants = _contestants(directory, texts)
        vectors = {name: encode() for name, encode in contestants.items()}
        seconds: dict[str, list[float]] = {name: [] for name in contestants}
        for _ in range(_TURNS.value):
            for name, encode in contestants.items():
                start = time.monotonic()
                encode()
                seconds[name].append(time.monotonic() - start)
                console.say(f'{name}: {seconds[name][-1]:.2f} s')
    reference, *others = contestants
    difference = float(np.abs(vectors['bert_jax float32'] - vectors[reference]).max())
    if difference > _TOLERANCE:
        raise RuntimeError(f'vectors differ by {difference:.1e}')
    ratios = {
        name: statistics.median(a / b for a, b in zip(seconds[reference], seconds[name], strict=True))
        for name in others
    }
    cosine = float((vectors['bert_jax bfloat16'] * vectors[reference]).sum(1).min())
    print(
        json.dumps(
            {
                'size': _SIZE.value,
                'texts': len(texts),
                'cores': os.cpu_count(),
                'seconds': {name: [round(each, 2) for each in taken] for name, taken in seconds.items()},
                'times_as_fast': {name: round(ratio, 2) for name, ratio in ratios.items()},
                'largest_difference': difference,
                'least_cosine_in_bfloat16': round(cosine, 5),
            },
            indent=2,
        )
    )


if __name__ == '__main__':
    app.run(_main)

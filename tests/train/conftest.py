import functools
from collections.abc import Callable

import pytest

from bert_jax.data.batches import CorpusStream
from tests.support.steps import ADAMW, FAST, MODELS, Curve, open_stream, train_steps


@pytest.fixture(scope='package')
def stream_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], CorpusStream]:
    """Returns the batches for a family of `MODELS`."""
    return functools.cache(lambda family: open_stream(str(tmp_path_factory.mktemp('stream')), MODELS[family]))


@pytest.fixture(scope='package')
def reference_of(stream_of: Callable[[str], CorpusStream]) -> Callable[[str], Curve]:
    """Returns a family's curve on one device, in one microbatch."""
    return functools.cache(lambda family: train_steps(stream_of(family), {'data': 1}, FAST, ADAMW, MODELS[family]))

import pytest

from bert_jax.data.batches import CorpusStream
from tests.support.steps import ADAMW, FAST, Curve, open_stream, train_steps


@pytest.fixture(scope='package')
def stream(tmp_path_factory: pytest.TempPathFactory) -> CorpusStream:
    return open_stream(str(tmp_path_factory.mktemp('stream')))


@pytest.fixture(scope='package')
def reference(stream: CorpusStream) -> Curve:
    """Returns the curve on one device, in one microbatch."""
    return train_steps(stream, {'data': 1}, FAST, ADAMW)

"""`help` explains commands, sections and fields; colour appears on terminals only."""

import io

import pytest

from bert_jax import console
from bert_jax.__main__ import main
from bert_jax.cli.topics import explain
from bert_jax.errors import BadInput


def test_field_is_explained_with_default_and_allowed_values() -> None:
    text = explain('config.data.pairing')
    assert text.startswith("config.data.pairing = 'nsp'") and "'sop'" in text and 'two segments' in text


def test_section_lists_its_fields_for_every_family() -> None:
    text = explain('config.model')
    assert 'config.model.dropout_rate = 0.1' in text and 'config.model.local_attention = 128' in text
    assert explain('finetune-config.task.kind').startswith("finetune-config.task.kind = 'classification'")


def test_phases_list_the_fields_of_a_phase() -> None:
    text = explain('config.phases')
    assert text.startswith('config.phases = ()') and 'config.phases[].final_fraction = None' in text
    assert explain('config.phases.masking.rate').startswith('config.phases[].masking.rate = None')


def test_help_topic_and_help_flag_agree(capsys: pytest.CaptureFixture) -> None:
    assert main(['bert-jax', 'train', '--help']) == 0
    expected = capsys.readouterr().out
    assert main(['bert-jax', 'help', 'train']) == 0 and capsys.readouterr().out == expected
    assert expected.index('Essential flags') < expected.index('Common flags') < expected.index('Advanced flags')


@pytest.mark.parametrize(
    'topic, suggestion',
    [('trian', 'help train'), ('config.data.paring', 'config.data.pairing'), ('config.modle', 'config.model')],
)
def test_unknown_topic_suggests_the_nearest(topic: str, suggestion: str) -> None:
    with pytest.raises(BadInput) as raised:
        explain(topic)
    assert suggestion in raised.value.fix


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize('variable', ['', 'NO_COLOR', 'TERM'])
def test_errors_are_coloured_only_where_allowed(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.delenv('NO_COLOR', raising=False)
    monkeypatch.setenv('TERM', 'xterm')
    if variable:
        monkeypatch.setenv(variable, {'NO_COLOR': '1', 'TERM': 'dumb'}[variable])
    for stream, is_coloured in ((_Terminal(), not variable), (io.StringIO(), False)):
        monkeypatch.setattr('sys.stderr', stream)
        console.fail('bert_jax: a\x1b[2J: b\n  fix:      c', {})
        assert ('\x1b[31m' in stream.getvalue()) == is_coloured and '\x1b[2J' not in stream.getvalue()

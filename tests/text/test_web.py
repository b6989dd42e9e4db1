"""HTML pages and web archives give the main text of their pages."""

import gzip
import sys

import pytest

from bert_jax import config
from bert_jax.errors import BadInput
from bert_jax.text.documents import read_chunk
from bert_jax.text.prepare import prepare
from bert_jax.text.reasons import describe_dropped
from bert_jax.text.sources.options import ReadOptions
from bert_jax.text.sources.plan import plan_source
from bert_jax.text.stats import Stats

pytest.importorskip('resiliparse')

PARAGRAPHS = [
    'Für Österreich müssen größere Bücher übersetzt werden, während Käufer zögern.',
    'Ein zweiter Absatz, der lang genug ist, damit er zum Artikel gehört & bleibt.',
]


def page(charset='utf-8', number=0):
    body = ''.join(f'<p>{text.replace("&", "&amp;")}</p>' for text in PARAGRAPHS)
    return (
        f'<html><head><meta charset="{charset}"><title>Title</title></head><body><nav><a href="x">Home</a> '
        f'<a href="y">Imprint</a></nav><article><h1>Kapitel {number}</h1>{body}</article>'
        '<footer>Copyright</footer><script>var x = 1;</script></body></html>'
    ).encode(charset)


def record(kind, content, content_type):
    head = (
        f'WARC/1.0\r\nWARC-Type: {kind}\r\nWARC-Record-ID: <urn:uuid:1>\r\nWARC-Date: 2026-01-01T00:00:00Z\r\n'
        f'WARC-Target-URI: http://a.b/\r\nContent-Type: {content_type}\r\nContent-Length: {len(content)}\r\n\r\n'
    )
    return head.encode() + content + b'\r\n\r\n'


def response(content, content_type='text/html', more=''):
    head = f'HTTP/1.1 200 OK\r\nContent-Type: {content_type}\r\n{more}\r\n'.encode()
    return record('response', head + content, 'application/http; msgtype=response')


def read(source, **options):
    stats, options = Stats(), ReadOptions(split_sentences=False, **options)
    planned = plan_source(source, 0, options)
    return [document.lines for chunk in planned.chunks for document in read_chunk(chunk, options, stats)], stats


def test_main_text_of_pages_in_their_declared_encoding(tmp_path):
    for index, charset in enumerate(('utf-8', 'windows-1252', 'utf-16')):
        (tmp_path / f'{index}.html').write_bytes(page(charset, index))
    (tmp_path / '3.htm.gz').write_bytes(gzip.compress(page(number=3)))
    (tmp_path / 'notes.txt').write_text('not read')
    found, stats = read(f'html:{tmp_path}')
    assert found == [[f'Kapitel {index}', *PARAGRAPHS] for index in range(4)]
    assert not +stats.counts and stats.records == 4


def test_archive_gives_its_html_pages_and_plain_text(tmp_path, monkeypatch):
    archive = b''.join(
        [
            record('warcinfo', b'software: x\r\n', 'application/warc-fields'),
            record('request', b'GET / HTTP/1.1\r\n\r\n', 'application/http; msgtype=request'),
            response(page('windows-1252', 1), 'text/html; charset=windows-1252'),
            response(b'\x89PNG', 'image/png'),
            response(gzip.compress(page(number=2)), more='Content-Encoding: gzip\r\n'),
            record('conversion', 'Plain größer text.\nLine two.'.encode(), 'text/plain'),
        ]
    )
    (tmp_path / 'a.warc').write_bytes(archive)
    (tmp_path / 'b.warc.gz').write_bytes(gzip.compress(archive))
    expected = [[f'Kapitel {index}', *PARAGRAPHS] for index in (1, 2)] + [['Plain größer text.', 'Line two.']]
    assert read(f'warc:{tmp_path}/a.warc')[0] == expected == read(f'warc:{tmp_path}/b.warc.gz')[0]
    monkeypatch.setattr('bert_jax.text.chunks.MAX_RECORD_BYTES', 100)
    found, stats = read(f'warc:{tmp_path}/a.warc')
    assert found == expected[2:] and stats.counts['bad_record_skipped'] == 2
    (tmp_path / 'b.warc.gz').write_bytes(gzip.compress(archive)[:-100])
    with pytest.raises(BadInput, match='b.warc.gz: is truncated or damaged'):
        read(f'warc:{tmp_path}/b.warc.gz')
    (tmp_path / 'c.warc').write_bytes(b'no archive\n' * 100)
    with pytest.raises(BadInput, match='c.warc: is damaged'):
        read(f'warc:{tmp_path}/c.warc')


def test_types_are_read_in_any_case_and_other_records_are_counted(tmp_path):
    untyped = b'HTTP/1.1 200 OK\r\n\r\n'
    archive = [
        response(page(number=1), 'Text/HTML; Charset=utf-8'),
        record('response', untyped + b'\n' + page(number=2), 'application/http; msgtype=response'),
        record('response', untyped + b'\x89PNG', 'application/http; msgtype=response'),
        response(b'{}', 'application/json'),
        response(b'a=<html>', 'text/plain'),
        record('conversion', b'Plain text.', 'TEXT/Plain; charset=utf-8'),
    ]
    (tmp_path / 'a.warc').write_bytes(b''.join(archive))
    found, stats = read(f'warc:{tmp_path}/a.warc')
    assert found == [[f'Kapitel {index}', *PARAGRAPHS] for index in (1, 2)] + [['Plain text.']]
    assert +stats.counts == {'other_content_type': 3}
    assert describe_dropped(+stats.counts) == '3 web archive records of other types'


def test_archive_cut_within_a_record_is_an_error(tmp_path):
    first, last = response(page(number=1)), response(gzip.compress(page(number=2)), more='Content-Encoding: gzip\r\n')
    metadata = record('metadata', b'x: y', 'application/warc-fields')
    for whole in (first + last, first + metadata, first + metadata + last, metadata):
        (tmp_path / 'a.warc').write_bytes(whole)
        assert read(f'warc:{tmp_path}/a.warc')
        (tmp_path / 'a.warc').write_bytes(whole[:-4])  # complete but for the empty lines
        assert read(f'warc:{tmp_path}/a.warc')
        for length in (*range(max(1, len(whole) - 200), len(whole) - 4, 7), len(whole) - 5):
            if len(first) - 4 <= length <= len(first):  # between two records
                continue
            (tmp_path / 'a.warc').write_bytes(whole[:length])
            with pytest.raises(BadInput, match='is damaged'):
                read(f'warc:{tmp_path}/a.warc')


@pytest.mark.parametrize('declared', ['foo', 'hex', 'undefined', '', '"utf-8"', 'x-user-defined', 'UTF8'])
def test_unknown_declared_encoding_is_ignored(tmp_path, declared):
    (tmp_path / 'a.warc').write_bytes(response(page(number=1), f'text/html; charset={declared}'))
    found, stats = read(f'warc:{tmp_path}/a.warc')
    assert found == [['Kapitel 1', *PARAGRAPHS]] and not +stats.counts


def test_missing_library_is_named_with_its_extra(tmp_path, monkeypatch):
    (tmp_path / 'a.html').write_bytes(page())
    monkeypatch.setitem(sys.modules, 'resiliparse.extract.html2text', None)
    data = config.Data(source=f'html:{tmp_path}/a.html', corpus=str(tmp_path / 'corpus'), pairing='none')
    with pytest.raises(BadInput, match=r'(?s)html: and warc: need resiliparse.*pip install .bert_jax\[web\]'):
        prepare(data, config.Tokenizer(vocab_size=100), progress=False)
    assert not (tmp_path / '.corpus.partial').exists()

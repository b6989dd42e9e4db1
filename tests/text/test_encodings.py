"""Text in any encoding is read correctly, or its file is named: never a corpus of wrong characters."""

import codecs
import gzip

import numpy as np
import pytest

from bert_jax import config
from bert_jax.errors import BadInput
from bert_jax.text import chunks
from bert_jax.text.documents import read_chunk
from bert_jax.text.prepare import prepare
from bert_jax.text.sources.encodings import detect
from bert_jax.text.sources.options import ReadOptions
from bert_jax.text.sources.plan import plan_source
from bert_jax.text.stats import Stats

TOKENIZER = config.Tokenizer(vocab_size=200)
TEXTS = {
    'german': 'Für Österreich müssen größere Bücher übersetzt werden, während Käufer zögern.',
    'french': "L'été dernier, nous avons visité le château où était né le célèbre écrivain français.",
    'spanish': 'El año pasado el niño comió piñas en la montaña. ¿Cómo estás? ¡Qué día más bonito!',
    'english': 'The café’s owner said “hello” – it was a naïve résumé, and the price was £5.',
    'russian': 'Это книга о языке. Мы изучаем русский язык в университете каждый день.',
    'greek': 'Αυτό είναι ένα βιβλίο για την ελληνική γλώσσα.',
    'japanese': 'これは日本語の本です。私は毎日勉強します。',
    'chinese': '我们在大学学习中文，这本书很有意思。',
    'korean': '이것은 한국어 책입니다. 우리는 매일 공부합니다.',
}
LEGACY = [
    *((name, encoding) for name in ('german', 'french', 'spanish') for encoding in ('windows-1252', 'latin-1')),
    *(('english', 'windows-1252'), ('german', 'mac-roman'), ('russian', 'windows-1251'), ('russian', 'koi8-r')),
    *(('greek', 'windows-1253'), ('japanese', 'shift-jis'), ('japanese', 'euc-jp'), ('chinese', 'gb18030')),
    ('korean', 'euc-kr'),
]


def read(source, **options):
    stats, options = Stats(), ReadOptions(split_sentences=False, **options)
    planned = plan_source(source, 0, options)
    return [document.text for chunk in planned.chunks for document in read_chunk(chunk, options, stats)], stats


@pytest.mark.parametrize('encoding', ['utf-8-sig', 'utf-16', 'utf-32', 'utf-16-be with mark'])
def test_byte_order_mark_says_the_encoding(tmp_path, encoding, monkeypatch):
    monkeypatch.setattr(chunks, '_MIN_CHUNK', 50)  # large files are divided, those in UTF-16 are not
    monkeypatch.setattr('bert_jax.text.sources.lines._BLOCK_BYTES', 7)
    text = '\n\n'.join(TEXTS.values()) + '\n🙂\n'
    encoded = codecs.BOM_UTF16_BE + text.encode('utf-16-be') if ' ' in encoding else text.encode(encoding)
    (tmp_path / 'a.txt').write_bytes(encoded)
    (tmp_path / 'b.gz').write_bytes(gzip.compress(encoded))
    for name in ('a.txt', 'b.gz'):
        for setting in ('utf-8', 'auto', 'windows-1252'):
            found, stats = read(f'text:{tmp_path}/{name}', encoding=setting)
            assert found == text.strip().split('\n\n') and not +stats.counts


@pytest.mark.parametrize('name, encoding', LEGACY)
def test_encoding_is_detected_or_set(tmp_path, name, encoding):
    text = '\n'.join(['plain words first ' * 5] * 40 + [TEXTS[name]] * 3)
    (tmp_path / 'a').write_bytes(text.encode(encoding))
    (tmp_path / 'b').write_text(text)
    for setting in ('auto', encoding):
        found, stats = read(f'text:{tmp_path}/a', encoding=setting)
        assert found[0].replace(' \n', '\n').split('\n')[-1] == TEXTS[name] and not +stats.counts
    assert [*stats.encodings] == [] and read(f'text:{tmp_path}/b', encoding='auto')[1].encodings == {}
    assert [*read(f'text:{tmp_path}/[ab]', encoding='auto')[1].encodings] == [f'{tmp_path}/a']


def test_damaged_utf8_is_not_taken_for_another_encoding():
    text = (TEXTS['spanish'] * 50).encode()
    assert detect('a', iter([text])) == 'utf-8'
    assert detect('a', iter([text[:300], b'\xf1', text[300:]])) == 'utf-8'
    assert detect('a', iter([TEXTS['german'].encode('utf-16-le')])) == 'utf-16-le'
    assert detect('a', iter([b'plain'])) == 'utf-8'


def test_noise_has_no_encoding():
    noise = np.random.default_rng(0).integers(1, 256, 1 << 17).astype(np.uint8).tobytes()
    with pytest.raises(BadInput, match='noise: has an encoding that was not recognized'):
        detect('noise', iter([noise]))


def test_folder_of_mixed_encodings_is_read_or_its_files_are_named(tmp_path, capsys):
    (tmp_path / 'texts' / '.hidden').mkdir(parents=True)
    (tmp_path / 'texts' / '.hidden' / 'x').write_bytes(b'\xff\xff')
    (tmp_path / 'texts' / 'more').mkdir()
    encodings = {
        'plain.txt': 'utf-8',
        'more/mark.txt': 'utf-8-sig',
        'wide.txt': 'utf-16',
        'latin.txt': 'latin-1',
        'windows.txt': 'windows-1252',
    }
    for index, (name, encoding) in enumerate(encodings.items()):
        text = '\n\n'.join(f'{TEXTS["english" if "w" in name[:1] else "german"]} {index} {i}' for i in range(50))
        (tmp_path / 'texts' / name).write_bytes(text.encode(encoding))
    data = config.Data(source=f'text:{tmp_path}/texts', corpus=str(tmp_path / 'corpus'), pairing='none')
    with pytest.raises(
        BadInput, match='(latin|windows).txt: holds [0-9,]+ bytes that are not UTF-8(.|\n)*encoding=auto'
    ):
        prepare(data, TOKENIZER, progress=False)
    capsys.readouterr()
    summary = prepare(config.Data(**vars(data) | {'encoding': 'auto'}), TOKENIZER)
    printed = capsys.readouterr().err
    assert summary.documents == 250 and not summary.dropped
    assert f'{tmp_path}/texts/latin.txt: read as cp125' in printed and 'windows.txt: read as cp1252' in printed
    found, _ = read(f'text:{tmp_path}/texts', encoding='auto')
    assert len(found) == 250 and all(TEXTS['german'] in text or TEXTS['english'] in text for text in found)


def test_bytes_that_an_encoding_lacks_are_counted(tmp_path):
    (tmp_path / 'a').write_bytes('größer\n'.encode('windows-1252') + b'\x81 und \x8d\n')
    found, stats = read(f'text:{tmp_path}/a', encoding='windows-1252')
    assert found == ['größer\n\ufffd und \ufffd'] and stats.counts['invalid_bytes'] == 2
    assert stats.invalid == {f'{tmp_path}/a': [2, 13]}


def test_json_lines_and_encodings_of_any_name(tmp_path):
    (tmp_path / 'a').write_bytes('{"text": "größer"}\n{"text": "Öl"}\n'.encode('latin-1'))
    assert read(f'jsonl:{tmp_path}/a', encoding='latin-1')[0] == ['größer', 'Öl']
    (tmp_path / 'b').write_text('größer')
    assert read(f'text:{tmp_path}/b', encoding='UTF8')[0] == ['größer']
    for bad in ('klingon', 'base64', 'punycode2', ''):
        with pytest.raises(BadInput, match='config.data.encoding: is '):
            config.resolve({'data': {'encoding': bad}})

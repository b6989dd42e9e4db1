"""Suggests other settings for reading (or writing) files, from what their text looks like."""

import itertools
import json
from collections import Counter
from collections.abc import Iterator

import numpy as np

from bert_jax.console import size
from bert_jax.files import is_local
from bert_jax.text.chunks import FileRange, Source
from bert_jax.text.sources.lines import read_lines
from bert_jax.text.sources.options import ReadOptions
from bert_jax.text.sources.parquet import longest_page

_NUM_FILES = 3  # inspected per source, spread over it
_NUM_LINES = 400  # inspected per file
_MIN_EVIDENCE = 20  # lines or files
_LARGE_PAGE = 1 << 27  # bytes
_WIDTHS = range(40, 121)  # characters at which text is wrapped


def find_hints(sources: list[Source], options: ReadOptions) -> Iterator[str]:
    """Yields hints about files that are probably read the wrong way, or that take much memory."""
    for source in sources:
        kind = source.name.partition(':')[0]
        paths = [path for path, (num_bytes, _) in source.files.items() if num_bytes and is_local(path)]
        fields = options.text_fields if kind == 'parquet' and paths else ()
        if (num_bytes := max((longest_page(paths[0], field) for field in fields), default=0)) > _LARGE_PAGE:
            yield (
                f'{paths[0]} seems to have pages of {size(num_bytes)}; reading one takes three times as much memory. '
                'Write smaller ones with pyarrow.parquet.write_table(…, write_batch_size=16)'
            )
        if kind != 'text' or not paths:
            continue
        for path in dict.fromkeys(paths[index * (len(paths) - 1) // (_NUM_FILES - 1)] for index in range(_NUM_FILES)):
            lines = read_lines(FileRange(path), kind, Counter(), options.encoding)
            lines = [str(line) for line in itertools.islice(lines, _NUM_LINES)]
            if hint := _hint_for_lines(lines, options):
                yield f'{path} {hint}'
                break


def _hint_for_lines(lines: list[str], options: ReadOptions) -> str:
    texts = [line.strip() for line in lines if line.strip()]
    if len(texts) > 1 and all(map(_is_json_object, texts[:_MIN_EVIDENCE])):
        return 'looks like JSON lines: the source jsonl:GLOB reads the field data.text_field of each line'
    if texts and texts[0].lower().startswith(('<!doctype html', '<html', '<?xml')):
        return 'looks like HTML or XML: the source html:GLOB reads the main text of pages, without their tags'
    width = 0 if options.join_lines else _width(lines)
    if width:
        return f'looks wrapped at {width} characters: --config.data.join_lines=True joins the lines of each paragraph'
    return ''


def _is_json_object(line: str) -> bool:
    try:
        return line.startswith('{') and isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _width(lines: list[str]) -> int:
    """Returns the width at which lines are wrapped, or 0.

    Lines are wrapped if most that are followed by another line end near the same width, and few end a sentence.
    """
    followed = [line.rstrip() for line, after in itertools.pairwise(lines) if line.strip() and after.strip()]
    if len(followed) < _MIN_EVIDENCE:
        return 0
    lengths = np.array(list(map(len, followed)))
    width = int(np.percentile(lengths, 98))
    num_near = ((lengths > 0.8 * width) & (lengths <= width + 2)).mean()
    num_ended = np.mean([line.endswith(('.', '!', '?', '"', '”', ':', '。')) for line in followed])
    return width if width in _WIDTHS and num_near > 0.8 and num_ended < 0.3 else 0


def documents_hint(sources: list[Source], num_documents: int, options: ReadOptions) -> str:
    """Returns a hint if many small text files became clearly more documents than there are files; otherwise ''."""
    if options.documents == 'file' or not all(source.name.startswith('text:') for source in sources):
        return ''
    num_files = sum(bool(num_bytes) for source in sources for num_bytes, _ in source.files.values())
    if not _MIN_EVIDENCE <= num_files < num_documents / 1.5:
        return ''
    return (
        f'{num_files:,} files became {num_documents:,} documents, because a blank line ends a document: '
        '--config.data.documents=file makes each file one document'
    )

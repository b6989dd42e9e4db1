"""CORPUS/report.html: sizes, lengths, languages and scripts, frequent tokens, and what was dropped and why.

The page is made from the manifest, the offsets and the token counts of a corpus. It shows single tokens, never text.
"""

import dataclasses
from typing import Any

import numpy as np
from etils import epath

from bert_jax.console import size
from bert_jax.report.html import Column, ColumnKind, Figure, Group, Table, Text, render
from bert_jax.report.svg import MUTED, draw, plot_style
from bert_jax.text.cleaning.rules import RULES
from bert_jax.text.corpus import SPLITS, Corpus, load_corpus
from bert_jax.text.reasons import REASONS
from bert_jax.text.splits import Split
from bert_jax.workdir.result import save

_REPORT_FILE = 'report.html'
_MAX_LENGTHS = 1_000_000  # documents, or sentences, whose lengths are drawn; evenly spaced if there are more
_NUM_TOKENS = 60  # most frequent ones
_TOKENS_PER_ROW = 4
_QUANTILES = (0.05, 0.5, 0.95)


@dataclasses.dataclass(frozen=True)
class CorpusPage:
    """The content of the page; sections without content are None or empty.

    Attributes:
      title: name of the corpus.
      facts: lines about the sources and the vocabulary.
      lengths: histograms.
      scripts_note, tokens_note: explain the tables.
    """

    title: str
    facts: list[str]
    sizes: Table
    lengths: list[Figure]
    languages: Table | None
    scripts: Table | None
    scripts_note: str
    tokens: Table
    tokens_note: str
    dropped: Table | None
    dropped_note: str
    settings: Table


def write_corpus_report(directory: str) -> epath.Path | None:
    """Writes `report.html` into a corpus; returns its path, or None if the corpus is not writable, which is reported.

    Raises:
      BadInput: if the corpus is damaged.
    """
    return save(render('corpus.html', _page(load_corpus(directory))), directory, _REPORT_FILE)


def _page(corpus: Corpus) -> CorpusPage:
    manifest = corpus.manifest
    counts = corpus.train.unigram_counts(corpus.tokenizer.vocab_size)
    return CorpusPage(
        title=epath.Path(corpus.directory).name,
        facts=_facts(corpus),
        sizes=_sizes(corpus),
        lengths=_lengths(corpus.train),
        languages=_languages(manifest.get('languages', {})),
        scripts=_scripts(manifest.get('scripts', {})),
        scripts_note=_scripts_note(manifest.get('scripts', {})),
        tokens=_frequent_tokens(corpus, counts),
        tokens_note=_tokens_note(counts),
        dropped=_dropped(manifest),
        dropped_note=_dropped_note(manifest),
        settings=_settings(manifest['settings']),
    )


def _table(*columns: tuple[str, ColumnKind], rows: list[list[str | Text]], style: str = '') -> Table:
    return Table([Column(heading, kind) for heading, kind in columns], [Group(rows)], style)


def _share(part: float, whole: float) -> str:
    if not whole:
        return '–'
    return f'{part / whole:.2%}' if part == 0 or part / whole >= 0.00005 else '< 0.01%'


def _facts(corpus: Corpus) -> list[str]:
    manifest = corpus.manifest
    sources = [f'{each["source"]} ({each["documents"]:,} documents)' for each in manifest.get('train_sources', [])]
    kind = f'{corpus.tokenizer.kind}, {corpus.tokenizer.vocab_size:,} tokens'
    rates = f'{manifest["tokens_per_word"]:.2f} tokens per word, {manifest["unknown_rate"]:.2%} unknown'
    return [*(f'Source: {source}' for source in sources), f'Vocabulary: {kind}; {rates}']


def _sizes(corpus: Corpus) -> Table:
    rows: list[list[str | Text]] = []
    for name in SPLITS:
        counts = corpus.manifest['splits'][name]
        files = corpus.manifest['files'].items()
        num_bytes = sum(file['bytes'] for path, file in files if path.startswith(f'{name}/'))
        cells = [f'{counts[noun]:,}' for noun in ('documents', 'sentences', 'tokens')]
        means = [
            f'{counts["tokens"] / max(1, counts[noun]):,.1f}' if counts[noun] else '–'
            for noun in ('documents', 'sentences')
        ]
        label = {'train': 'training', 'validation': 'validation'}[name]
        rows.append([label, *cells, *means, size(num_bytes)])
    headings = ('documents', 'sentences', 'tokens', 'tokens per document', 'tokens per sentence', 'on disk')
    return _table(('', 'label'), *((heading, 'number') for heading in headings), rows=rows)


# --- Lengths. ---


def _lengths(split: Split) -> list[Figure]:
    documents, sentences = split.documents, split.sentences
    lengths = {
        'documents': _lengths_between(sentences, documents),
        'sentences': _lengths_between(sentences, np.arange(len(sentences))),
    }
    return [_histogram(noun, values) for noun, values in lengths.items() if len(values)]


def _lengths_between(offsets: np.ndarray, borders: np.ndarray) -> np.ndarray:
    """Returns the number of tokens between consecutive borders, which are positions in `offsets`."""
    count = len(borders) - 1
    chosen = np.arange(count) if count <= _MAX_LENGTHS else np.linspace(0, count - 1, _MAX_LENGTHS).astype(np.int64)
    return offsets[borders[chosen + 1]] - offsets[borders[chosen]]


def _histogram(noun: str, lengths: np.ndarray) -> Figure:
    """Draws how many of the lengths lie between consecutive powers of the square root of 2."""
    first, last = 2 * np.log2([lengths.min(), lengths.max()])
    exponents = np.arange(np.floor(first), last + 2)
    edges = np.unique(np.ceil(2 ** (exponents / 2)).astype(np.int64))
    counts, _ = np.histogram(lengths, edges)

    def plot(axes: Any) -> None:
        shares = counts / counts.sum()
        axes.set_axisbelow(True)
        axes.stairs(shares, edges, fill=True, color=plot_style(0)['color'])
        axes.set_xscale('log', base=2)
        axes.xaxis.set_major_formatter(lambda value, _: f'{value:,.0f}')
        axes.yaxis.set_major_formatter(lambda value, _: f'{100 * value:g}%')
        axes.set_xlabel('tokens', color=MUTED)

    low, median, high = (f'{value:,.0f}' for value in np.quantile(lengths, _QUANTILES))
    note = f'median {median}; 5% to 95%: {low} to {high}; longest {lengths.max():,}'
    return Figure(Text(f'Tokens per {noun.removesuffix("s")}', note), draw(noun, f'Lengths of {noun}', plot))


# --- Languages and scripts. ---


def _languages(languages: dict[str, int]) -> Table | None:
    if not languages:
        return None
    total = sum(languages.values())
    ordered = sorted(languages.items(), key=lambda item: (-item[1], item[0]))
    rows: list[list[str | Text]] = [[code, f'{count:,}', _share(count, total)] for code, count in ordered]
    return _table(('language', 'label'), ('documents', 'number'), ('share', 'number'), rows=rows)


def _scripts(scripts: dict[str, dict[str, int]]) -> Table | None:
    if not scripts:
        return None
    total = sum(counts['letters'] for counts in scripts.values())
    rows: list[list[str | Text]] = []
    for name, counts in scripts.items():
        has_words = counts['words'] > 0
        rows.append(
            [
                name,
                _share(counts['letters'], total) if counts['letters'] else '–',
                f'{counts["words"]:,}',
                f'{counts["tokens"]:,}',
                f'{counts["tokens"] / counts["words"]:.2f}' if has_words else '–',
                _share(counts['unknown'], counts['tokens']),
                f'{counts["unknown_characters"]:,} of {counts["characters"]:,}',
                f'{counts["unknown_occurrences"]:,}',
            ]
        )
    headings = ('letters', 'words', 'tokens', 'tokens per word', 'unknown tokens', 'unknown characters', 'occurrences')
    return _table(('script', 'label'), *((heading, 'number') for heading in headings), rows=rows)


def _scripts_note(scripts: dict[str, dict[str, int]]) -> str:
    if not scripts:
        return ''
    note = (
        'Of the cleaned text, before duplicates are dropped. Words and tokens are those of sentences with most letters '
        'in the script. A character is unknown if the tokenizer turns it into [UNK]; occurrences are those of such '
        'characters.'
    )
    num_unknown = sum(counts['unknown_occurrences'] for counts in scripts.values())
    if not num_unknown:
        return note
    return f'{note} A larger vocabulary, or tokenizer.kind=bpe, which knows all bytes, makes fewer characters unknown.'


# --- Tokens. ---


def _frequent_tokens(corpus: Corpus, counts: np.ndarray) -> Table:
    order = np.argsort(-counts, kind='stable')[:_NUM_TOKENS]
    total = counts.sum()
    cells: list[list[str | Text]] = [
        [corpus.tokenizer.token(token), _share(counts[token], total)] for token in order.tolist() if counts[token]
    ]
    num_rows = -(-len(cells) // _TOKENS_PER_ROW)
    rows: list[list[str | Text]] = []
    for row in range(num_rows):
        of_row = [cells[column * num_rows + row] for column in range(_TOKENS_PER_ROW)
                  if column * num_rows + row < len(cells)]  # fmt: skip
        rows.append([cell for pair in of_row for cell in pair])
    columns: list[tuple[str, ColumnKind]] = [('token', 'label'), ('share', 'number')]
    return _table(*columns * min(_TOKENS_PER_ROW, max(1, len(cells))), rows=rows)


def _tokens_note(counts: np.ndarray) -> str:
    num_unused = int((counts == 0).sum())
    return (
        f'Of the training split. {num_unused:,} of the {len(counts):,} tokens of the vocabulary '
        f'({num_unused / len(counts):.1%}) do not occur in it.'
    )


# --- What was dropped. ---


def _dropped(manifest: dict[str, Any]) -> Table | None:
    dropped, characters = manifest['dropped'], manifest.get('dropped_characters', {})
    if not dropped:
        return None
    read = manifest.get('characters_read', 0)
    rows: list[list[str | Text]] = []
    for reason, count in sorted(dropped.items(), key=lambda item: (-characters.get(item[0], 0), item[0])):
        rule = RULES.get(reason)
        what = f'{rule.unit}s {rule.meaning}' if rule else REASONS.get(reason, ('', reason.replace('_', ' ')))[1]
        of_reason = characters.get(reason)
        rows.append(
            [
                reason,
                Text(what, rule.source if rule else ''),
                f'{count:,}',
                '–' if of_reason is None else f'{of_reason:,}',
                '–' if of_reason is None else _share(of_reason, read),
            ]
        )
    headings: list[tuple[str, ColumnKind]] = [('reason', 'label'), ('what', 'text')]
    numbers: list[tuple[str, ColumnKind]] = [(name, 'number') for name in ('count', 'characters', 'share of the text')]
    return _table(*headings, *numbers, rows=rows)


def _dropped_note(manifest: dict[str, Any]) -> str:
    if not manifest.get('dropped_characters'):
        return ''
    return (
        'Each line or document is counted under the first rule that it breaks. '
        'bert-jax prepare --show_dropped=3 shows examples.'
    )


def _settings(settings: dict[str, Any]) -> Table:
    rows: list[list[str | Text]] = [[name, str(value)] for name, value in sorted(settings.items())]
    return _table(('', 'label'), ('', 'text'), rows=rows, style='settings')

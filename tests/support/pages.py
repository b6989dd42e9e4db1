"""Writes workdirs to report on, and parses pages, checking that every element is closed."""

import html.parser
import json

VOID = {'meta', 'br', 'img', 'link', 'hr', 'input', 'wbr'}


class Page(html.parser.HTMLParser):
    """A parsed page; parsing checks that every element is closed, in order."""

    def __init__(self, text):
        super().__init__()
        self.open, self.elements, self.text = [], [], []
        self.continues = False  # after a <wbr>: the text is not interrupted
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        self.continues = tag == 'wbr'
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != 'style':
            self.text.append(self.text.pop() + data if self.continues else data)
        self.continues = False


def write_run(workdir, *, num_lines=20, config=None, evaluation=True, tail=''):
    workdir.mkdir(parents=True)
    config = config or {'train': {'steps': 200, 'seed': 0}, 'data': {'source': 'python-docs', 'pairing': 'nsp'}}
    document = {'config': config, 'fingerprint': {'model': 'abc123'}, 'versions': {'jax': '0.10.2'}}
    (workdir / 'config.json').write_text(json.dumps(document))
    lines = []
    for i in range(1, num_lines + 1):
        values = {
            'step': 10 * i,
            'loss': 9 - i / 10,
            'mlm_loss': 8.25 - i / 10,
            'nsp_loss': 0.7,
            'mlm_accuracy': i / 100,
        }
        values |= {
            'nsp_accuracy': 0.5,
            'learning_rate': 1e-4,
            'grad_norm': 1.5,
            'tokens_per_second': 4321.0,
            'mfu': 0.031,
        }
        lines.append(json.dumps(values))
        if i % 10 == 0:
            lines.append(json.dumps({'step': 10 * i, 'validation/mlm_loss': 6.5, 'validation/mlm_accuracy': 0.19}))
    (workdir / 'metrics.jsonl').write_text('\n'.join(lines) + '\n' + tail)
    if evaluation:
        values = {
            'step': 10 * num_lines,
            'mlm_loss': 6.125,
            'mlm_accuracy': 0.234,
            'nsp_loss': 0.66,
            'nsp_accuracy': 0.61,
        }
        values |= {'unigram_entropy': 6.875, 'most_frequent_accuracy': 0.057}
        (workdir / 'evaluation.json').write_text(json.dumps(values))
    return str(workdir)


def read_page(path):
    return Page(path.read_text())


def write_lines(path, *lines):
    """Writes values as JSON lines."""
    path.write_text(''.join(json.dumps(line) + '\n' for line in lines))

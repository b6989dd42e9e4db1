"""Opens exports with the `transformers` of this interpreter and compares it with what bert_jax computed.

    .venv-compat/bin/python tests/compat/open_exports.py DIRECTORY

`test_transformers_4.py` writes the directory and describes its files. This script imports nothing of bert_jax, which
that environment does not have. It prints JSON: for each export whether the token ids are equal, the largest difference
of the outputs, and the names of tensors that `transformers` did not find or did not expect.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers


def compare(export: Path, class_name: str, texts: list[str]) -> dict[str, Any]:
    """Returns the comparison of an export, described above."""
    model, loading = getattr(transformers, class_name).from_pretrained(export, output_loading_info=True)
    encoded = transformers.AutoTokenizer.from_pretrained(export)(texts, padding=True, return_tensors='pt')
    with torch.no_grad():
        out = model.eval()(**encoded)[0].numpy()
    expected = np.load(export.with_suffix('.npz'))
    are_equal = all(np.array_equal(encoded[name], expected[name]) for name in ('input_ids', 'attention_mask'))
    if out.shape == expected['outputs'].shape:
        # [B, C], or [B, L, …] of which only the vectors of tokens count.
        where = slice(None) if out.ndim == 2 else expected['attention_mask'].astype(bool)
        difference = float(np.abs(out - expected['outputs'])[where].max())
    else:
        difference = float('inf')
    tensors = [name for problem in ('missing_keys', 'unexpected_keys', 'mismatched_keys') for name in loading[problem]]
    return {'ids_are_equal': are_equal, 'largest_difference': difference, 'unmatched_tensors': tensors}


def main(directory: Path) -> None:
    """Prints the comparisons of all exports."""
    exports = json.loads((directory / 'exports.json').read_text())
    results = {name: compare(directory / name, **description) for name, description in exports.items()}
    print(json.dumps({'version': transformers.__version__, 'results': results}))


if __name__ == '__main__':
    main(Path(sys.argv[1]))

"""Copies a corpus from shared storage to a local disk of this host, once, verifying checksums."""

import fcntl
import hashlib
import pathlib

from bert_jax.console import size
from bert_jax.errors import BadInput
from bert_jax.files import new_directory
from bert_jax.text.checksums import BLOCK_BYTES, block_digest


def copy_to_local_disk(corpus: pathlib.Path, manifest: dict, local: pathlib.Path) -> pathlib.Path:
    """Copies a corpus below `local`, verifying the checksum of every MiB; returns the directory of the copy.

    Its name contains a hash of the content, so a copy is never stale. If several processes of a host need it, one
    copies and the others wait. The copy appears atomically.

    Raises:
      BadInput: for a file that has changed since it was written, or a disk that cannot hold the copy.
    """
    manifest_text = (corpus / 'manifest.json').read_bytes()
    content = hashlib.sha256(manifest_text).hexdigest()[:16]
    copy = local / f'{corpus.resolve().name}-{content}'
    try:
        local.mkdir(parents=True, exist_ok=True)
        with (local / f'.{copy.name}.lock').open('w') as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # released by the system if its holder dies
            if not copy.is_dir():
                with new_directory(copy, abandoned_s=0) as temporary:
                    for name, file in manifest['files'].items():
                        _copy_checked(corpus / name, temporary / name, file['blocks'])
                    (temporary / 'manifest.json').write_bytes(manifest_text)
    except OSError as error:
        raise BadInput(
            f'config.data.local_copy={local}',
            f'cannot hold the copy of {corpus}: {error.strerror or error} ({error.filename})',
            f'{size(sum(file["bytes"] for file in manifest["files"].values()))} of free space on a local disk',
        ) from error
    return copy


def _copy_checked(source: pathlib.Path, target: pathlib.Path, blocks: list[str]) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with source.open('rb') as read, target.open('wb') as written:
        for block_index, expected in enumerate(blocks):
            block = read.read(BLOCK_BYTES)
            if block_digest(block) != expected:
                found = f'is damaged: MiB {block_index} has another checksum'
                raise BadInput(str(source), found, expected, 'copy the corpus again, or prepare it again')
            written.write(block)

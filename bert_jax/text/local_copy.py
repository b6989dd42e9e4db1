"""A corpus on shared storage -> a verified copy on this host's own disk, made once."""

import fcntl
import hashlib
import pathlib

from bert_jax.console import size
from bert_jax.errors import BadInput
from bert_jax.files import new_directory
from bert_jax.text.checksums import BLOCK_BYTES, block_digest


def copy_to_local_disk(corpus: pathlib.Path, manifest: dict, local: pathlib.Path) -> pathlib.Path:
    """Copies a corpus below `local`, checking every MiB on the way, and returns the directory of the copy.

    Its name holds the content's hash, so that a copy is never stale. Of several processes on a host one copies, and the
    others wait. A copy is whole or not there.

    Raises:
      BadInput: for a file that is not as it was written, or a disk that cannot take the copy.
    """
    manifest_text = (corpus / 'manifest.json').read_bytes()
    content = hashlib.sha256(manifest_text).hexdigest()[:16]
    copy = local / f'{corpus.resolve().name}-{content}'
    try:
        local.mkdir(parents=True, exist_ok=True)
        with (local / f'.{copy.name}.lock').open('w') as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # released by the system when its holder dies
            if not copy.is_dir():
                with new_directory(copy, abandoned_s=0) as temporary:
                    for name, file in manifest['files'].items():
                        _copy_checked(corpus / name, temporary / name, file['blocks'])
                    (temporary / 'manifest.json').write_bytes(manifest_text)
    except OSError as error:
        raise BadInput(
            f'config.data.local_copy={local}',
            f'cannot hold the copy of {corpus}: {error.strerror or error} ({error.filename})',
            f'room for {size(sum(file["bytes"] for file in manifest["files"].values()))} on a local disk',
        ) from error
    return copy


def _copy_checked(source: pathlib.Path, target: pathlib.Path, blocks: list[str]) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with source.open('rb') as read, target.open('wb') as written:
        for number, expected in enumerate(blocks):
            block = read.read(BLOCK_BYTES)
            if block_digest(block) != expected:
                fix = 'copy the corpus again, or prepare it again'
                raise BadInput(str(source), f'has another checksum in MiB {number}', expected, fix)
            written.write(block)

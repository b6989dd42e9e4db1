"""The directory of caches: compiled programs, plans, indexes of records."""

import errno
import os
from pathlib import Path


def cache_directory() -> Path:
    """Returns $XDG_CACHE_HOME, or ~/.cache if it is not set; the directory need not exist.

    Raises:
      OSError: for a user without a home directory, as in a container that has no name for its user id.
    """
    if configured := os.environ.get('XDG_CACHE_HOME'):
        return Path(configured)
    try:
        return Path.home() / '.cache'
    except RuntimeError:
        raise OSError(errno.ENOENT, 'this user has no home directory; set XDG_CACHE_HOME') from None

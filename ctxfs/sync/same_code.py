"""Whether a worker that is started now speaks as the daemon does: an upgrade exchanges the files of ctxfs under mounts that run.

Owns the fingerprint of what the two say to each other. It must not know what that is: it reads the sources of the messages. Fields of messages go by
their place, so code of two versions could take one for another; a worker of another version refuses to work instead, and the daemon says what to do.
"""
from __future__ import annotations

import hashlib
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[1]
#: where messages, and what is in them, are defined
_SOURCES = ('records.py', 'storage/archive_log_format.py', 'storage/members.py', 'storage/object_store.py', 'sync/archive_protocol.py',
            'sync/frames.py', 'sync/messages.py', 'sync/protocol.py', 'sync/results.py', 'sync/worker_options.py')
REFUSAL = ('ctxfs was upgraded while this mount runs, and a transfer worker that has ended cannot be started again: unmount, and mount again; what '
           'is not uploaded is kept')


def fingerprint() -> str:
    """Of the files as they are now."""
    digest = hashlib.sha256()
    for name in _SOURCES:
        digest.update((_PACKAGE / name).read_bytes())
    return digest.hexdigest()[:16]


#: of this process, which has just imported them
MINE = fingerprint()

"""How far the kernel reads ahead on a mount, and so how much one read request asks for.

Owns the width. A request costs the daemon as much for 128 KiB, the kernel's own width, as for four times that; whoever reads a file from its
beginning to its end waits half as long. Only root may say so (/sys/class/bdi): elsewhere it stays as it is. It must not know who reads what.
"""
from __future__ import annotations

import logging
import os

from ctxfs.edge.mount_table import MountEntry

log = logging.getLogger(__name__)

#: not the most that a request can have (1 MiB): a program that maps a file and jumps about in it gets as much for each page that it touches
WIDTH_KIB = 512


def widen(mount: MountEntry | None) -> None:
    """To be called when the kernel has sent a request: with its own first one (INIT) it sets the width itself. Touches nothing on the mount."""
    if mount is None:
        return
    try:
        with open(f'/sys/class/bdi/{os.major(mount.device)}:{os.minor(mount.device)}/read_ahead_kb', 'w') as file:
            file.write(str(WIDTH_KIB))
    except OSError as error:
        log.debug('the kernel reads ahead as it does by itself: %s', error)

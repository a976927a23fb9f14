"""The entry point of `ctxfs`: where a mount is asked for, its daemon's process begins before anything else is imported.

Owns the guess whether a mount will follow. It must not know commands (cli.py), whose imports take longer than what is done here.
"""
from __future__ import annotations

import contextlib
import os
import sys

from ctxfs.edge import daemon_process

#: set by a shell that asks for completions
COMPLETING = '_CTXFS_COMPLETE'


def main() -> None:
    """Never returns. What a command began has ended when it returns, so nothing is left for the interpreter's own end to do, which takes as long as
    many a command."""
    status = run(sys.argv[1:])
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):      # nobody reads it any more
            stream.flush()
    os._exit(status)


def run(args: list[str]) -> int:
    """Run one command line; the exit status. Errors go to stderr as one line."""
    if will_mount(args):
        daemon_process.begin()
    from ctxfs.edge import cli
    return cli.run(args)


def will_mount(args: list[str]) -> bool:
    """By the looks of it, in the background."""
    return args[:1] == ['mount'] and len(args) > 1 and COMPLETING not in os.environ and not {'--help', '-h', '--foreground'}.intersection(args)

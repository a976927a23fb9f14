"""`ctxfs pause` and `ctxfs resume`.

Owns what is printed. It must not know what is held back: the daemon does.
"""
from __future__ import annotations

import click

from ctxfs.edge.cli_common import Invocation, common_options, print_json, printable, select_running
from ctxfs.edge.client import ControlClient


@click.command()
@click.argument('reference', metavar='[CTX]', required=False)
@common_options
def pause(invocation: Invocation, reference: str | None) -> int:
    """Hold back what begins by itself: uploads by the clock, looking for remote changes, filling the cache.

    What is asked for is done all the same: ctxfs sync, an unmount, a read.
    """
    return _switch(invocation, reference, 'pause', ('paused', 'was paused already'))


@click.command()
@click.argument('reference', metavar='[CTX]', required=False)
@common_options
def resume(invocation: Invocation, reference: str | None) -> int:
    """End a pause."""
    return _switch(invocation, reference, 'resume', ('goes on', 'was not paused'))


def _switch(invocation: Invocation, reference: str | None, method: str, words: tuple[str, str]) -> int:
    answers = []
    for mount in select_running(invocation, reference):
        with ControlClient(mount.socket) as client:
            answer = client.call(method)
        r = mount.record
        answers.append({'contextId': r.context_id, 'contextName': r.context_name, 'mountpoint': r.mountpoint, 'paused': answer['paused']})
        if not invocation.as_json:
            print(printable(f'{r.context_name} ({r.mountpoint}) {words[answer["was"] == answer["paused"]]}'))
    if invocation.as_json:
        print_json({'mounts': answers})
    return 0

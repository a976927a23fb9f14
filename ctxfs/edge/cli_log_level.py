"""`ctxfs log-level`.

Owns what is printed. It must not know what is logged: the daemon does.
"""
from __future__ import annotations

import click

from ctxfs.config import LOG_LEVELS
from ctxfs.edge.cli_common import Invocation, common_options, print_json, printable, select_running
from ctxfs.edge.client import ControlClient


@click.command(name='log-level')
@click.argument('level', metavar='[LEVEL]', required=False, type=click.Choice(LOG_LEVELS))
@click.argument('reference', metavar='[CTX]', required=False)
@common_options
def log_level(invocation: Invocation, level: str | None, reference: str | None) -> int:
    """Set how much running mounts log, until they end: debug, info, warning or error. Without LEVEL: show it."""
    answers = []
    for mount in select_running(invocation, reference):
        with ControlClient(mount.socket) as client:
            answer = client.call('log_level', level=level)
        r = mount.record
        answers.append({'contextId': r.context_id, 'contextName': r.context_name, 'mountpoint': r.mountpoint, **answer})
        if not invocation.as_json:
            was = f' (was {answer["was"]})' if answer['was'] != answer['level'] else ''
            print(printable(f'{r.context_name} ({r.mountpoint}) logs {answer["level"]}{was} to {r.log_file}'))
    if invocation.as_json:
        print_json({'mounts': answers})
    return 0

"""`ctxfs metrics`.

Owns who is asked and where it is printed. It must not know the metrics (metrics_text.py).
"""
from __future__ import annotations

import sys

import click

from ctxfs.edge.cli_common import Invocation, common_options, print_json, select
from ctxfs.edge.client import ControlClient
from ctxfs.edge.metrics_text import Reading, labels_of, render
from ctxfs.edge.runtime_dir import Mount
from ctxfs.errors import CtxfsError, NotFound

#: a mount that does not answer must not keep whoever collects from the others
SECONDS = 5.0


@click.command()
@click.argument('reference', metavar='[CTX]', required=False)
@click.option('--openmetrics', is_flag=True, help='In the OpenMetrics format.')
@common_options
def metrics(invocation: Invocation, reference: str | None, openmetrics: bool) -> int:
    """Print the counters of running mounts in Prometheus's text format, for the textfile collector of node_exporter, say."""
    found = select(invocation.mounts(), reference, invocation.configuration)
    if reference is not None and not found:
        raise NotFound(f'{reference} is not mounted here')
    readings = [_read(mount) for mount in found if mount.is_alive() or mount.result() is None]
    if invocation.as_json:
        print_json({'mounts': [{**reading.labels, **(reading.answers or {}), 'up': reading.answers is not None} for reading in readings]})
    else:
        sys.stdout.write(''.join(f'{line}\n' for line in render(readings, is_open=openmetrics)))
    return 0


def _read(mount: Mount) -> Reading:
    r = mount.record
    labels = labels_of(r.context_id, r.context_name, r.mountpoint)
    if not mount.is_alive():
        return Reading(labels, None)
    try:
        with ControlClient(mount.socket) as client:
            return Reading(labels, {method: client.call(method, timeout=SECONDS) for method in ('status', 'statistics')})
    except CtxfsError:
        return Reading(labels, None)

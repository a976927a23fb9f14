"""`ctxfs context create|list|show`: the registry of contexts for people and scripts.

Owns the shape of their output. It must not know how the registry is kept.
"""
from __future__ import annotations

import contextlib
from collections.abc import Iterator

import click
import msgspec

from ctxfs.edge import preflight
from ctxfs.edge.cli_audit import audited
from ctxfs.edge.cli_common import Invocation, common_options, print_json, printable
from ctxfs.storage.registry import ContextRecord, Registry


@click.group()
def context() -> None:
    """Create, list and show contexts."""


@contextlib.contextmanager
def open_registry(invocation: Invocation, *, create: bool = False, reference: str | None = None) -> Iterator[Registry]:
    is_default = preflight.is_default_store(invocation.store_url, invocation.paths.data)
    store = preflight.open_checked_store(invocation.store_url, create=create or is_default, context=reference,
                                         state_root=invocation.paths.state)
    with contextlib.closing(store):
        yield Registry(store)


def shown(invocation: Invocation, record: ContextRecord) -> ContextRecord:
    """In use where this host has it mounted: another host's mounts leave no trace in the registry."""
    is_mounted = any(m.record.context_id == record.id and m.is_alive() for m in invocation.mounts())
    return msgspec.structs.replace(record, state='in-use') if is_mounted and record.state == 'available' else record


@context.command()
@click.argument('name', metavar='NAME')
@common_options
def create(invocation: Invocation, name: str) -> int:
    """The context NAME, made if there is none; prints its id."""
    with audited(invocation, 'context-create', context=name) as line, open_registry(invocation, create=True) as registry:
        record = registry.create(name)
        line.about(record)
    print_json(shown(invocation, record)) if invocation.as_json else print(record.id)
    return 0


@context.command()
@click.argument('reference', metavar='CTX')
@common_options
def show(invocation: Invocation, reference: str) -> int:
    """What is known of one context."""
    with open_registry(invocation, reference=reference) as registry:
        record = shown(invocation, registry.find(reference))
    if invocation.as_json:
        print_json(record)
    else:
        for name, value in msgspec.to_builtins(record).items():
            print(f'{name:10} {printable(value)}')
    return 0


@context.command(name='list')
@click.option('--limit', type=click.IntRange(min=1), default=None, metavar='N', help='At most N contexts (default: all).')
@click.option('--next-token', metavar='TOKEN', help='Go on where a list with --limit ended.')
@common_options
def list_contexts(invocation: Invocation, limit: int | None, next_token: str | None) -> int:
    """All contexts of the store."""
    with open_registry(invocation) as registry:
        page = registry.list_contexts(limit, next_token)
    contexts = [shown(invocation, record) for record in page.contexts]
    if invocation.as_json:
        print_json({'contexts': contexts, 'nextToken': page.next_token, 'totalCount': page.total_count})
        return 0
    for record in sorted(contexts, key=lambda record: record.name):
        print(f'{record.id}  {record.last_used_at}  {record.state:9}  {printable(record.name)}')
    if page.next_token:
        print(f'… {page.total_count} in all; go on with --next-token {page.next_token}')
    return 0

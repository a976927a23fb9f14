"""`ctxfs context …`: the contexts of a store for people and scripts.

Owns the shape of their output. It must not know how the registry is kept, nor how a context is cleared.
"""
from __future__ import annotations

import click
import msgspec

from ctxfs.edge.cli_audit import audited
from ctxfs.edge.cli_common import Invocation, common_options, print_json, print_table, printable
from ctxfs.edge.context_desk import open_desk
from ctxfs.edge.progress import Transfer
from ctxfs.edge.runtime_dir import Pending
from ctxfs.sync import copying


@click.group()
def context() -> None:
    """Create, list, show, rename, copy, clear and delete contexts."""


@context.command()
@click.argument('name', metavar='NAME')
@common_options
def create(invocation: Invocation, name: str) -> int:
    """The context NAME, made if there is none; prints its id."""
    with audited(invocation, 'context-create', context=name) as line, open_desk(invocation, create=True) as desk:
        record = desk.registry.create(name)
        line.about(record)
        record = desk.shown(record)
    print_json(record) if invocation.as_json else print(record.id)
    return 0


@context.command()
@click.argument('reference', metavar='CTX')
@common_options
def show(invocation: Invocation, reference: str) -> int:
    """What is known of one context, and where it is mounted."""
    with open_desk(invocation, reference=reference) as desk:
        record = desk.shown(desk.registry.find(reference))
        mounts = desk.mounts(record) if record.state == 'in-use' else []
    if invocation.as_json:
        print_json({**msgspec.to_builtins(record), 'mounts': mounts})
        return 0
    for name, value in msgspec.to_builtins(record).items():
        print(f'{name:10} {printable(str(value))}')
    for beat in mounts:
        print(f'{"mounted":10} {printable(beat.text())} since {printable(beat.since)}')
    return 0


@context.command(name='list')
@click.option('--limit', type=click.IntRange(min=1), default=None, metavar='N', help='At most N contexts (default: all).')
@click.option('--next-token', metavar='TOKEN', help='Go on where a list with --limit ended.')
@common_options
def list_contexts(invocation: Invocation, limit: int | None, next_token: str | None) -> int:
    """All contexts of the store, or a page of them."""
    with open_desk(invocation) as desk:
        page = desk.registry.list_contexts(limit, next_token)
        contexts = desk.shown_all(page.contexts)
    if invocation.as_json:
        print_json({'contexts': contexts, 'nextToken': page.next_token, 'totalCount': page.total_count})
        return 0
    print_table(('ID', 'LAST USED', 'STATE', 'NAME'),
                [(record.id, record.last_used_at, record.state, record.name) for record in sorted(contexts, key=lambda record: record.name)])
    if page.next_token:
        print(f'… {page.total_count} in all; go on with --next-token {page.next_token}')
    return 0


@context.command()
@click.argument('reference', metavar='CTX')
@click.argument('name', metavar='NAME')
@common_options
def rename(invocation: Invocation, reference: str, name: str) -> int:
    """Call the context NAME from now on; its id stays, and so do mounts."""
    with audited(invocation, 'context-rename', newName=name) as line, open_desk(invocation, reference=reference) as desk:
        record = desk.registry.find(reference)
        line.about(record)
        record = desk.rename(record, name)
    if invocation.as_json:
        print_json(record)
    return 0


@context.command()
@click.argument('source', metavar='SRC')
@click.argument('target', metavar='DST')
@click.option('--create', is_flag=True, help='Make DST if there is no context of that name.')
@click.option('--update', is_flag=True, help='DST may have files: those that SRC does not have are removed.')
@click.option('--mode', type=click.Choice(['file', 'archive']), help='How DST keeps its files; as SRC unless said.')
@common_options
def copy(invocation: Invocation, source: str, target: str, create: bool, update: bool, mode: str | None) -> int:
    """Make DST a copy of SRC, inside the store. Cut short, the same command goes on with it.

    SRC may be in use; DST must not be, and cannot be mounted before it is whole. Into the other mode (uploadPolicy.uploadMode) the content of
    small files comes here and goes there.
    """
    wanted = (mode or '').capitalize()
    with audited(invocation, 'context-copy', source=source) as line, open_desk(invocation) as desk:
        found, into = desk.registry.find(source), desk.target(target, create=create)
        line.about(into)
        into = desk.begin_copy(found, into, update=update, mode=wanted)
        count, size = (0, 0) if invocation.as_json else desk.measure_copy(found, mode=wanted)
        with Transfer(f'copy {found.name}', Pending(files=count, bytes=size), quiet=invocation.as_json) as progress:
            copied = desk.finish_copy(found, into, progress, mode=wanted)
    if invocation.as_json:
        print_json({'id': into.id, 'name': into.name, 'objects': copied.objects, 'bytes': copied.bytes, 'equal': copied.equal,
                    'removed': copied.removed})
    else:
        print(printable(f'{into.name}: {", ".join(copying.described(copied))}'))
    return 0


@context.command()
@click.argument('reference', metavar='CTX')
@click.option('--force', is_flag=True, help='Also while it is mounted somewhere.')
@common_options
def delete(invocation: Invocation, reference: str, force: bool) -> int:
    """Delete the context with all its files. Cut short, the same command goes on with it."""
    return _empty(invocation, reference, deletes=True, force=force)


@context.command()
@click.argument('reference', metavar='CTX')
@click.option('--force', is_flag=True, help='Also while it is mounted somewhere.')
@common_options
def clear(invocation: Invocation, reference: str, force: bool) -> int:
    """Remove all files of the context; its id, name and policy stay. Cut short, the same command goes on with it."""
    return _empty(invocation, reference, deletes=False, force=force)


def _empty(invocation: Invocation, reference: str, *, deletes: bool, force: bool) -> int:
    verb = 'delete' if deletes else 'clear'
    with audited(invocation, f'context-{verb}', force=force) as line, open_desk(invocation, reference=reference) as desk:
        record = desk.registry.find(reference)
        line.about(record)
        record = desk.begin_clearing(record, deletes=deletes, force=force)
        with Transfer(f'{verb} {record.name}', quiet=invocation.as_json) as progress:
            count = desk.finish_clearing(record, progress)
    if invocation.as_json:
        print_json({'id': record.id, 'name': record.name, 'objects': count, 'deleted': record.is_doomed is True})
    else:
        objects = f'{count} object{"" if count == 1 else "s"}'
        print(f'{printable(record.name)}: {objects} removed' + (', and the context' if record.is_doomed is True else ''))
    return 0

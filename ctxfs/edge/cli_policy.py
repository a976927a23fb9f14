"""`ctxfs policy default|check|show|schema|set`: sync policies for people, editors and scripts.

Owns how a policy is named (a file, a context, a mount point) and printed. It must not know how a policy is read or what it does.
"""
from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator

import click

from ctxfs.config import nearest
from ctxfs.edge import policy_choice, preflight
from ctxfs.edge.cli_audit import audited
from ctxfs.edge.cli_common import Invocation, common_options, names_of, print_json, printable, select
from ctxfs.edge.client import ControlClient
from ctxfs.edge.runtime_dir import Mount, MountRecord
from ctxfs.errors import NotFound
from ctxfs.policy import BWList, SyncPolicy, WhiteList
from ctxfs.policy_parse import policy_to_bytes, policy_to_json, read_policy_file
from ctxfs.policy_presets import BROWSER, Browser, with_browser
from ctxfs.policy_text import describe, json_schema, policy_answer
from ctxfs.storage.object_store import ObjectStore
from ctxfs.storage.policy_store import save_policy
from ctxfs.storage.registry import ContextRecord, Registry

#: the default as the SDK writes it out: an entry with path '', which means everything, as no entry does
DEFAULT = SyncPolicy(bw_list=BWList(white_lists=(WhiteList(),)))


@click.group()
def policy() -> None:
    """Check, show and store sync policies.

    A policy is a file: JSON as AgentBay's SDK emits it, or TOML.
    """


@policy.command()
@click.option('--browser', type=click.Choice(tuple(BROWSER)), help='With the white lists of ctxfs mount --browser.')
@common_options
def default(invocation: Invocation, browser: Browser | None) -> int:
    """The default policy, to begin a file with."""
    print_json(policy_to_json(with_browser(DEFAULT, browser, origin='the default policy')))
    return 0


@policy.command()
@click.argument('file', metavar='FILE')
@common_options
def check(invocation: Invocation, file: str) -> int:
    """Whether FILE is a policy that can be mounted; if not, where it is wrong and what to write."""
    found = read_policy_file(file)
    if invocation.as_json:
        print_json(policy_answer(found, source=os.path.abspath(file), file=os.path.abspath(file)))
    elif sys.stdout.isatty():
        print(f'{file} is right; ctxfs policy show {file} says what it does')
    return 0


@policy.command()
@click.argument('reference', metavar='[FILE|CTX|MOUNTPOINT|NAME]', required=False)
@common_options
def show(invocation: Invocation, reference: str | None) -> int:
    """What a policy does, in sentences: of a file, a mount (NAME: one of the config file), a context; without one, of a context that has none of
    its own."""
    if reference is None:
        choice = policy_choice.fallback(invocation.config, invocation.configuration.origin('policy'))
        _print(invocation, choice.policy, source=choice.source)
    elif os.path.isfile(reference):
        _print(invocation, read_policy_file(reference), source=os.path.abspath(reference), file=os.path.abspath(reference))
    else:
        running = next((m for m in select(invocation.mounts(), reference, invocation.configuration) if m.is_alive()), None)
        _show_mount(invocation, running) if running is not None else _show_absent(invocation, reference)
    return 0


@policy.command()
@common_options
def schema(invocation: Invocation) -> int:
    """A JSON Schema of policies, for editors."""
    print_json(json_schema())
    return 0


@policy.command(name='set')
@click.argument('reference', metavar='CTX')
@click.argument('file', metavar='FILE')
@common_options
def set_policy(invocation: Invocation, reference: str, file: str) -> int:
    """Store FILE with context CTX, for all mounts that begin from now on."""
    found = read_policy_file(file)
    url = _store_of(invocation, reference)
    with audited(invocation, 'policy-set', store=url, context=reference) as line, _open_context(invocation, reference) as (store, context):
        line.about(context)
        save_policy(store, context.id, policy_to_bytes(found))
    if invocation.as_json:
        print_json({'contextId': context.id, 'contextName': context.name, 'policy': policy_to_json(found)})
    elif sys.stdout.isatty():
        print(f'stored with {context.name}: mounts that begin from now on have it')
    return 0


# --- where a policy is -------------------------------------------------------------------------------------------------------------

def _store_of(invocation: Invocation, reference: str) -> str:
    record = _record_of(invocation, reference)
    return invocation.store_url if record is None else record.store


def _record_of(invocation: Invocation, reference: str) -> MountRecord | None:
    return next((m.record for m in reversed(select(invocation.mounts(), reference))), None)


@contextlib.contextmanager
def _open_context(invocation: Invocation, reference: str) -> Iterator[tuple[ObjectStore, ContextRecord]]:
    """A context by its id, its name, or a mount point that this host had it at: a mount knows its store."""
    record = _record_of(invocation, reference)
    url, reference = (record.store, record.context_id) if record is not None else (invocation.store_url, reference)
    if record is None and ('/' in reference or reference.endswith(('.json', '.toml'))):
        raise NotFound(f'{reference}: no such file, and nothing is mounted there{nearest(reference, names_of(invocation.mounts()))}')
    is_default = preflight.is_default_store(url, invocation.paths.data)
    with contextlib.closing(preflight.open_checked_store(url, create=is_default, context=reference)) as store:
        try:
            context = Registry(store).find(reference)
        except NotFound as e:
            raise NotFound(f'{e}; ctxfs context list shows what there is') from e
        yield store, context


def _show_mount(invocation: Invocation, mount: Mount) -> None:
    """As the daemon has it now: a policy file may have changed since the mount."""
    with ControlClient(mount.socket) as client:
        answer = client.call('policy')
    if invocation.as_json:
        print_json(answer)
    else:
        _print_sentences(answer['source'], answer['sentences'])


def _show_absent(invocation: Invocation, reference: str) -> None:
    """Of what is not mounted: a context, or a mount of the config file as it would be."""
    if reference not in invocation.configuration.mounts or select(invocation.mounts(), reference):
        _show_context(invocation, reference)
        return
    named = invocation.configuration.named(reference)
    if named.policy is None:
        _show_context(invocation.for_named(named), named.context, named.browser)
    else:
        _print(invocation, with_browser(read_policy_file(named.policy), named.browser, origin=named.policy), source=named.policy, file=named.policy)


def _show_context(invocation: Invocation, reference: str, browser: Browser | None = None) -> None:
    with _open_context(invocation, reference) as (store, context):
        choice = policy_choice.stored(store, context) or policy_choice.fallback(invocation.config, invocation.configuration.origin('policy'))
    _print(invocation, with_browser(choice.policy, browser, origin=choice.origin), source=choice.source)


# --- output ------------------------------------------------------------------------------------------------------------------------

_SOURCES = {'default': 'the default policy', 'config': '[policy] of config.toml', 'context': 'stored with the context'}


def _print(invocation: Invocation, found: SyncPolicy, *, source: str, file: str | None = None) -> None:
    if invocation.as_json:
        print_json(policy_answer(found, source=source, file=file))
    else:
        _print_sentences(source, describe(found))


def _print_sentences(source: str, sentences: list[str]) -> None:
    print(printable(_SOURCES.get(source, source)))
    for sentence in sentences:
        print(f'- {printable(sentence)}')

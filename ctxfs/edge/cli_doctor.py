"""`ctxfs doctor`: looks for what keeps ctxfs from working, and says what to do.

Owns which checks are run, and how findings look. It must not know how anything is checked.
"""
from __future__ import annotations

from functools import partial

import click

from ctxfs.edge import doctor_host, doctor_store, preflight
from ctxfs.edge.cli_common import Invocation, common_options, print_json, printable
from ctxfs.edge.doctor import Check, Finding, Level, examine
from ctxfs.errors import UsageError


@click.command()
@click.argument('context', metavar='[CTX]', required=False)
@click.option('--probe', 'is_asked_anew', is_flag=True, help='Ask the store anew what it can do.')
@click.option('--state', 'is_state', is_flag=True, help='Look through what this host keeps of CTX (of all): names, bytes, journal, bucket.')
@click.option('--repair', 'is_repair', is_flag=True, help='Rebuild a damaged tree database of CTX, which must not be mounted.')
@common_options
def doctor(invocation: Invocation, context: str | None, is_asked_anew: bool, is_state: bool, is_repair: bool) -> int:
    """Look for what keeps ctxfs from working: one line for each check, ok, warn or fail, with what to do.

    The exit status is 1 when a check fails.
    """
    if is_repair and (context is None or is_state):
        raise UsageError('write ctxfs doctor --repair CTX')
    if is_asked_anew and (is_state or is_repair):
        raise UsageError('--probe asks the store, --state and --repair look at this host: run ctxfs doctor twice')
    checks = (_state_checks(invocation, context, is_repair=is_repair) if is_state or is_repair
              else _checks(invocation, context, is_asked_anew=is_asked_anew))
    findings = []
    for finding in examine(checks):
        findings.append(finding)
        if not invocation.as_json:
            print(_line(finding), flush=True)
    if invocation.as_json:
        print_json({'findings': [{'level': f.level.value, 'check': f.check, 'text': f.text, 'fix': f.fix} for f in findings]})
    return 1 if any(finding.level is Level.FAIL for finding in findings) else 0


def _checks(invocation: Invocation, context: str | None, *, is_asked_anew: bool) -> list[Check]:
    url = invocation.store_url
    is_embedded = preflight.is_default_store(url, invocation.paths.data)
    return [('versions', doctor_host.check_versions), ('fuse', doctor_host.check_fuse), ('library', doctor_host.check_library),
            ('directories', partial(doctor_host.check_directories, invocation.paths)),
            ('store', partial(doctor_store.check_store, url, create=is_embedded, context=context)),
            ('clock', partial(doctor_store.check_clock, url, context=context)),
            ('rules', partial(doctor_store.check_rules, url, context=context)),
            ('abilities', partial(doctor_store.check_abilities, url, state_root=invocation.paths.state, context=context,
                                  is_asked_anew=is_asked_anew))]


def _state_checks(invocation: Invocation, context: str | None, *, is_repair: bool) -> list[Check]:
    """Raises NotFound."""
    from ctxfs.edge import doctor_state  # SQLite, which the other checks can do without
    places = doctor_state.places(invocation.mounts(), invocation.paths.state, context)
    if is_repair:
        return [('repair', partial(doctor_state.repair_state, place)) for place in places]
    return [('state', partial(doctor_state.check, place)) for place in places]


def _line(finding: Finding) -> str:
    return printable(f'{finding.level.value:5}{finding.check}: {finding.text}{f"; {finding.fix}" if finding.fix else ""}')

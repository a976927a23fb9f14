"""`ctxfs mount NAME`: a mount that the config file describes, as arguments of `ctxfs mount`.

Owns which value counts: the command line's, then the named mount's; what neither says is the command's business. It must not mount.
"""
from __future__ import annotations

from typing import Any, NamedTuple

from ctxfs.config_file import NamedMount
from ctxfs.edge.cli_common import Invocation
from ctxfs.errors import UsageError

#: options that both have, where the command line's wins
_SETTINGS = ('browser', 'cache_size', 'fsync', 'conflict', 'sync_every', 'poll_every', 'store_timeout', 'log_level', 'lag_alarm', 'audit_log',
             'max_upload_rate', 'max_download_rate', 'transfers', 'metrics_addr', 'sse')


class Arguments(NamedTuple):
    """What `ctxfs mount` was told, completed."""
    invocation: Invocation
    context: str
    mountpoint: str
    options: dict[str, Any]


def complete(invocation: Invocation, name: str, options: dict[str, Any]) -> Arguments:
    """Raises UsageError when no named mount is called so."""
    try:
        named = invocation.configuration.named(name)
    except UsageError as e:
        raise UsageError(f'{e}; to mount the context {name}, say where: ctxfs mount {name} MOUNTPOINT') from None
    return Arguments(invocation.for_named(named), named.context, named.mountpoint, _merged(options, named))


def _merged(given: dict[str, Any], named: NamedMount) -> dict[str, Any]:
    settings = {key: getattr(named, key) if given[key] is None else given[key] for key in _SETTINGS}
    return {**given, **settings, 'create': given['create'] or named.create, 'log_json': given['log_json'] or named.log_json,
             'read_only': given['read_only'] or named.read_only,
            'policy_file': given['policy_file'] or named.policy, 'fuse': (*([named.options] if named.options else []), *given['fuse'])}

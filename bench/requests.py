"""What was asked of the server, counted by kind.

Owns which requests belong to no operation: a mount's heartbeats, once a minute whatever else happens, and probes of what the server can do, once
for each host and server. It must not know how requests were seen.
"""

from __future__ import annotations

import collections
from collections.abc import Iterable
from typing import NamedTuple
from urllib.parse import parse_qsl, unquote, urlsplit

from tests.fakes.counting_proxy import kind_of

APART = ('probe', 'heartbeat')


class Counted(NamedTuple):
    """`total` is without what is told apart; `kinds` and `text` have all of it."""

    total: int
    kinds: dict[tuple[str, str], int]
    text: str


def count(requests: Iterable[tuple[str, str]]) -> Counted:
    kinds = collections.Counter((method, kind(method, target)) for method, target in requests)
    total = sum(number for (_, what), number in kinds.items() if what not in APART)
    said = ', '.join(f'{number} {method} {what}' for (method, what), number in sorted(kinds.items()))
    return Counted(total, dict(kinds), said or 'no requests')


def kind(method: str, target: str) -> str:
    parts = urlsplit(target)
    key = unquote(parts.path).lstrip('/').partition('/')[2]
    return kind_of(method, key, dict(parse_qsl(parts.query, keep_blank_values=True)), {})

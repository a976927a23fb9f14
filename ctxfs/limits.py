"""What a mount may take of the network, as people write it: bytes a second, transfers at once, and where its metrics are served.

Owns the spelling of --max-upload-rate, --max-download-rate, --transfers and --metrics-addr. It must not know how a limit is kept.
"""
from __future__ import annotations

import ipaddress
import re
from typing import NamedTuple

from ctxfs.config import parse_size
from ctxfs.errors import UsageError

#: a block of 1 MiB, which a program waits for, then takes a minute
MIN_RATE = 16 << 10
MAX_TRANSFERS = 256
#: where metrics are served when only a port is said: who can reach them reads names of contexts and mount points
LOOPBACK = '127.0.0.1'


class Address(NamedTuple):
    host: str
    port: int

    @property
    def is_loopback(self) -> bool:
        if self.host == 'localhost':
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    def __str__(self) -> str:
        return f'[{self.host}]:{self.port}' if ':' in self.host else f'{self.host}:{self.port}'


def rate_of(text: str | int | None, option: str) -> float:
    """Bytes a second of `10M`, `512K`, `10M/s`; 0: not said. Raises UsageError."""
    if text is None:
        return 0.0
    try:
        rate = parse_size(re.sub(r'\s*/s\s*$', '', str(text)))
    except UsageError:
        raise UsageError(f'{option} {text}: not a rate; write bytes a second, like 512K or 10M') from None
    if rate < MIN_RATE:
        raise UsageError(f'{option} {text}: the least is 16K bytes a second; without the option there is no limit')
    return float(rate)


def transfers_of(number: int | None) -> int:
    """0: not said. Raises UsageError."""
    if number is None:
        return 0
    if not 1 <= number <= MAX_TRANSFERS:
        raise UsageError(f'--transfers {number}: write a number from 1 to {MAX_TRANSFERS}')
    return number


def metrics_addr_of(text: str | None) -> Address | None:
    """HOST:PORT, [IPV6]:PORT, or a port alone. Raises UsageError."""
    if text is None:
        return None
    match = re.fullmatch(r'(?:(?P<host>[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])?:)?(?P<port>[0-9]{1,5})', text.strip())
    if not match or not 1 <= int(match['port']) <= 65535:
        raise UsageError(f'--metrics-addr {text}: write HOST:PORT, like {LOOPBACK}:9464')
    return Address((match['host'] or LOOPBACK).strip('[]'), int(match['port']))

"""What a mount tells systemd, or whoever speaks its notification protocol (sd_notify(3)): ready, status, alive, stopping, more time.

Owns the socket and the words of the protocol. It must not know what a mount does: service_task.py says what. Nothing here raises or waits: a
manager that does not listen harms no mount.
"""
from __future__ import annotations

import contextlib
import logging
import os
import socket
from collections.abc import MutableMapping

log = logging.getLogger(__name__)


class Notifier:
    """One datagram for each call."""

    def __init__(self, address: str, *, watchdog_seconds: float | None = None) -> None:
        self._address = '\0' + address[1:] if address.startswith('@') else address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self._socket.setblocking(False)
        #: how long the manager waits for `alive` before it takes the service for hung; None: it does not
        self.watchdog_seconds = watchdog_seconds

    def ready(self, status: str) -> None:
        self._send('READY=1', f'STATUS={_line(status)}')

    def status(self, status: str) -> None:
        self._send(f'STATUS={_line(status)}')

    def alive(self) -> None:
        self._send('WATCHDOG=1')

    def stopping(self, status: str) -> None:
        self._send('STOPPING=1', f'STATUS={_line(status)}')

    def extend(self, seconds: float) -> None:
        """Starting or stopping may take so long from now."""
        self._send(f'EXTEND_TIMEOUT_USEC={seconds * 1e6:.0f}')

    def _send(self, *lines: str) -> None:
        try:
            self._socket.sendto('\n'.join(lines).encode('utf-8', 'replace'), self._address)
        except OSError as e:
            log.debug('the service manager does not listen: %s', e)

    def close(self) -> None:
        self._socket.close()


def notifier_of(env: MutableMapping[str, str]) -> Notifier | None:
    """None without a manager. Its variables are taken out: what is started from here is not the service."""
    address, microseconds, pid = (env.pop(name, '') for name in ('NOTIFY_SOCKET', 'WATCHDOG_USEC', 'WATCHDOG_PID'))
    if not address.startswith(('/', '@')):
        return None
    seconds = None
    if pid in ('', str(os.getpid())):
        with contextlib.suppress(ValueError):
            seconds = int(microseconds) / 1e6
    return Notifier(address, watchdog_seconds=seconds if seconds and seconds > 0 else None)


def _line(text: str) -> str:
    return ' '.join(text.split())

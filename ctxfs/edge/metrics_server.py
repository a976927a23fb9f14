"""`--metrics-addr`: a mount's metrics over HTTP, for Prometheus to scrape.

Owns the server, and that no scrape costs the file system more than one look at its counts a second: it runs in threads of its own, and asks
the daemon's loop for what `status` and `statistics` say. It must not know the metrics (metrics_text.py).
"""
from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

import prometheus_client
import trio
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector, CollectorRegistry

from ctxfs.edge.metrics_text import Reading, families
from ctxfs.errors import CtxfsError
from ctxfs.limits import Address

log = logging.getLogger(__name__)

#: whoever scrapes more often gets the same numbers again
FRESH_SECONDS = 1.0
#: and without an answer of the daemon in that time, `up` 0
ANSWER_SECONDS = 5.0
#: connections that are being answered; another one is closed
MOST = 8
#: a client that says nothing, or takes nothing, for so long is dropped
SILENT_SECONDS = 10.0

Ask = Callable[[], Awaitable[dict[str, Any]]]


class MetricsServer:
    """Listens from its making, in the loop that `ask` runs in. Raises CtxfsError when it cannot."""

    def __init__(self, address: Address, labels: dict[str, str], ask: Ask) -> None:
        registry = CollectorRegistry(auto_describe=False)
        registry.register(_Mount(labels, ask, trio.lowlevel.current_trio_token()))
        try:
            self._server = _server_type(address)((address.host, address.port), _Handler)
        except OSError as error:
            raise CtxfsError(f'metrics cannot be served at {address}: {error.strerror or error}; choose another --metrics-addr') from error
        self._server.set_app(prometheus_client.make_wsgi_app(registry))
        self._thread = threading.Thread(target=self._server.serve_forever, name='ctxfs-metrics', daemon=True)
        self._thread.start()
        log.info('metrics are served at http://%s/metrics', address)

    def close(self) -> None:
        """Blocks for a moment."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Server(ThreadingMixIn, WSGIServer):
    """A thread for each connection, up to MOST."""
    daemon_threads = True

    def __init__(self, *args: Any) -> None:
        self._free = threading.Semaphore(MOST)
        super().__init__(*args)

    def server_bind(self) -> None:
        """Without looking its own name up, which may take long."""
        socket.socket.setsockopt(self.socket, socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])
        self.setup_environ()

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._free.acquire(blocking=False):
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client went away."""
        log.debug('a client of the metrics', exc_info=True)


def _server_type(address: Address) -> type[_Server]:
    family = socket.AF_INET6 if ':' in address.host else socket.AF_INET
    return type('Server', (_Server,), {'address_family': family})


class _Handler(WSGIRequestHandler):
    timeout = SILENT_SECONDS

    def log_message(self, format: str, *args: Any) -> None:
        """Scrapes are no news."""


class _Mount(Collector):
    """Asked by threads of the server."""

    def __init__(self, labels: dict[str, str], ask: Ask, token: trio.lowlevel.TrioToken) -> None:
        self._labels = labels
        self._ask = ask
        self._token = token
        self._lock = threading.Lock()
        self._asked_at = float('-inf')
        self._answers: dict[str, Any] | None = None

    def collect(self) -> Iterator[Metric]:
        """See Collector."""
        with self._lock:
            if time.monotonic() - self._asked_at > FRESH_SECONDS:
                self._answers = self._answer()
                self._asked_at = time.monotonic()
            reading = Reading(self._labels, self._answers)
        for family in families([reading]):
            metric = Metric(family.name, family.text, family.kind)
            for suffix, labels, value in family.samples:
                metric.add_sample(family.name + suffix, labels, value)
            yield metric

    def _answer(self) -> dict[str, Any] | None:
        try:
            return trio.from_thread.run(self._asked, trio_token=self._token)
        except (CtxfsError, trio.RunFinishedError, trio.Cancelled):     # the mount is ending, or cannot read its database
            return None

    async def _asked(self) -> dict[str, Any] | None:
        with trio.move_on_after(ANSWER_SECONDS):
            return await self._ask()
        return None

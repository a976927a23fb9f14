"""A server whose every answer is what the test says, byte for byte, however long; for clients that must survive any of them.

Owns the sockets and the threads. It must not know S3: `answer(request line)` gives the bytes of one response, or pieces of it without end.
"""
from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterable

Answer = Callable[[str], bytes | Iterable[bytes]]


def response(body: bytes, *headers: str, status: str = '200 OK') -> bytes:
    return '\r\n'.join([f'HTTP/1.1 {status}', f'Content-Length: {len(body)}', *headers, '', '']).encode('latin-1') + body


class HostileServer:
    """Serves connections one after the other, one request each, until the block ends."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.requests: list[str] = []
        self._listener = socket.create_server(('127.0.0.1', 0))
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self.endpoint = f'http://127.0.0.1:{self._listener.getsockname()[1]}'

    def __enter__(self) -> HostileServer:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection:
                self._answer(connection)

    def _answer(self, connection: socket.socket) -> None:
        try:
            head = b''
            while b'\r\n\r\n' not in head:
                piece = connection.recv(65536)
                if not piece:
                    return
                head += piece
            line = head.partition(b'\r\n')[0].decode('latin-1')
            self.requests.append(line)
            answer = self.answer(line)
            for piece in [answer] if isinstance(answer, bytes) else answer:
                connection.sendall(piece)
        except OSError:     # the client has had enough
            return

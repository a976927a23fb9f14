"""A headless Chromium with its user-data directory where a test wants it, driven over its debugging pipe.

Owns the browser's process and the protocol's few commands that tests use. It must not know what the page does.
"""
from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

from tests.crash.watch import eventually

FLAGS = ('--headless', '--no-sandbox', '--disable-gpu', '--no-first-run', '--disable-dev-shm-usage', '--password-store=basic', '--disable-extensions',
         '--disable-background-networking', '--disable-component-update', '--disable-sync', '--no-proxy-server', '--remote-debugging-pipe')


class Chromium:
    """`with Chromium(profile, log) as browser: browser.evaluate(url, script)`; the end of the block is the browser's orderly end."""

    def __init__(self, profile: Path, log: Path) -> None:
        self._profile, self._log = profile, log
        self._count = 0

    def __enter__(self) -> Chromium:
        theirs_in, ours_out = os.pipe()
        ours_in, theirs_out = os.pipe()
        with open(self._log, 'ab') as log:
            # the pipe's ends are 3 and 4 by Chromium's definition
            self._process = subprocess.Popen(
                ['bash', '-c', f'exec "$@" 3<&{theirs_in} 4>&{theirs_out}', 'bash', 'chromium', f'--user-data-dir={self._profile}', *FLAGS],
                pass_fds=[theirs_in, theirs_out], stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        os.close(theirs_in)
        os.close(theirs_out)
        self._to, self._from = os.fdopen(ours_out, 'wb', buffering=0), os.fdopen(ours_in, 'rb')
        self._buffer = b''
        return self

    def __exit__(self, *raised: object) -> None:
        try:
            if raised[0] is None:
                self._call('Browser.close')
                assert self._process.wait(60) == 0, self._log.read_text(errors='replace')[-4000:]
        finally:
            self._process.kill()
            self._process.wait()
            self._to.close()
            self._from.close()

    def evaluate(self, url: str, script: str) -> Any:
        """What the script (an expression, awaited) gives on that page."""
        target = self._call('Target.createTarget', url=url)['targetId']
        session = self._call('Target.attachToTarget', targetId=target, flatten=True)['sessionId']
        eventually(f'{url} is loaded', lambda: self._value('document.readyState + location.href', session) == f'complete{url}', every=0.05)
        return self._value(script, session)

    def _value(self, script: str, session: str) -> Any:
        answer = self._call('Runtime.evaluate', session, expression=script, awaitPromise=True, returnByValue=True)
        assert 'exceptionDetails' not in answer, answer
        return answer['result'].get('value')

    def _call(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        self._count += 1
        message = {'id': self._count, 'method': method, 'params': parameters, **({'sessionId': session} if session else {})}
        self._to.write(json.dumps(message).encode() + b'\0')
        while True:
            answer = self._read()
            if answer.get('id') == self._count:     # what has none is an event
                assert 'error' not in answer, answer
                return answer['result']

    def _read(self) -> dict[str, Any]:
        while b'\0' not in self._buffer:
            more = os.read(self._from.fileno(), 65536)
            assert more, f'chromium ended:\n{self._log.read_text(errors="replace")[-4000:]}'
            self._buffer += more
        message, _, self._buffer = self._buffer.partition(b'\0')
        return json.loads(message)

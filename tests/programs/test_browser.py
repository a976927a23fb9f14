"""Chromium with its profile in the mount: what a page keeps is there in the browser of the next host."""
from __future__ import annotations

import functools
import http.server
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.model.hosts import IS_DOUBLE, Site
from tests.programs.chromium import Chromium
from tests.programs.home import Home, wants_all

KEEP = '''(async () => {
    document.cookie = 'kept=cookie; max-age=864000';
    localStorage.setItem('kept', 'local storage');
    const request = indexedDB.open('kept', 1);
    request.onupgradeneeded = () => request.result.createObjectStore('box');
    const db = await new Promise((done, failed) => { request.onsuccess = () => done(request.result); request.onerror = failed; });
    const writing = db.transaction('box', 'readwrite', {durability: 'strict'});
    writing.objectStore('box').put('indexed '.repeat(20000), 'it');
    await new Promise((done, failed) => { writing.oncomplete = done; writing.onerror = failed; });
    db.close();
})()'''
FIND = '''(async () => {
    const request = indexedDB.open('kept', 1);
    request.onupgradeneeded = () => request.result.createObjectStore('box');
    const db = await new Promise((done, failed) => { request.onsuccess = () => done(request.result); request.onerror = failed; });
    const reading = db.transaction('box').objectStore('box').get('it');
    const found = await new Promise((done, failed) => { reading.onsuccess = () => done(reading.result); reading.onerror = failed; });
    db.close();
    return [document.cookie, localStorage.getItem('kept'), (found || '').length];
})()'''
PRESETS = {'minimal': ['kept=cookie', None, 0], 'standard': ['kept=cookie', 'local storage', 160000]}
ALL = ['kept=cookie', 'local storage', 160000]
PAGE = b'<!doctype html><title>page</title>'


class Page(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header('Content-Type', 'text/html')
        self.send_header('Content-Length', str(len(PAGE)))
        self.end_headers()
        self.wfile.write(PAGE)

    def log_message(self, *ignored: object) -> None:
        pass


@pytest.fixture
def page(needs: Callable[..., None]) -> Iterator[str]:
    needs('chromium')
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Page)
    thread = threading.Thread(target=functools.partial(server.serve_forever, 0.05))
    thread.start()
    yield f'http://127.0.0.1:{server.server_port}/'
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize('preset', PRESETS if wants_all() else ['standard'])
@pytest.mark.skipif(IS_DOUBLE, reason='a directory has no white lists')
def test_a_profile_mounted_with_a_preset(preset: str, site: Site, page: str, outside: Path) -> None:
    """`--browser` at the user-data directory: what the preset lists is found elsewhere, caches stay where they are."""
    home = Home(site, ('--browser', preset))
    with Chromium(home.at, outside / 'log') as browser:
        browser.evaluate(page, KEEP)
    names = set(os.listdir(home.at / 'Default'))
    assert home.host.status(home.at)['localOnly']['files'] > 0
    home.move_unchecked()
    carried = set(os.listdir(home.at / 'Default'))
    assert 'Cookies' in carried < names
    with Chromium(home.at, outside / 'log') as browser:
        assert browser.evaluate(page, FIND) == PRESETS[preset]
    home.close()


@pytest.mark.skipif(not wants_all(), reason='one run of Chromium will do here; scripts/programs runs this, too')
def test_a_profile_moves(home: Home, page: str, outside: Path) -> None:
    """Cookies, local storage and IndexedDB of a whole profile are found elsewhere."""
    with Chromium(home.at / 'profile', outside / 'log') as browser:
        browser.evaluate(page, KEEP)
    home.move()
    with Chromium(home.at / 'profile', outside / 'log') as browser:
        assert browser.evaluate(page, FIND) == ALL

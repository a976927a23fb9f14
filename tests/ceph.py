"""A real Ceph RGW for tests, from Debian's packages: one monitor, one OSD in memory, one gateway, on free loopback ports, ended by their pids.

Owns the cluster's directory and its processes. It must not know who tests what. As root or not; it takes about 13 s to start.

    apt-get install --no-install-recommends radosgw ceph-mon ceph-osd
    with ceph() as server:
        server.url(server.make_bucket())
"""
from __future__ import annotations

import contextlib
import secrets
import shutil
import subprocess
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.servers import S3Server, end_process, free_port, own_directory

PROGRAMS = ('ceph', 'ceph-mon', 'ceph-osd', 'monmaptool', 'radosgw', 'radosgw-admin')
START_SECONDS = 120.0
#: authentication is switched off inside the cluster: the gateway checks signatures all the same
SETTINGS = '''
[global]
fsid = {fsid}
mon host = [v2:127.0.0.1:{port}/0]
mon initial members = a
public addr = 127.0.0.1
cluster addr = 127.0.0.1
auth cluster required = none
auth service required = none
auth client required = none
ms cluster mode = crc
ms service mode = crc
ms client mode = crc
ms mon cluster mode = crc
ms mon service mode = crc
ms mon client mode = crc
run dir = {home}
log file = {home}/$name.log
admin socket = {home}/$name.asok
pid file = {home}/$name.pid
mon data = {home}/mon
osd data = {home}/osd
mon allow pool size one = true
mon max pg per osd = 1000
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 8
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
osd objectstore = memstore
memstore device bytes = 4294967296
'''


def missing_programs() -> list[str]:
    return [name for name in PROGRAMS if shutil.which(name) is None]


@contextlib.contextmanager
def ceph() -> Iterator[S3Server]:
    with own_directory('ceph-') as home, _ceph(home) as server:
        yield server


@contextlib.contextmanager
def _ceph(home: Path) -> Iterator[S3Server]:
    for name in ('mon', 'osd', 'rgw'):
        (home / name).mkdir(parents=True)
    conf = home / 'conf'
    fsid, port, gateway = str(uuid.uuid4()), free_port(), free_port()
    conf.write_text(SETTINGS.format(fsid=fsid, port=port, home=home))
    credentials = {'AWS_ACCESS_KEY_ID': 'AKIACEPH' + secrets.token_hex(6).upper(), 'AWS_SECRET_ACCESS_KEY': secrets.token_hex(20)}
    with contextlib.ExitStack() as stack:
        def start(name: str, *command: str) -> None:
            output = stack.enter_context(open(home / f'{name}.out', 'wb'))
            process = subprocess.Popen([command[0], '-c', str(conf), *command[1:], '-f'], stdout=output, stderr=subprocess.STDOUT,
                                       stdin=subprocess.DEVNULL)
            stack.callback(end_process, process)
        _run('monmaptool', '--create', '--addv', 'a', f'[v2:127.0.0.1:{port}/0]', '--fsid', fsid, str(home / 'monmap'))
        _run('ceph-mon', '-c', str(conf), '-i', 'a', '--mkfs', '--monmap', str(home / 'monmap'))
        start('mon', 'ceph-mon', '-i', 'a')
        osd = str(uuid.uuid4())
        _run('ceph', '-c', str(conf), 'osd', 'new', osd)
        _run('ceph-osd', '-c', str(conf), '-i', '0', '--mkfs', '--osd-uuid', osd)
        start('osd', 'ceph-osd', '-i', '0')
        start('rgw', 'radosgw', '-n', 'client.rgw', '--rgw-data', str(home / 'rgw'), '--rgw-frontends',
              f'beast endpoint=127.0.0.1:{gateway} tcp_nodelay=1')
        _run('radosgw-admin', '-c', str(conf), 'user', 'create', '--uid', 'test', '--display-name', 'test', '--access-key',
             credentials['AWS_ACCESS_KEY_ID'], '--secret-key', credentials['AWS_SECRET_ACCESS_KEY'])
        server = S3Server(f'http://127.0.0.1:{gateway}', {**credentials, 'AWS_DEFAULT_REGION': 'us-east-1'})
        _wait_until_it_answers(server.endpoint)
        yield server


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=START_SECONDS, check=False)
    if done.returncode:
        raise RuntimeError(f'{" ".join(command)}: status {done.returncode}\n{done.stdout[-2000:]}{done.stderr[-2000:]}')


def _wait_until_it_answers(endpoint: str) -> None:
    deadline = time.monotonic() + START_SECONDS
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    while time.monotonic() < deadline:
        try:
            opener.open(endpoint, timeout=5).close()
        except urllib.error.HTTPError as exc:
            exc.close()
            return
        except OSError:
            time.sleep(0.1)
        else:
            return
    raise RuntimeError(f'radosgw did not answer within {START_SECONDS:.0f} s')


def install_hint(missing: Sequence[str]) -> str:
    return f'{", ".join(missing)} missing: apt-get install --no-install-recommends radosgw ceph-mon ceph-osd'

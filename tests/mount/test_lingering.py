"""A mount that is unmounted here while another mount namespace has a copy of it: as when a container was started meanwhile."""
from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.crash.watch import eventually
from tests.mount.sites import MountingSite

pytestmark = [pytest.mark.skipif(os.getuid() != 0, reason='only root makes mount namespaces'), pytest.mark.timeout(200)]


@pytest.fixture
def namespaces() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Programs in a mount namespace of their own, which has all mounts of now and is told of no change; each says a line when it is there."""
    begun: list[subprocess.Popen[str]] = []

    def begin(program: str, *arguments: str) -> subprocess.Popen[str]:
        words = ['unshare', '--mount', '--propagation', 'private', sys.executable, '-c', program, *arguments]
        begun.append(subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
        assert begun[-1].stdout is not None and begun[-1].stdout.readline() == 'there\n'
        return begun[-1]
    yield begin
    for process in begun:
        process.kill()
        process.communicate()


def test_what_nobody_uses_any_more_is_written_back_and_ended(site: MountingSite, namespaces: Callable[..., subprocess.Popen[str]]) -> None:
    host, at = site.host(), site.mount_point()
    host.mount('ctx', at, create=True)
    (at / 'file').write_bytes(b'content')
    namespaces('print("there", flush=True); input()')
    host.unmount(at)
    assert site.bucket().body(f'contexts/{site.context_id("ctx")}/file') == b'content'
    host.mount('ctx', at)
    assert (at / 'file').read_bytes() == b'content'
    host.unmount(at)


def test_what_is_open_there_goes_on(site: MountingSite, namespaces: Callable[..., subprocess.Popen[str]]) -> None:
    """Until it is closed: what was written to it by then is in the bucket, too."""
    host, at = site.host(), site.mount_point()
    host.mount('ctx', at, create=True)
    program = 'import sys; file = open(sys.argv[1], "w"); print("there", flush=True); input(); file.write("late"); file.close(); input()'
    there = namespaces(program, str(at / 'file'))
    pid = host.pid(at)
    subprocess.run(['fusermount3', '-u', at], check=True)
    log = Path(f'/proc/{pid}/fd/2').resolve()
    eventually('it is noticed', lambda: 'another mount namespace' in log.read_text())
    waited = host.cli('wait', 'ctx', '--timeout', '7', check=False)
    assert waited.returncode == 1 and 'another mount namespace' in waited.stderr
    assert there.stdin is not None
    there.stdin.write('\n')
    there.stdin.flush()
    host.cli('wait', 'ctx')
    assert site.bucket().body(f'contexts/{site.context_id("ctx")}/file') == b'late'

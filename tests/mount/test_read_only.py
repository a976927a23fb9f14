"""A read-only mount of a host that still has something to upload."""
from __future__ import annotations

import os

from tests.model.hosts import Site


def test_what_an_earlier_mount_left_does_not_pass_for_uploaded(site: Site) -> None:
    """After a kill and a read-only mount `wait` fails and says so; the next ordinary mount uploads it, for other hosts too."""
    host, at = site.host(), site.mount_point()
    host.mount('ro', at, create=True)
    with open(os.path.join(at, 'left'), 'wb') as file:
        file.write(b'acknowledged')
    host.kill9(at)
    host.mount('ro', at, options=['--read-only'])
    with open(os.path.join(at, 'left'), 'rb') as file:
        assert file.read() == b'acknowledged'
    host.run('fusermount3', '-u', str(at))
    waited = host.cli('wait', 'ro', '--timeout', '60', check=False)
    assert waited.returncode == 1 and 'not uploaded' in waited.stderr, waited
    host.mount('ro', at)
    host.unmount(at)
    other = site.host()
    other.mount('ro', at)
    with open(os.path.join(at, 'left'), 'rb') as file:
        assert file.read() == b'acknowledged'
    other.unmount(at)

"""A context that another host filled, used from the first moment on while its listing still loads."""
from __future__ import annotations

import os
import subprocess
import sys

from tests.model.hosts import Site

DIRECTORIES = 40

_STAY = '''
import os, sys
for number in range(int(sys.argv[2])):
    os.chdir(os.path.join(sys.argv[1], f"d{number}"))
    for _ in range(40):
        assert os.path.basename(os.getcwd()) == f"d{number}"
        os.stat(".")
    os.listdir(".")
    assert os.path.basename(os.getcwd()) == f"d{number}"
'''


def test_a_working_directory_stays_while_the_listing_loads(site: Site) -> None:
    """What the listing brings is never taken away again from a process that is in it: getcwd() always works."""
    host, at = site.host(), site.mount_point()
    host.mount('cold', at, create=True)
    for number in range(DIRECTORIES):
        os.mkdir(os.path.join(at, f'd{number}'))
        for name in 'abc':
            with open(os.path.join(at, f'd{number}', name), 'w') as file:
                file.write(name)
    host.unmount(at)
    for _ in range(3):
        other = site.host()
        other.mount('cold', at)
        done = subprocess.run([sys.executable, '-c', _STAY, str(at), str(DIRECTORIES)], capture_output=True, text=True, cwd='/', check=False)
        other.unmount(at)
        assert done.returncode == 0, done.stderr

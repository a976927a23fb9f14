"""Installs what the bench uses besides ctxfs: fio, and the other mounts.

Owns the names of the packages. The Python ones are the extra `bench` of pyproject.toml, which scripts/bench has installed already.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

DEBIAN = {'fio': 'fio', 's3fs': 's3fs', 'redis-server': 'redis-server', 'git': 'git'}


def install() -> int:
    missing = [package for command, package in DEBIAN.items() if shutil.which(command) is None]
    if not missing:
        print('everything is there')
        return 0
    command = ['apt-get', 'install', '-y', '--no-install-recommends', *missing]
    if os.geteuid():
        print(f'scripts/bench: run as root: {" ".join(command)}', file=sys.stderr)
        return 1
    environment = {**os.environ, 'DEBIAN_FRONTEND': 'noninteractive'}
    if subprocess.run(command, env=environment, check=False).returncode == 0:
        return 0
    # lists that are missing or old name packages that are gone
    subprocess.run(['apt-get', 'update', '-qq'], env=environment, check=False)
    return subprocess.run(command, env=environment, check=False).returncode

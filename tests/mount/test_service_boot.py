"""The units in a real systemd: a Debian that boots in a container over this host's root, with ctxfs@home enabled and a user who has ctxfs@work of
his own, and powers off.

Owns the container. Skipped with a word where systemd-nspawn cannot run.
"""
from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.crash.fault_proxy import FaultProxy
from tests.crash.watch import eventually
from tests.mount.harness import CTXFS
from tests.mount.test_control_mount import no_double  # noqa: F401
from tests.servers import S3Server

pytestmark = [pytest.mark.needs_root, pytest.mark.slow, pytest.mark.timeout(290)]

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 150
#: the number of the user in it
USER = 4711
#: runs in the container when the mount is up; `ask` waits until the test outside has done its part
SCENARIO = '''
ask() { touch /result/$1; while ! test -e /result/$1-done; do sleep 0.1; done; }
# on a busy machine a store with so little patience may not have answered the first look yet
write() { until echo $1 > /srv/home/$1; do sleep 0.2; done; }
read_again() { until cat /srv/home/$1 2>/dev/null; do sleep 0.2; done; }
show() { systemctl show -P $1 ctxfs@home; }
systemctl is-active ctxfs@home
# as udev makes it, where this host's is root's alone
test $(stat -c %a /dev/fuse) = 666 || { umount -l /dev/fuse; rm -f /dev/fuse; mknod -m 666 /dev/fuse c 10 229; }
loginctl enable-linger ann
cd /home/ann
setpriv --reuid=ann --regid=ann --clear-groups env -i HOME=/home/ann PATH="$PATH" sh /result/user >/result/user-out 2>&1 &
write a
killed=$(show MainPID)
kill -9 $killed
while test "$(show ActiveState)" != active || test "$(show MainPID)" = $killed; do sleep 0.1; done
read_again a
systemctl stop ctxfs@home; echo "stopped $?: $(show StatusText)"
wait
ask look
systemctl start ctxfs@home
write b
ask fail
systemctl stop ctxfs@home
echo "$(show ActiveState) $(show Result): $(show StatusText)"
ask mend
systemctl reset-failed ctxfs@home
systemctl start ctxfs@home
read_again b
write c
systemctl poweroff
'''
#: runs beside the first part of it, as a user whose manager lingers
USER_SCENARIO = '''
export XDG_RUNTIME_DIR=/run/user/$(id -u)
show() { systemctl --user show -P $1 ctxfs@work; }
until test -S $XDG_RUNTIME_DIR/systemd/private; do sleep 0.1; done
COMMAND service install work --user
echo "$(show ActiveState): $(show StatusText)"
until echo u > ctx/u; do sleep 0.2; done
killed=$(show MainPID)
kill -9 $killed
while test "$(show ActiveState)" != active || test "$(show MainPID)" = $killed; do sleep 0.1; done
until cat ctx/u 2>/dev/null; do sleep 0.2; done
systemctl --user stop ctxfs@work; echo "stopped $?: $(show StatusText)"
grep -c ctx/work /proc/mounts
systemctl --user start ctxfs@work
until echo v > ctx/v; do sleep 0.2; done
'''
SCENARIO_UNIT = '''
[Unit]
After=ctxfs@home.service
[Service]
ExecStart=/bin/sh /result/scenario
StandardOutput=file:/result/out
StandardError=file:/result/errors
'''


class Machine:
    """An overlay over this host's root, in memory, that can be booted."""

    def __init__(self, tmp: Path) -> None:
        self.disk, self.root, self.log = tmp / 'disk', tmp / 'disk/root', tmp / 'boot.log'
        self.disk.mkdir()
        self.process: subprocess.Popen[bytes] | None = None

    def build(self) -> None:
        """Raises CalledProcessError where the kernel has no overlays."""
        subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=500m', 'tmpfs', self.disk], check=True)
        for name in ('upper', 'work', 'root'):
            (self.disk / name).mkdir()
        subprocess.run(['mount', '-t', 'overlay', 'overlay', '-o', f'lowerdir=/,upperdir={self.disk}/upper,workdir={self.disk}/work', self.root],
                       check=True, capture_output=True)
        for wants in self.units.glob('*.wants'):    # nothing of what this host runs
            shutil.rmtree(wants)
        (self.root / 'etc/fstab').unlink(missing_ok=True)
        (self.units / 'default.target').unlink(missing_ok=True)
        (self.units / 'default.target').symlink_to('/lib/systemd/system/multi-user.target')
        (self.root / 'result').mkdir()

    @property
    def units(self) -> Path:
        return self.root / 'etc/systemd/system'

    def enable(self, unit: str, template: str = '') -> None:
        wants = self.units / 'multi-user.target.wants'
        wants.mkdir(exist_ok=True)
        (wants / unit).symlink_to(f'../{template or unit}')

    def add_user(self, name: str, uid: int) -> Path:
        """His home. What this ctxfs runs from may lie where only root goes: not for him."""
        for file, line in (('passwd', f'{name}:x:{uid}:{uid}::/home/{name}:/bin/sh'), ('group', f'{name}:x:{uid}:'), ('shadow', f'{name}:!:1::::::')):
            with (self.root / 'etc' / file).open('a') as table:
                table.write(line + '\n')
        for above in {above for place in _places() for above in Path(place).parents}:
            if (found := self.root / str(above).lstrip('/')).is_dir():
                found.chmod(found.stat().st_mode | 0o011)
        home = self.root / 'home' / name
        home.mkdir(parents=True)
        return home

    def boot(self) -> None:
        """Its /tmp and /run are its own, so what this ctxfs runs from is put there again."""
        with self.log.open('wb') as log:
            self.process = subprocess.Popen(
                ['systemd-nspawn', '-D', self.root, f'--machine=ctxfs-{os.getpid()}', '--register=no', '--keep-unit', '-b', '--bind=/dev/fuse',
                 *(f'--bind-ro={place}' for place in _places())], stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def wait_for(self, name: str) -> None:
        """The scenario's question of that name."""
        eventually(name, lambda: (self.root / 'result' / name).exists() or self._has_ended(name), seconds=SECONDS, every=0.05)

    def _has_ended(self, name: str) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, f'no {name}: {self.said()}'
        return False

    def answer(self, name: str) -> None:
        (self.root / f'result/{name}-done').touch()

    def said(self) -> str:
        out = self.root / 'result/out'
        if not out.exists():
            return self.log.read_text('utf-8', 'replace')[-3000:]
        return out.read_text() + ''.join(f'{file.name}: {file.read_text("utf-8", "replace")}' for file in out.parent.glob('*-out'))

    def close(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        for place in (self.root, self.disk):
            subprocess.run(['umount', '-l', place], check=False, capture_output=True)


def _places() -> list[str]:
    return sorted({str(ROOT), sys.prefix, sys.base_prefix} - {'/usr'})


def own_by(uid: int, directory: Path) -> None:
    for path in (directory, *directory.rglob('*')):
        os.chown(path, uid, uid)


@pytest.fixture
def machine(tmp: Path) -> Iterator[Machine]:
    for program in ('systemd-nspawn', '/lib/systemd/systemd'):
        if shutil.which(program) is None:
            pytest.skip(f'there is no {program}: apt-get install systemd-container')
    made = Machine(tmp)
    try:
        try:
            made.build()
        except subprocess.CalledProcessError as error:
            pytest.skip(f'no root for a container: {error}')
        yield made
    finally:
        made.close()


def configure(machine: Machine, url: str, credentials: str) -> None:
    """The mount of the host, enabled for the boot, and that of a user, which he will install himself."""
    config = machine.root / 'etc/ctxfs'
    config.mkdir(exist_ok=True)
    settings = f'store = "{url}"\ncreate = true\nsync_every = "unmount"\nstore_timeout = "4s"\n'
    (config / 'config.toml').write_text(f'[mounts.home]\nmountpoint = "/srv/home"\n{settings}')
    (machine.root / 'srv/home').mkdir(exist_ok=True)
    (machine.root / 'etc/credstore').mkdir(exist_ok=True)
    (machine.root / 'etc/credstore/ctxfs-home').write_text(credentials)
    subprocess.run([*CTXFS, 'service', 'install', 'home', '--no-start', '--unit-dir', machine.units], check=True,
                   env={**os.environ, 'XDG_CONFIG_HOME': str(machine.root / 'etc')})
    (machine.units / 'ctxfs@home.service.d/impatient.conf').write_text('[Service]\nTimeoutStopSec=3\n')
    machine.enable('ctxfs@home.service', 'ctxfs@.service')

    home = machine.add_user('ann', USER)
    for name in ('ctx', '.config/ctxfs', '.config/systemd/user/ctxfs@work.service.d'):
        (home / name).mkdir(parents=True)
    (home / '.config/ctxfs/config.toml').write_text(f'[mounts.work]\nmountpoint = "/home/ann/ctx"\n{settings}')
    (home / 'keys').write_text(credentials)
    (home / '.config/systemd/user/ctxfs@work.service.d/keys.conf').write_text('[Service]\nLoadCredential=aws-credentials:%h/keys\n')
    own_by(USER, home)


def test_the_units_in_a_real_systemd(machine: Machine, s3_server: S3Server) -> None:
    """Of the host: mounted at boot with credentials of systemd's; started again after SIGKILL with nothing lost; a stop returns when all is in the
    bucket; one that cannot upload takes longer than TimeoutStopSec= allows, and is a failure with its cause, not a timeout; a poweroff uploads.
    Of a user, whose manager lingers: the same, by fusermount3."""
    bucket, known, client = s3_server.make_bucket(), s3_server.environment, s3_server.client()

    def names() -> set[str]:
        found = client.list_objects_v2(Bucket=bucket, Prefix='contexts/').get('Contents', [])
        return {entry['Key'].rpartition('/')[2] for entry in found if '/.ctxfs/' not in entry['Key']}

    with FaultProxy(s3_server.endpoint) as proxy:
        configure(machine, f's3://{bucket}?endpoint={proxy.endpoint}&region=us-east-1&addressing=path',
                  f'[default]\naws_access_key_id = {known["AWS_ACCESS_KEY_ID"]}\naws_secret_access_key = {known["AWS_SECRET_ACCESS_KEY"]}\n')
        (machine.root / 'result/scenario').write_text(SCENARIO)
        (machine.root / 'result/user').write_text(USER_SCENARIO.replace('COMMAND', shlex.join(CTXFS)))
        (machine.units / 'scenario.service').write_text(SCENARIO_UNIT)
        machine.enable('scenario.service')
        machine.boot()

        machine.wait_for('look')
        assert names() == {'a', 'u'}, machine.said()
        machine.answer('look')
        machine.wait_for('fail')
        proxy.plan = lambda method, path: 'unavailable'
        machine.answer('fail')
        machine.wait_for('mend')
        assert names() == {'a', 'u'}
        proxy.plan = lambda method, path: None
        machine.answer('mend')
        assert machine.process is not None and machine.process.wait(SECONDS) == 0
    said = machine.said().splitlines()
    assert said[:3] == ['active', 'a', 'stopped 0: unmounted; everything is in the bucket'], said
    assert said[3].startswith('failed exit-code: ') and said[4] == 'b', said
    assert (machine.root / 'result/user-out').read_text().splitlines() == [
        'active: mounted on /home/ann/ctx', 'u', 'stopped 0: unmounted; everything is in the bucket', '0']
    assert names() == {'a', 'b', 'c', 'u', 'v'}

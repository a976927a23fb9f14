"""The config files: whose value counts, what a named mount says, and with which words a bad one is refused."""
from __future__ import annotations

from pathlib import Path

import pytest

from ctxfs.config import FileConfig
from ctxfs.config_file import NamedMount, load_configuration
from ctxfs.errors import UsageError

NAMED = '[mounts.home]\nmountpoint = "/home/me/ctx"\n'


def both(tmp_path: Path, user: str = '', system: str = ''):
    (tmp_path / 'user.toml').write_text(user)
    (tmp_path / 'system.toml').write_text(system)
    return load_configuration(tmp_path / 'user.toml', tmp_path / 'system.toml')


def test_the_users_values_win_key_by_key(tmp_path: Path) -> None:
    """What he does not say the host's file says; each value knows the file that it comes from."""
    found = both(tmp_path, 'store = "s3://mine"\n', 'store = "s3://all"\nfsync = "remote"\n')
    assert found.values == FileConfig(store='s3://mine', fsync='remote')
    assert (found.origin('store').name, found.origin('fsync').name, found.origin('policy').name) == ('user.toml', 'system.toml', 'user.toml')


def test_no_file_is_no_error(tmp_path: Path) -> None:
    found = load_configuration(tmp_path / 'a', tmp_path / 'b')
    assert (found.values, found.mounts) == (FileConfig(), {})


def test_a_named_mount_is_one_of_both_files(tmp_path: Path) -> None:
    """Of two of one name the user's is meant, as a whole."""
    found = both(tmp_path, NAMED + 'read_only = true\n', '[mounts.home]\nmountpoint = "/other"\nfsync = "remote"\n[mounts.b]\nmountpoint = "/b"\n')
    assert found.named('home') == NamedMount(mountpoint='/home/me/ctx', context='home', read_only=True)
    assert found.named('b').mountpoint == found.place('b') == '/b' and found.place('/somewhere') == '/somewhere'
    with pytest.raises(UsageError, match=r'no \[mounts.hom\] in .*user.toml or .*system.toml \(did you mean home\?\)'):
        found.named('hom')


def test_all_keys_of_a_named_mount(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Paths begin with / or ~; whatever an option takes is taken."""
    monkeypatch.setenv('HOME', '/home/me')
    text = ('[mounts.w-1]\ncontext = "proj"\nmountpoint = "~/ctx"\nstore = "s3://b-b"\nstate_dir = "~/s"\npolicy = "~/p.json"\ncreate = true\n'
            'read_only = false\noptions = "allow_other,umask=027"\ncache_size = "5G"\nfsync = "remote"\nconflict = "prefer-local"\n'
            'sync_every = "unmount"\npoll_every = 30\nstore_timeout = "20s"\nlog_level = "debug"\naudit_log = "/a"\n')
    assert both(tmp_path, text).named('w-1') == NamedMount(
        context='proj', mountpoint='/home/me/ctx', store='s3://b-b', state_dir='/home/me/s', policy='/home/me/p.json', create=True,
        options='allow_other,umask=027', cache_size='5G', fsync='remote', conflict='prefer-local', sync_every='unmount', poll_every=30,
        store_timeout='20s', log_level='debug', audit_log='/a')


@pytest.mark.parametrize('text, said', [
    ('[mounts.a]\nmountpont = "/m"', r'system.toml: mounts.a: unknown key mountpont \(did you mean mountpoint\?\)'),
    ('[mount.a]\nmountpoint = "/m"', r'unknown key mount \(did you mean mounts\?\)'),
    ('[mounts.a]\ncontext = "c"', 'mounts.a: .*mountpoint'), ('[mounts.a]\nmountpoint = 5', 'mounts.a: .*mountpoint'),
    ('[mounts.a]\nmountpoint = "m"', 'mounts.a.mountpoint: m: write an absolute path'), ('[mounts.a]\nmountpoint = ""', 'mounts.a.mountpoint: empty'),
    ('[mounts.a]\nmountpoint = "/m"\npolicy = "p.json"', 'mounts.a.policy: p.json: write an absolute path'),
    ('[mounts.a]\nmountpoint = "/m"\nsync_every = "soon"', 'mounts.a.sync_every: '),
    ('[mounts.a]\nmountpoint = "/m"\noptions = "alow_other"', 'allow_other'),
    ('[mounts.a]\nmountpoint = "/m"\nstore = "b"', 'mounts.a.store: '), ('[mounts.a]\nmountpoint = "/m"\ncache_size = "many"', 'mounts.a.cache_size'),
    ('[mounts.a]\nmountpoint = "/m"\nsecret_access_key = "x"', 'mounts.a.secret_access_key: no credentials here'),
    ('[mounts."a b"]\nmountpoint = "/m"', 'a name has letters'), ('[mounts.-a]\nmountpoint = "/m"', 'a name has letters'),
    ('mounts = "a"', r'write a table for each, \[mounts.NAME\]'), ('[mounts]\na = "/m"', r'write a table, \[mounts.a\]'),
])
def test_bad_named_mounts_are_refused(tmp_path: Path, text: str, said: str) -> None:
    """The line names the file, the mount and the key."""
    with pytest.raises(UsageError, match=said) as caught:
        both(tmp_path, system=text)
    assert str(caught.value).startswith(f'{tmp_path}/system.toml: ')

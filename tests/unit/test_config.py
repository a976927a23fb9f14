"""Directories, sizes, URLs and the config file: what is taken, and what is refused with which words."""
from __future__ import annotations

import os
import stat
import threading
from pathlib import Path

import pytest

from ctxfs import config
from ctxfs.config import FileConfig, MountOptions
from ctxfs.config_file import load_config, resolve_store_url
from ctxfs.errors import Denied, UsageError
from ctxfs.storage import stores


def test_home_comes_from_the_password_database_without_HOME():
    """A service without HOME gets the same directories as the user's shell."""
    paths = config.resolve_paths({})
    assert paths.state.is_absolute() and paths.state.parts[-3:] == ('.local', 'state', 'ctxfs')


def test_relative_xdg_variables_are_ignored(tmp_path):
    """The XDG specification says so, and a path relative to anything would be another one after a cd."""
    paths = config.resolve_paths({'HOME': str(tmp_path), 'XDG_STATE_HOME': 'state', 'XDG_CACHE_HOME': str(tmp_path / 'c')})
    assert paths.state == tmp_path / '.local/state/ctxfs'
    assert paths.cache == tmp_path / 'c/ctxfs'


def test_state_dir_takes_the_cache_along(tmp_path):
    """With a state directory of its own, a context's cache lies inside its state."""
    paths = config.resolve_paths({'HOME': str(tmp_path)}, str(tmp_path / 's'))
    state = config.state_dir_of(paths, 's3://bucket', 'SdkCtx-1')
    assert state.parent == tmp_path / 's' and state.name.startswith('SdkCtx-1-')
    assert config.cache_dir_of(paths, 's3://bucket', 'SdkCtx-1') == state / 'cache'


def test_runtime_root_prefers_the_variable(tmp_path):
    """$XDG_RUNTIME_DIR, else a directory that is named after the user."""
    assert config.runtime_root({'XDG_RUNTIME_DIR': str(tmp_path)}) == tmp_path / 'ctxfs'
    assert config.runtime_root({}, uid=54321) == Path('/tmp/ctxfs-54321')


def test_roots_mounts_are_in_one_place(tmp_path):
    """A service of root's, which has no runtime directory, and a shell of root's, whose one goes at logout, see the same mounts."""
    places = {config.runtime_root(env, uid=0) for env in ({}, {'XDG_RUNTIME_DIR': '/run/user/0'})}
    assert places == {Path('/run/ctxfs') if os.access('/run', os.W_OK) else Path('/tmp/ctxfs-0')}
    assert config.runtime_root({'XDG_RUNTIME_DIR': str(tmp_path)}, uid=0) == tmp_path / 'ctxfs'


def test_private_dir_is_private(tmp_path):
    """Made with 0700, what is above it too, whatever the umask is; and brought back to it."""
    before = os.umask(0)
    try:
        made = config.private_dir(tmp_path / 'a/b')
    finally:
        os.umask(before)
    assert {stat.S_IMODE(path.stat().st_mode) for path in (made, made.parent)} == {0o700}
    made.chmod(0o755)
    assert stat.S_IMODE(config.private_dir(made).stat().st_mode) == 0o700


def test_private_dir_refuses_files_and_links(tmp_path):
    """Neither a file nor a symlink that somebody else may have put there is taken for the directory."""
    (tmp_path / 'file').write_text('x')
    (tmp_path / 'link').symlink_to(tmp_path)
    for name in ('file', 'link', 'file/below'):
        with pytest.raises(Denied):
            config.private_dir(tmp_path / name)


def test_private_dir_refuses_a_directory_for_all(tmp_path):
    """/tmp itself is not made ours."""
    (tmp_path / 'all').mkdir()
    (tmp_path / 'all').chmod(0o1777)
    with pytest.raises(Denied, match='shared by many users'):
        config.private_dir(tmp_path / 'all')
    assert stat.S_IMODE((tmp_path / 'all').stat().st_mode) == 0o1777


@pytest.mark.needs_root
def test_private_dir_refuses_another_users_directory(tmp_path):
    """In /tmp another user may be first: his directory is not used."""
    (tmp_path / 'theirs').mkdir()
    os.chown(tmp_path / 'theirs', 12345, 12345)
    with pytest.raises(Denied, match='belongs to user 12345'):
        config.private_dir(tmp_path / 'theirs')


def test_slug_depends_on_what_identifies_the_store():
    """Region and addressing say how to reach a store; the state of a context must survive a change of them."""
    one = config.context_slug('s3://bucket?endpoint=http://h:1&region=a', 'c')
    assert one == config.context_slug('s3://bucket/?region=b&addressing=path&endpoint=http://h:1/', 'c')
    assert one != config.context_slug('s3://bucket?endpoint=http://h:2', 'c')
    assert config.context_slug('file:///d', 'c') == config.context_slug('file:///d/?fsync=no', 'c')
    assert one != config.context_slug('s3://bucket/prefix?endpoint=http://h:1', 'c')


def test_slug_is_one_harmless_component():
    """Whatever the id is."""
    slug = config.context_slug('file:///x', '../../a b\udcff')
    assert '/' not in slug and not slug.startswith('.') and slug.isascii()


def test_host_id_stays_and_is_one_for_all(tmp_path):
    """Many processes at once agree on one id, later ones read it."""
    found: list[str] = []
    threads = [threading.Thread(target=lambda: found.append(config.load_host_id(tmp_path / 'state'))) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 16 and len(set(found)) == 1
    assert [p.name for p in (tmp_path / 'state').iterdir()] == ['host-id']


def test_a_torn_host_id_is_made_again(tmp_path):
    """An empty file, as a power cut may leave it, is no id."""
    (tmp_path / 'host-id').write_text('')
    made = config.load_host_id(tmp_path)
    assert len(made) == 16 and config.load_host_id(tmp_path) == made


@pytest.mark.parametrize('text, size', [('10G', 10 << 30), ('1.5T', 3 << 39), ('500m', 500 << 20), ('4096', 4096), (4096, 4096),
                                        ('10 GiB', 10 << 30), ('10GB', 10**10), ('1KB', 1000), ('7b', 7)])
def test_sizes(text, size):
    """Powers of 1,024, except with the units that mean 1,000."""
    assert config.parse_size(text) == size


@pytest.mark.parametrize('text', ['', 'G', '10X', '-1', '1e9', '10G5', 'ten', '1.', '0x10'])
def test_no_sizes(text):
    """What is no size is refused with an example."""
    with pytest.raises(UsageError, match='10G'):
        config.parse_size(text)


def test_cache_size_default_is_bounded_by_the_disk(tmp_path):
    """Half of what is free at most, also when the directory is not there yet."""
    found = os.statvfs(tmp_path)
    size = config.cache_size_of(None, tmp_path / 'not/yet')
    assert config.MIN_CACHE_SIZE <= size <= 10 << 30 and size <= max(config.MIN_CACHE_SIZE, found.f_blocks * found.f_frsize // 2)


def test_a_cache_that_holds_nothing_is_refused(tmp_path):
    """One block is the least."""
    assert config.cache_size_of('1M', tmp_path) == 1 << 20
    with pytest.raises(UsageError, match='holds nothing'):
        config.cache_size_of('999K', tmp_path)


def test_fuse_options():
    """Every -o is read, in any number of words."""
    found = config.parse_fuse_options(['ro,allow_other', 'nonempty, xattrs,uid=12,gid=34', 'umask=027,noexec,rw,default_permissions'])
    assert (found.read_only, found.allow_other, found.nonempty, found.xattrs) == (True, True, True, True)
    assert (found.uid, found.gid, found.umask, found.kernel_options) == (12, 34, 0o027, ('noexec',))


@pytest.mark.parametrize('word, said', [('alow_other', 'did you mean allow_other'), ('uid=x', 'not a number'), ('umask=9', 'octal'),
                                        ('umask=1777', 'octal'), ('uid', 'unknown'), ('noexec=1', 'did you mean noexec'), ('uid=-1', 'number')])
def test_wrong_fuse_options_are_refused(word, said):
    """An option that would do nothing must not pass."""
    with pytest.raises(UsageError, match=said):
        config.parse_fuse_options([word])


@pytest.mark.parametrize('url, normal', [
    ('file:///a/../b/', 'file:///b'), ('file:///with%20blank', 'file:///with%20blank'), ('file:///with blank%3Fx?fsync=no', 'file:///with%20blank%3Fx?fsync=no'),
    ('s3://bucket', 's3://bucket'), ('s3://bucket/', 's3://bucket'), ('s3://bucket/a/b/', 's3://bucket/a/b'),
    ('s3://bucket?region=x&endpoint=http://127.0.0.1:9000', 's3://bucket?endpoint=http://127.0.0.1:9000&region=x'),
])
def test_store_urls_have_one_spelling(url, normal):
    """The spelling that is kept in records is stable."""
    assert config.normalise_store_url(url) == normal
    assert config.normalise_store_url(normal) == normal


@pytest.mark.parametrize('url, said', [
    ('bucket', 's3://BUCKET'), ('/dir', 'file:///DIRECTORY'), ('http://x/y', 's3://BUCKET'), ('file://dir/x', 'three slashes'),
    ('file:relative', 'three slashes'), ('s3://', 'no bucket name'), ('s3://key:secret@bucket', 'must not carry credentials'),
    ('s3://bucket?x', 'unknown parameter x'),
    ('file:///x?fsyn=no', 'did you mean fsync'), ('s3://bucket?endpont=http://x', 'did you mean endpoint'),
    ('s3://bucket?endpoint=host:1', 'http://HOST'),
    ('s3://bucket?addressing=dns', 'auto, path or virtual'),
])
def test_wrong_store_urls_are_refused(url, said):
    """With what to write instead."""
    with pytest.raises(UsageError, match=said):
        config.normalise_store_url(url)


@pytest.mark.parametrize('url', [
    's3://AKIA:{}@bucket', 's3://{}@bucket', 's3://AKIA:{}/more@bucket/prefix', 'https://AKIA:{}@host/bucket', 'file://user:{}@/dir', 'ftp://x:{}@y',
    's3://bucket?endpoint=http://AKIA:{}@host', 's3://bucket?endpoint=http%3A%2F%2FAKIA:{}%40host', 's3://bucket?secret_access_key={}',
    's3://bucket?X-Amz-Signature={}', 's3://bucket?region=x&session_token={}', '//AKIA:{}@host:port:x/y'])
@pytest.mark.parametrize('refuse', [config.normalise_store_url, stores.open_store])
def test_credentials_in_a_url_are_refused_and_not_repeated(url, refuse):
    """Whatever else is wrong with it."""
    with pytest.raises(UsageError, match='must not carry credentials') as caught:
        refuse(url.format('5ecret+Key'))
    assert '5ecret' not in str(caught.value)


@pytest.mark.parametrize('url', ['s3://bucket/a@b?endpoint=http://127.0.0.1:9000', 'file:///home/me@work/store', 's3://bucket/x:y@z'])
def test_an_at_sign_elsewhere_is_none(url):
    config.normalise_store_url(url)


def test_store_resolution_order(tmp_path):
    """Command line, environment, config file, embedded default."""
    paths = config.resolve_paths({'HOME': str(tmp_path)})
    file = FileConfig(store='s3://from-file')
    env = {'CTXFS_STORE': 's3://from-env'}
    assert resolve_store_url('s3://given', env, file, paths.data) == 's3://given'
    assert resolve_store_url(None, env, file, paths.data) == 's3://from-env'
    assert resolve_store_url(None, {}, file, paths.data) == 's3://from-file'
    assert resolve_store_url(None, {}, FileConfig(), paths.data) == f'file://{tmp_path}/.local/share/ctxfs/store'


def test_config_file(tmp_path):
    """All keys are read; no file is no error."""
    file = tmp_path / 'config.toml'
    assert load_config(file) == FileConfig()
    file.write_text('store = "s3://b-b"\nstate_dir = "~/s"\ncache_size = "5G"\nfsync = "remote"\nlog_level = "debug"\n')
    assert load_config(file) == FileConfig(store='s3://b-b', state_dir='~/s', cache_size='5G', fsync='remote', log_level='debug')


@pytest.mark.parametrize('text, said', [
    ('cache-size = 1', 'did you mean cache_size'), ('secret_access_key = "x"', 'no credentials here'), ('store = 5', 'store'),
    ('fsync = "maybe"', 'fsync'), ('store = ', 'config.toml'), ('\udcff', 'config.toml'),
])
def test_wrong_config_files_are_refused(tmp_path, text, said):
    """The line names the file, and the key that was probably meant."""
    file = tmp_path / 'config.toml'
    file.write_bytes(text.encode('utf-8', 'surrogateescape'))
    with pytest.raises(UsageError, match=said):
        load_config(file)


def test_mount_options_travel_as_json():
    """What the daemon reads is what the command line meant; anything else is refused."""
    options = MountOptions(context_id='i', context_name='ü', mountpoint='/m', store_url='s3://b', state_dir='/s', cache_dir='/c',
                           runtime_dir='/r', log_file='/l', host_id='h', cache_size=1, kernel_options=('noexec',))
    assert MountOptions.from_json(options.to_json()) == options
    with pytest.raises(UsageError):
        MountOptions.from_json(b'{"context_id": 5}')

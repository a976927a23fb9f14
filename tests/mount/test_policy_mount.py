"""Policies as the SDK emits them, on real mounts: which one counts, what is kept with the context, and that a refusal makes nothing.

What white lists, periods and lifecycles do in detail has tests of its own; here three policies are mounted as a user of the SDK would.
"""
from __future__ import annotations

import importlib.metadata
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests import leftovers
from tests.crash.watch import eventually
from tests.model.hosts import IS_DOUBLE
from tests.mount.sites import MountingSite, site_maker
from tests.sdk import load_source

pytestmark = [pytest.mark.skipif(IS_DOUBLE, reason='a directory has no policy'), pytest.mark.timeout(150)]

SDK = load_source(Path(str(importlib.metadata.distribution('wuying-agentbay-sdk').locate_file('agentbay/_common/params/context_sync.py'))))
#: json.dumps(SyncPolicy(upload_policy=UploadPolicy(period=7)).__dict__()) of 0.5.2
OLD = ('{"uploadPolicy": {"autoUpload": true, "uploadStrategy": "UploadBeforeResourceRelease", "period": 7}, '
       '"downloadPolicy": {"autoDownload": true, "downloadStrategy": "DownloadAsync"}, "deletePolicy": {"syncLocalFile": true}, '
       '"bwList": {"whiteLists": [{"path": "", "excludePaths": []}]}}')


class Desk:
    """One host with a mount point, and a directory for policy files."""

    def __init__(self, site: MountingSite, work: Path) -> None:
        self.site, self.work = site, work
        self.host: Any = site.host()
        self.at = site.mount_point()

    def file(self, policy: object, name: str = 'policy.json') -> str:
        path = self.work / name
        path.write_text(policy if isinstance(policy, str) else json.dumps(policy))
        return str(path)

    def mount(self, *options: str, create: bool = True, env: dict[str, str] | None = None, status: int = 0) -> str:
        """What it printed to stderr."""
        done = self.host.cli('mount', 'c', self.at, *(['--create'] if create else []), *options, check=False, env=env)
        assert done.returncode == status, done.stderr
        assert bool(leftovers.mounts_below(self.at)) == (status == 0)
        return done.stderr

    def unmount(self, *, status: int = 0) -> str:
        done = self.host.cli('umount', self.at, check=False)
        assert done.returncode == status, done.stderr
        return done.stderr

    def shown(self, *reference: str) -> dict[str, Any]:
        return self.host.json('policy', 'show', *(reference or (str(self.at),)))

    def files_in_bucket(self) -> list[str]:
        prefix = f'contexts/{self.site.context_id("c")}/'
        found = (key.removeprefix(prefix) for key in self.site.bucket().keys(prefix))
        return sorted(key for key in found if not key.startswith('.ctxfs/') and not key.endswith('/'))

    def stored(self) -> dict[str, Any]:
        return json.loads(self.site.bucket().body(f'contexts/{self.site.context_id("c")}/.ctxfs/policy'))


@pytest.fixture
def desk(request: pytest.FixtureRequest, tmp_path: Path) -> Desk:
    (tmp_path / 'site').mkdir()
    return Desk(site_maker('file', request)(tmp_path / 'site'), tmp_path)


# --- policies of the SDK -----------------------------------------------------------------------------------------------------------

def test_a_white_list_of_the_sdk(desk: Desk) -> None:
    """Only what it names reaches the bucket, minus its excludes; the policy is kept, and the next mount has it without being told."""
    made = SDK.SyncPolicy(bw_list=SDK.BWList([SDK.WhiteList('/src', ['/node_modules']), SDK.WhiteList(r'doc-\d+', is_path_regex=True)]))
    assert desk.mount('--policy', desk.file(json.dumps(made.__dict__())), '--sync-every', 'unmount') == ''
    for name in ('src/a', 'src/node_modules/b', 'doc-12/c', 'doc-x/d', 'e'):
        (desk.at / name).parent.mkdir(exist_ok=True, parents=True)
        (desk.at / name).write_text(name)
    desk.unmount()
    assert desk.files_in_bucket() == ['doc-12/c', 'src/a']
    assert desk.stored() == made.__dict__()
    desk.mount(create=False)
    shown = desk.shown()
    assert shown['source'] == 'context' and shown['policy'] == made.__dict__()
    assert shown['sentences'][1] == '2 paths are synced: /src (without /src/node_modules), what matches doc-\\d+; everything else stays on this host'
    assert (desk.at / 'e').read_text() == 'e'
    desk.unmount()


def test_a_manual_policy_of_the_sdk(desk: Desk) -> None:
    """Nothing is uploaded but by ctxfs sync, and local deletes keep the object."""
    made = SDK.SyncPolicy(upload_policy=SDK.UploadPolicy(auto_upload=False), delete_policy=SDK.DeletePolicy(sync_local_file=False),
                          download_policy=SDK.DownloadPolicy(auto_download=False))
    desk.mount('--policy', desk.file(json.dumps(made.__dict__())))
    (desk.at / 'a').write_text('a')
    desk.host.cli('sync', desk.at)
    assert desk.files_in_bucket() == ['a']
    (desk.at / 'a').unlink()
    desk.host.cli('sync', desk.at)
    assert desk.files_in_bucket() == ['a']
    assert desk.shown()['sentences'][0] == 'only ctxfs sync uploads; on unmount changes stay on this host'
    (desk.at / 'b').write_text('b')
    assert 'autoUpload is off' in desk.unmount(status=1)
    assert desk.files_in_bucket() == ['a']


def test_a_policy_of_an_old_sdk(desk: Desk) -> None:
    """Its period is minutes, and the mount says so; --sync-every wins for one mount."""
    desk.mount('--policy', desk.file(OLD), '--sync-every', 'unmount')
    assert desk.shown()['period'] is None
    (desk.at / 'a').write_text('a')
    desk.unmount()
    desk.mount()
    shown = desk.shown()
    assert (shown['period'], shown['policy']['uploadPolicy']['period']) == (420.0, '7m')
    assert shown['sentences'][0].startswith('uploads 7 minutes after the oldest change, and on unmount')
    assert (desk.at / 'a').read_text() == 'a'
    desk.unmount()


# --- which one counts --------------------------------------------------------------------------------------------------------------

def test_another_policy_than_the_stored_one_is_used_and_said(desk: Desk) -> None:
    """One line on stderr, status 0; `ctxfs policy set` is what changes the context's."""
    desk.host.cli('context', 'create', 'c')
    first, second = desk.file({'uploadPolicy': {'period': '7m'}}), desk.file({'uploadPolicy': {'period': '8m'}}, 'second.json')
    desk.host.cli('policy', 'set', 'c', first)
    assert desk.mount('--policy', second) == (
        f'ctxfs: this mount uses {second}; context c has another policy stored with it, which ctxfs policy set c {second} would replace\n')
    assert desk.shown()['source'] == second and desk.shown()['period'] == 480.0
    assert desk.stored()['uploadPolicy']['period'] == '7m'
    desk.host.cli('policy', 'set', desk.at, second)
    desk.unmount()
    assert desk.stored()['uploadPolicy']['period'] == '8m'
    assert desk.shown('c')['period'] == 480.0


def test_the_policy_and_the_clock_of_the_config_file(desk: Desk) -> None:
    """For contexts without a policy of their own, and policies without a period."""
    (desk.work / 'config/ctxfs').mkdir(parents=True)
    (desk.work / 'config/ctxfs/config.toml').write_text('sync_every = "5m"\npoll_every = 5\n[policy.deletePolicy]\nsyncLocalFile = false\n')
    env = {'XDG_CONFIG_HOME': str(desk.work / 'config')}
    desk.mount(env=env)
    shown = desk.shown()
    assert (shown['source'], shown['period'], shown['policy']['deletePolicy']) == ('config', 300.0, {'syncLocalFile': False})
    desk.unmount()
    desk.mount('--policy', desk.file({'uploadPolicy': {'period': 9}}), env=env)
    assert desk.shown()['period'] == 540.0
    desk.unmount()


def test_an_edited_policy_file_counts_at_once_or_is_refused(desk: Desk) -> None:
    """For the mount that was made with it; the context keeps the policy that it had."""
    file = desk.file({'uploadPolicy': {'period': '7m'}})
    desk.mount('--policy', file)
    desk.file({'uploadPolicy': {'period': '8m'}, 'deletePolicy': {'syncLocalFile': False}})
    eventually('the new policy', lambda: desk.shown()['period'] == 480.0)
    desk.file({'uploadPolicy': {'uploadMode': 'Archive'}})
    log = Path(desk.host.status(desk.at)['stateDir'], 'ctxfs.log')
    eventually('the refusal', lambda: 'the changed policy is refused, the old one stays' in log.read_text())
    assert desk.shown()['policy']['deletePolicy'] == {'syncLocalFile': False}
    desk.unmount()
    assert desk.stored()['uploadPolicy']['period'] == '7m'


def test_a_preset_over_a_policy_file(desk: Desk) -> None:
    """Both count, are kept together, and stay together when FILE is edited; named by the config file they are shown also without a mount."""
    file = desk.file({'uploadPolicy': {'period': '7m'}})
    (desk.work / 'config/ctxfs').mkdir(parents=True)
    (desk.work / 'config/ctxfs/config.toml').write_text(f'[mounts.chrome]\ncontext = "c"\nmountpoint = "{desk.at}"\npolicy = "{file}"\n'
                                                        'browser = "minimal"\n')
    env = {'XDG_CONFIG_HOME': str(desk.work / 'config')}
    paths = ['/Local State', '/Default/Cookies', '/Default/Cookies-journal']

    def shown() -> tuple[float, list[str]]:
        answer = json.loads(desk.host.cli('policy', 'show', 'chrome', '--json', env=env).stdout)
        return answer['period'], [entry['path'] for entry in answer['policy'].get('bwList', {}).get('whiteLists', [])]

    assert shown() == (420.0, paths)
    desk.mount('--policy', file, '--browser', 'minimal')
    (desk.at / 'Default').mkdir()
    for name in ('Local State', 'Default/Cookies', 'Default/Cache'):
        (desk.at / name).write_text(name)
    desk.file({'uploadPolicy': {'period': '8m'}})
    eventually('the new policy', lambda: shown()[0] == 480.0)
    assert shown() == (480.0, paths)
    assert json.loads(desk.host.cli('conflicts', 'chrome', 'list', '--json', env=env).stdout) == {'conflicts': []}
    desk.unmount()
    assert desk.files_in_bucket() == ['Default/Cookies', 'Local State']
    assert [entry['path'] for entry in desk.stored()['bwList']['whiteLists']] == paths
    assert '--browser standard; context c has another policy stored' in desk.mount('--browser', 'standard')
    desk.unmount()


# --- refusals ----------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('policy, options, said', [
    ('{"bwlist": {}}', (), "Unknown property in SyncPolicy: 'bwlist'"),
    ('{"bwList": {"whiteLists": [{"path": "{at}/src"}]}}', (), 'write "/src"'),
    ('{"uploadPolicy": {"autoUpload": false}}', ('--sync-every', '5'), '--sync-every has no effect'),
    ('{"uploadPolicy": {"autoUpload": false}}', ('--fsync', 'remote'), 'use --fsync local'),
    ('{"downloadPolicy": {"autoDownload": false}}', ('--wait-download',), 'leave out --wait-download, or write true'),
    ('{"downloadPolicy": {"autoDownload": false}}', ('--poll-every', '5'), 'leave out --poll-every, or write true'),
    ('{"bwList": {"whiteLists": [{"path": "/src"}]}}', ('--browser', 'minimal'), 'leave out --browser, or bwList in the policy'),
    ('{}', ('--sync-every', 'now'), '--sync-every now: not a time'),
    ('{}', ('--poll-every', '0'), '--poll-every 0: the least is 1s'),
    ('{}', ('--sync-every', '5', '--read-only'), 'no effect on a read-only mount'),
    ('{}', ('--wait-download', '--foreground'), 'leave out --foreground'),
])
def test_a_refused_mount_makes_nothing(desk: Desk, policy: str, options: tuple[str, ...], said: str) -> None:
    """Status 2, one line; no context, no state of it, no process."""
    stderr = desk.mount('--policy', desk.file(policy.replace('{at}', str(desk.at))), *options, status=2)
    assert said in stderr and stderr.count('\n') == 1
    assert desk.site.bucket().keys('') == []
    assert not desk.host.state_dir.exists()


def test_a_mount_point_behind_a_symlink_is_known_by_both_names(desk: Desk) -> None:
    """The policy may have the name that the user typed."""
    link = desk.work / 'link'
    link.symlink_to(desk.at)
    file = desk.file({'bwList': {'whiteLists': [{'path': f'{link}/src'}]}})
    done = desk.host.cli('mount', 'c', link, '--create', '--policy', file, check=False)
    assert done.returncode == 2 and 'write "/src"' in done.stderr


def test_a_config_policy_that_this_mount_cannot_have_makes_nothing(desk: Desk) -> None:
    """Not the context that --create would have made either."""
    (desk.work / 'config/ctxfs').mkdir(parents=True)
    (desk.work / 'config/ctxfs/config.toml').write_text(f'[[policy.bwList.whiteLists]]\npath = "{desk.at}/src"\n')
    assert 'write "/src"' in desk.mount(env={'XDG_CONFIG_HOME': str(desk.work / 'config')}, status=2)
    assert desk.site.bucket().keys('') == [] and not desk.host.state_dir.exists()


def test_a_stored_policy_that_cannot_be_read_is_refused_with_the_remedy(desk: Desk) -> None:
    """And the remedy works."""
    desk.host.cli('context', 'create', 'c')
    desk.site.bucket().put(f'contexts/{desk.site.context_id("c")}/.ctxfs/policy', b'{"uploadPolicy": ')
    stderr = desk.mount(status=2)
    assert 'the policy stored with context c: not JSON' in stderr and 'ctxfs policy set c FILE' in stderr
    desk.host.cli('policy', 'set', 'c', desk.file({}))
    desk.mount()
    desk.unmount()


# --- the commands ------------------------------------------------------------------------------------------------------------------

def run(desk: Desk, *words: str) -> subprocess.CompletedProcess[str]:
    return desk.host.cli('policy', *words, check=False)


def test_policy_commands_name_what_they_are_asked_for(desk: Desk) -> None:
    """A file, a context, a mount point; what is none of them is refused with what there is."""
    file = desk.file({'uploadPolicy': {'period': '7m'}})
    desk.host.cli('context', 'create', 'proj')
    assert run(desk, 'show').stdout.splitlines()[0] == 'the default policy'
    assert run(desk, 'show', 'proj').stdout.splitlines()[0] == 'the default policy'
    assert run(desk, 'show', file).stdout.splitlines()[0] == file
    assert (run(desk, 'check', file).returncode, run(desk, 'check', file).stdout) == (0, '')
    assert json.loads(run(desk, 'check', file, '--json').stdout)['period'] == 420.0
    for words, status, said in ((('show', 'nope'), 1, 'no context nope'), (('show', './nope.json'), 1, 'no such file'),
                                (('check', 'nope.json'), 2, 'cannot read the policy nope.json'), (('set', 'proje', file), 1, 'did you mean proj'),
                                (('set', 'proj', desk.file('{', 'bad.json')), 2, 'not JSON'),
                                (('check', desk.file({'uploadPolicy': {'uploadMode': 'Zip'}}, 'a.json')), 2, 'Valid values are: File, Archive')):
        done = run(desk, *words)
        assert done.returncode == status and said in done.stderr and done.stderr.count('\n') == 1, (words, done.stderr)


def test_wait_download_returns_with_everything_in_the_cache(desk: Desk) -> None:
    """What the mount then reads needs no store."""
    desk.mount('--sync-every', 'unmount')
    for number in range(20):
        (desk.at / f'f{number}').write_bytes(bytes([number]) * 10_000)
    desk.unmount()
    desk.host = desk.site.host()
    desk.mount('--wait-download', create=False)
    tasks = [task for task in desk.host.status(desk.at)['tasks'] if task['taskType'] == 'download']
    assert [task['status'] for task in tasks] == ['Success'] and 20 <= tasks[0]['filesDone'] == tasks[0]['filesTotal']
    assert all((desk.at / f'f{number}').read_bytes() == bytes([number]) * 10_000 for number in range(20))
    desk.unmount()

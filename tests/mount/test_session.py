"""Sessions: several contexts mounted together for the life of a block, in this process's own environment as a program has it."""
from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import ctxfs
from ctxfs import AgentBay, ContextSync, SyncPolicy, UploadPolicy
from ctxfs.errors import CtxfsError
from tests import leftovers
from tests.model.hosts import IS_DOUBLE

pytestmark = [pytest.mark.skipif(IS_DOUBLE, reason='a directory has no sessions'), pytest.mark.timeout(200)]
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, variable in (('home', 'HOME'), ('run', 'XDG_RUNTIME_DIR')):
        (tmp_path / name).mkdir(mode=0o700)
        monkeypatch.setenv(variable, str(tmp_path / name))
    (tmp_path / 'store').mkdir()
    monkeypatch.setenv('CTXFS_STORE', f'file://{tmp_path}/store')
    monkeypatch.setenv('PYTHONPATH', str(ROOT))
    return tmp_path / 'store'


def test_contexts_are_mounted_for_the_life_of_a_block(store: Path, tmp_path: Path) -> None:
    """Two of them, one with a policy, at directories that come and go with the block; afterwards everything is in the bucket, also where the block
    ended by an exception, and `info` and `sync` are about them alone."""
    contexts = ctxfs.ContextService()
    first, second = (contexts.create(name).context for name in ('first', 'second'))
    assert first is not None and second is not None
    manual = SyncPolicy(upload_policy=UploadPolicy(auto_upload=False))
    at, other = tmp_path / 'made/one', tmp_path / 'two'
    with ctxfs.session(ContextSync.new(first.id, str(at)), ContextSync.new(second.id, str(other), manual), sync_context=False) as s:
        assert leftovers.mounts_below(at) and leftovers.mounts_below(other)
        (at / 'a').write_text('1')
        (other / 'b').write_text('2')
        result = s.context.sync()
        assert result.success, result.error_message
        assert (store / f'contexts/{first.id}/a').read_text() == '1' and (store / f'contexts/{second.id}/b').read_text() == '2'
        assert {task.context_id for task in s.context.info().context_status_data} == {first.id, second.id}
        assert not s.context.sync('SdkCtx-00000000000000000', str(at)).success
    assert not (tmp_path / 'made').exists() and not other.exists()
    subprocess.run([sys.executable, '-m', 'ctxfs', 'wait'], check=True, cwd=tmp_path)
    with pytest.raises(ZeroDivisionError):
        with ctxfs.session(ContextSync.new(first.id, str(at))):
            (at / 'c').write_text('3')
            1 / 0  # noqa: B018
    assert not leftovers.mounts_below(tmp_path) and (store / f'contexts/{first.id}/c').read_text() == '3'


def test_a_session_that_cannot_have_all_has_none(store: Path, tmp_path: Path) -> None:
    """What was mounted is unmounted, what was made is gone, and the error is that of the mount."""
    context = ctxfs.ContextService().create('first').context
    assert context is not None
    with pytest.raises(CtxfsError, match='no context nowhere'):
        with ctxfs.session(ContextSync.new(context.id, str(tmp_path / 'one')), ContextSync.new('nowhere', str(tmp_path / 'two'))):
            pytest.fail('it was entered')
    assert not leftovers.mounts_below(tmp_path) and not (tmp_path / 'one').exists() and not (tmp_path / 'two').exists()


GUIDE = '''
from ctxfs import AgentBay, ContextSync, CreateSessionParams
agent_bay = AgentBay()

context = agent_bay.context.get("my-storage", create=True).context
context_sync = ContextSync.new(context.id, "{place}")

session2 = agent_bay.create(CreateSessionParams(context_syncs=[context_sync])).session
session2.file_system.write_file("{place}/data.txt", "Important data")
agent_bay.delete(session2, sync_context=True)  # Ensure data syncs before continuing

# Later, in a new session, you can access the same data:
session3 = agent_bay.create(CreateSessionParams(context_syncs=[context_sync])).session
content = session3.file_system.read_file("{place}/data.txt")
print(content.content)  # Output: "Important data"
agent_bay.delete(session3)
'''


def test_the_guides_own_program_runs(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With another import and a path of the test's own; what cannot be mounted is a result that says so."""
    exec(textwrap.dedent(GUIDE.format(place=tmp_path / 'persistent')), {})
    assert capsys.readouterr().out == 'Important data\n'
    refused = AgentBay().create(ctxfs.CreateSessionParams(context_syncs=[ContextSync.new('nowhere', str(tmp_path / 'x'))]))
    assert not refused.success and 'no context nowhere' in refused.error_message and refused.session is None


def test_a_session_under_asyncio_and_one_that_ends_with_its_process(store: Path, tmp_path: Path) -> None:
    """`async with` mounts and unmounts beside a running loop; one that nobody closes ends with the process."""
    context = ctxfs.ContextService().create('c').context
    assert context is not None

    async def main() -> None:
        async with ctxfs.session(ContextSync.new(context.id, str(tmp_path / 'at'))) as s:
            (tmp_path / 'at/a').write_text('1')
            assert (await s.context.sync()).success
    asyncio.run(main())
    program = f'import ctxfs\nctxfs.session(ctxfs.ContextSync.new("{context.id}", "{tmp_path}/at")).open()\nopen("{tmp_path}/at/b", "w").write("2")\n'
    subprocess.run([sys.executable, '-c', program], check=True, env=dict(os.environ))
    assert not leftovers.mounts_below(tmp_path)
    assert {name.name for name in (store / f'contexts/{context.id}').iterdir()} >= {'a', 'b'}

"""What becomes of a file that two hosts changed, under each policy, and what is no conflict; replayed without a mount.

Owns the replays: the store is a real directory, another host is whoever writes into it. Names are conflict_names.py's, the same with two
whole hosts is tests/model/pair.py's.
"""
from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest

from ctxfs.core.filesystem import Change
from ctxfs.errors import RemoteUnavailable
from ctxfs.records import ROOT_INO, IndexRecord
from ctxfs.storage.gating import HELD
from ctxfs.sync.protocol import Copy, Operation, PutBytes, PutFile, WriteSegment
from ctxfs.sync.worker_ops_put import _version
from tests.fakes.memory_store import MemoryStore
from tests.unit.rig import ME
from tests.unit.test_policy_regressions import ATTRS, Play, Site, linked, play
from tests.unit.test_sync_regressions import PREFIX

__all__ = ['play']

COPY = re.compile(r'(.+)\.conflict-[A-Za-z0-9-]+-\d{8}T\d{6}Z(-\d+)?(\.[a-z.]+)?')


def copies(content: dict[str, bytes]) -> dict[str, bytes]:
    """By the name that they were made of, without its ending."""
    return {match[1]: body for key, body in content.items() if (match := COPY.fullmatch(key))}


def prefer(site: Site, preference: Any) -> None:
    site.asides.preference = preference


async def edit(site: Site, path: str, body: bytes) -> None:
    fh = await site.fs.open(site.at(path).ino, os.O_WRONLY | os.O_TRUNC)
    await site.fs.write(fh, 0, body)
    await site.fs.release(fh)


async def disagree(site: Site, path: str = 'f.txt', ours: bytes = b'ours', theirs: bytes = b'theirs') -> None:
    """Both hosts have seen a first version, and each has written another; theirs is published."""
    site.theirs(path, b'first')
    await site.look()
    await edit(site, path, ours)
    site.theirs(path, theirs)


async def tree(site: Site) -> dict[str, bytes]:
    names = [(site.db.dir_key(parent) + os.fsdecode(name), site.db.inode(ino)) for parent, name, ino in site.db.rows('SELECT * FROM dentry')]
    return {path: bytes(await site.read(path)) for path, inode in names if inode.is_regular}


def rows(site: Site) -> list[tuple[Any, ...]]:
    return site.db.rows('SELECT original, holds FROM conflict c WHERE EXISTS (SELECT 1 FROM dentry d WHERE d.ino = c.ino)')


# --- the three policies -----------------------------------------------------------------------------------------------------------

def test_keep_both_leaves_the_name_to_the_published_version(play: Play) -> None:
    """Ours goes on beside it, and is uploaded; here it looks as in the bucket."""
    async def scenario(site: Site) -> None:
        await disagree(site)
        await site.flush()
        assert site.content()['f.txt'] == b'theirs' and copies(site.content()) == {'f': b'ours'}
        assert await tree(site) == site.content() and rows(site) == [('f.txt', 0)]
    play(scenario)


def test_prefer_local_keeps_the_published_version_beside_ours(play: Play) -> None:
    """It is copied in the bucket, on condition of its etag, and only then replaced, on condition of the same."""
    async def scenario(site: Site) -> None:
        prefer(site, 'prefer-local')
        await disagree(site)
        await site.flush()
        assert site.content()['f.txt'] == b'ours' and copies(site.content()) == {'f': b'theirs'}
        assert await tree(site) == site.content() and rows(site) == [('f.txt', 1)]
        made, = [op for op in site.asked if isinstance(op, Copy)]
        put = [op for op in site.asked if isinstance(op, PutFile)][-1]
        assert made.source_etag == put.condition.etag and site.asked.index(made) < site.asked.index(put)
    play(scenario)


def test_prefer_local_loses_nothing_when_the_published_version_changes_once_more(play: Play) -> None:
    """Between our look and the copy of it, and between the copy and our upload: each of their versions is kept."""
    async def scenario(site: Site) -> None:
        prefer(site, 'prefer-local')
        await disagree(site)
        news = [b'once more', b'and again']

        async def meanwhile(operation: Operation[Any]) -> None:
            is_copied = any(isinstance(op, Copy) for op in site.asked[:-1])
            if len(news) == (2 if isinstance(operation, Copy) else 1 if isinstance(operation, PutFile) and is_copied else -1):
                site.theirs('f.txt', news.pop(0))

        site.before = meanwhile
        await site.flush()
        assert not news
        assert site.content()['f.txt'] == b'ours'
        assert {b'once more', b'and again'} <= set(site.content().values())
        assert await tree(site) == site.content()
    play(scenario)


def test_prefer_local_survives_a_crash_at_every_step(play: Play, tmp_path: Path) -> None:
    """Killed before any operation of the flush: in the end both versions are there, each once."""
    async def scenario(site: Site) -> None:
        prefer(site, 'prefer-local')
        for number in range(30):
            path = f'f{number}.txt'
            await disagree(site, path)
            left = number

            async def die(operation: Operation[Any]) -> None:
                nonlocal left
                left -= 1
                if left < 0:
                    raise RemoteUnavailable('killed')

            site.before = die
            is_done = (await site.engine.flush(retry_seconds=0)).ok
            site.before = None
            await site.restart()
            prefer(site, 'prefer-local')
            await site.flush()
            found = {key: body for key, body in site.content().items() if key.startswith(f'f{number}.')}
            assert found.pop(path) == b'ours' and copies(found) == {f'f{number}': b'theirs'}, number
            assert await tree(site) == site.content()
            if is_done:
                break
        assert is_done
    play(scenario)


def test_prefer_remote_keeps_ours_on_this_host(play: Play) -> None:
    """Under a name of its own, across restarts, and not in the bucket; renamed by the user it is a file like any other."""
    async def scenario(site: Site) -> None:
        prefer(site, 'prefer-remote')
        await disagree(site)
        await site.flush()
        assert site.content() == {'f.txt': b'theirs'} and copies(await tree(site)) == {'f': b'ours'}
        await site.restart()
        prefer(site, 'prefer-remote')
        await site.flush()
        copy, = [path for path in await tree(site) if path != 'f.txt']
        assert site.at(copy).local == HELD and site.content() == {'f.txt': b'theirs'} and rows(site) == [('f.txt', 0)]
        await edit(site, copy, b'ours, edited')
        await site.flush()
        assert site.content() == {'f.txt': b'theirs'}
        await site.move(copy, 'mine.txt')
        await site.flush()
        assert site.content() == {'f.txt': b'theirs', 'mine.txt': b'ours, edited'} and rows(site) == []
    play(scenario)


def test_what_is_held_stays_held_when_its_directory_moves(play: Play) -> None:
    """A renamed directory is uploaded under its new name, and what the conflict was decided against is not."""
    async def scenario(site: Site) -> None:
        prefer(site, 'prefer-remote')
        await disagree(site, 'd/f')
        await site.flush()
        await site.move('d', 'e')
        await site.flush()
        assert site.content() == {'e/f': b'theirs'}
        assert sorted((await tree(site)).values()) == [b'ours', b'theirs']
    play(scenario)


def test_prefer_remote_uploads_what_the_bucket_has_under_another_name(play: Play) -> None:
    """A file that was only renamed over theirs: held here, it would be in less places than before."""
    async def scenario(site: Site) -> None:
        prefer(site, 'prefer-remote')
        site.theirs('g', b'moved')
        site.theirs('f', b'first')
        await site.look()
        await site.move('g', 'f')
        site.theirs('f', b'theirs')
        await site.flush()
        assert site.content()['f'] == b'theirs' and copies(site.content()) == {'f': b'moved'}
    play(scenario)


@pytest.mark.parametrize('preference', ['keep-both', 'prefer-local', 'prefer-remote'])
def test_two_new_files_of_one_name(play: Play, preference: str) -> None:
    """Neither host has seen the other's: both are kept."""
    async def scenario(site: Site) -> None:
        prefer(site, preference)
        await site.save(b'f', b'ours')
        site.theirs('f', b'theirs')
        await site.flush()
        assert sorted((await tree(site)).values()) == [b'ours', b'theirs']
        assert site.content()['f'] == (b'ours' if preference == 'prefer-local' else b'theirs')
    play(scenario)


@pytest.mark.parametrize('preference', ['keep-both', 'prefer-local', 'prefer-remote'])
def test_symlinks(play: Play, preference: str) -> None:
    """A link made here against a file there, and a file here against a link there."""
    async def scenario(site: Site) -> None:
        prefer(site, preference)
        await site.fs.make(ROOT_INO, b'a', mode=0o120777, caller=ME, target=b'->ours')
        site.theirs('a', b'theirs')
        await site.save(b'b', b'ours')
        site.workers.context.store.put(PREFIX + 'b', b'->theirs', metadata={'mode': str(0o120777), 'uid': '0', 'gid': '0'})
        await site.flush()
        named = {path: site.fs.readlink(site.at(path).ino) for path, in
                 [(os.fsdecode(name),) for name, ino in site.db.rows('SELECT name, ino FROM dentry') if site.db.inode(ino).is_symlink]}
        assert sorted(named.values()) == [b'->ours', b'->theirs']
        assert ('a' in named) == (preference == 'prefer-local') and ('b' in named) == (preference != 'prefer-local')
        if preference != 'prefer-remote':
            assert sorted(site.content().values()) == [b'->ours', b'->theirs', b'ours', b'theirs']
    play(scenario)


@pytest.mark.parametrize('preference', ['keep-both', 'prefer-local', 'prefer-remote'])
def test_hard_links(play: Play, preference: str) -> None:
    """One of two names of our file was changed there: the other name goes on with ours, and theirs has a name."""
    async def scenario(site: Site) -> None:
        prefer(site, preference)
        linked(site, 'g', a=site.theirs('a', b'first'), b=site.theirs('b', b'first'))
        await site.look()
        await edit(site, 'a', b'ours')
        site.theirs('a', b'theirs')
        await site.flush()
        assert await site.read('b') == b'ours' == site.content()['b']
        assert site.content()['a'] == (b'ours' if preference == 'prefer-local' else b'theirs')
        assert b'theirs' in site.content().values() and await tree(site) == site.content()
    play(scenario)


def test_a_name_that_left_a_group_of_links_is_not_taken_for_one_of_it_any_more(play: Play) -> None:
    """Another host moved a name of our linked file while we rewrote it, to the same length: the moved name has the old content."""
    async def scenario(site: Site) -> None:
        linked(site, 'g', a=site.theirs('a', b'old'), b=site.theirs('b', b'old'))
        await site.look()
        await edit(site, 'a', b'new')
        await site.flush()
        linked(site, 'g', c=site.theirs('c', b'old'))
        await site.look()
        assert (await site.read('a'), await site.read('b'), await site.read('c')) == (b'new', b'new', b'old')
        await site.look()
        assert site.at('a') is site.at('b') is not site.at('c')
    play(scenario)


# --- directories ------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('preference', ['keep-both', 'prefer-local', 'prefer-remote'])
def test_a_new_file_makes_way_for_a_published_directory(play: Play, preference: str) -> None:
    """Whatever the policy: a published directory is not moved."""
    async def scenario(site: Site) -> None:
        prefer(site, preference)
        await site.save(b'a', b'ours')
        site.theirs('a/b', b'theirs')
        await site.look()
        await site.flush()
        assert await site.read('a/b') == b'theirs' and copies(await tree(site)) == {'a': b'ours'}
        assert copies(site.content()) == ({} if preference == 'prefer-remote' else {'a': b'ours'})
        assert site.content()['a/b'] == b'theirs' and rows(site) == [('a', 0)] and not site.journal.unmountable(9)
    play(scenario)


def test_an_uploaded_file_makes_way_for_a_directory_that_was_published_meanwhile(play: Play) -> None:
    """Neither upload was refused: the host that wrote the file gives it another name, and others see both."""
    async def scenario(site: Site) -> None:
        await site.save(b'a', b'ours')
        await site.flush()
        site.theirs('a/b', b'theirs')
        await site.look()
        await site.flush()
        assert copies(site.content()) == {'a': b'ours'} and site.content()['a/b'] == b'theirs' and 'a' not in site.content()
        assert await tree(site) == site.content()
    play(scenario)


def test_somebody_elses_file_beside_a_directory_is_left_alone(play: Play) -> None:
    """A tool that keeps `a` and `a/b` finds both as they were."""
    async def scenario(site: Site) -> None:
        site.theirs('a', b'a tool\'s')
        site.theirs('a/b', b'too')
        await site.look()
        await site.flush()
        assert site.content() == {'a': b'a tool\'s', 'a/b': b'too'} and [key for key, _ in site.journal.unmountable(9)] == ['a']
    play(scenario)


@pytest.mark.parametrize('preference', ['keep-both', 'prefer-local', 'prefer-remote'])
def test_a_new_directory_against_a_published_file(play: Play, preference: str) -> None:
    """The directory lands beside it with all that is in it; or theirs does, where ours is preferred."""
    async def scenario(site: Site) -> None:
        prefer(site, preference)
        await site.mkdir('a')
        await site.save_at('a/b', b'ours')
        site.theirs('a', b'theirs')
        await site.look()
        await site.flush()
        assert sorted(site.content().values()) == [b'ours', b'theirs'] and await tree(site) == site.content()
        assert ('a/b' if preference == 'prefer-local' else 'a') in site.content()
        assert rows(site) == [('a', 1 if preference == 'prefer-local' else 0)] and not site.journal.unmountable(9)
    play(scenario)


def test_what_stood_in_the_way_and_does_not_any_more_is_not_listed(play: Play) -> None:
    """A local-only file gives way later: what it hid is shown, and not called hidden any more."""
    async def scenario(site: Site) -> None:
        await site.fs.make(ROOT_INO, b'a', mode=0o010644, caller=ME)
        site.theirs('a/b', b'theirs')
        await site.look()
        assert [key for key, _ in site.journal.unmountable(9)] == ['a/b']
        await site.fs.unlink(ROOT_INO, b'a')
        await site.look()
        assert await site.read('a/b') == b'theirs' and not site.journal.unmountable(9)
    play(scenario)


# --- what is no conflict ----------------------------------------------------------------------------------------------------------

def test_the_same_content_on_both_sides_is_none(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small or large, whoever wrote it: one file, and nothing beside it."""
    monkeypatch.setattr('ctxfs.sync.worker_ops_put.WHOLE_BYTES', 10)
    monkeypatch.setattr('ctxfs.sync.worker_ops_put.VERIFY_BYTES', 20)

    async def scenario(site: Site) -> None:
        for number, size in enumerate((3, 15, 50)):
            body = b'x' * size
            await site.save(b'f%d' % number, body)
            await site.flush()
            stamped = site.workers.context.store.head(f'{PREFIX}f{number}').metadata
            await edit(site, f'f{number}', body + b'!')
            other = {**(stamped or {}), 'ctxfs': (stamped or {})['ctxfs'].replace('host=here', 'host=there')}
            other['ctxfs'] = re.sub('sha256=[0-9a-f]*', 'sha256=' + hashlib.sha256(body + b'!').hexdigest(), other['ctxfs'])
            site.workers.context.store.put(f'{PREFIX}f{number}', body + b'!', metadata=other)
            await site.flush()
        assert not copies(site.content()) and rows(site) == [] and len(site.content()) == 3
    play(scenario)


def test_a_large_file_whose_stamp_lies_is_one(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tool kept the metadata of other content of the same length: both are kept."""
    monkeypatch.setattr('ctxfs.sync.worker_ops_put.WHOLE_BYTES', 10)
    monkeypatch.setattr('ctxfs.sync.worker_ops_put.VERIFY_BYTES', 20)

    async def scenario(site: Site) -> None:
        await site.save(b'f', b'first')
        await site.flush()
        await edit(site, 'f', b'o' * 50)
        stamp = f'v=1;sha256={hashlib.sha256(b"o" * 50).hexdigest()};host=there;rev=3'
        site.workers.context.store.put(PREFIX + 'f', b't' * 50, metadata={'ctxfs': stamp})
        await site.flush()
        assert site.content()['f'] == b't' * 50 and copies(site.content()) == {'f': b'o' * 50}
    play(scenario)


def test_a_chmod_on_both_sides_is_none(play: Play) -> None:
    """The last one told wins, on every host: here the one that flushes later."""
    async def scenario(site: Site) -> None:
        etag = site.theirs('f', b'body')
        await site.look()
        await site.fs.setattr(site.at('f').ino, Change(mode=0o600))
        site.tell(IndexRecord(path='f', changed_ns=2**62, etag=etag, size=4, attrs=ATTRS))
        await site.look()
        assert site.at('f').mode & 0o777 == 0o600 and site.content() == {'f': b'body'} and rows(site) == []
        await site.flush()
        assert not copies(site.content())
    play(scenario)


def test_of_two_records_of_attributes_the_later_one_counts(play: Play) -> None:
    """Whatever their ctimes say: the order in which hosts told them is the same for everybody."""
    async def scenario(site: Site) -> None:
        etag = site.theirs('f', b'body')
        mode = lambda bits, ctime: msgspec.structs.replace(ATTRS, mode=0o100000 | bits, ctime_ns=ctime)  # noqa: E731
        site.tell(IndexRecord(path='f', changed_ns=10, etag=etag, size=4, attrs=mode(0o600, 500)))
        await site.look()
        site.tell(IndexRecord(path='f', changed_ns=20, etag=etag, size=4, attrs=mode(0o640, 400)))
        await site.look()
        assert site.at('f').mode & 0o777 == 0o640
        site.tell(IndexRecord(path='f', changed_ns=15, etag=etag, size=4, attrs=mode(0o777, 600)))
        await site.look()
        assert site.at('f').mode & 0o777 == 0o640
    play(scenario)


def test_a_chmod_by_a_host_that_does_not_know_the_link_is_told_of_every_name(play: Play) -> None:
    """It said so of one name; a host that comes later is to see what is seen here."""
    async def scenario(site: Site) -> None:
        etag = site.theirs('a', b'body')
        await site.look()
        await site.fs.link(site.at('a').ino, ROOT_INO, b'b')
        await site.flush()
        site.tell(IndexRecord(path='a', changed_ns=2**62, etag=etag, size=4, attrs=msgspec.structs.replace(ATTRS, mode=0o100600)))
        await site.look()
        assert site.at('b').mode & 0o777 == 0o600
        await site.flush()
        written = [record for op in site.asked if isinstance(op, WriteSegment) for record in op.records if record.path == 'b' and record.attrs]
        assert written[-1].attrs.mode & 0o777 == 0o600
    play(scenario)


def test_the_attributes_of_the_version_that_wins_are_kept(play: Play) -> None:
    """What the index said of it was read while our file still had the name."""
    async def scenario(site: Site) -> None:
        await disagree(site)
        etag = site.workers.context.store.head(PREFIX + 'f.txt').etag
        site.tell(IndexRecord(path='f.txt', changed_ns=1, etag=etag, size=6, attrs=msgspec.structs.replace(ATTRS, mode=0o100640)))
        await site.look()
        await site.look()
        await site.flush()
        assert await site.read('f.txt') == b'theirs' and site.at('f.txt').mode & 0o777 == 0o640
    play(scenario)


# --- deletes ----------------------------------------------------------------------------------------------------------------------

def test_deleted_here_and_changed_there_comes_back(play: Play) -> None:
    async def scenario(site: Site) -> None:
        site.theirs('f', b'first')
        await site.look()
        await site.fs.unlink(ROOT_INO, b'f')
        site.theirs('f', b'theirs')
        await site.flush()
        await site.look()
        assert site.content() == {'f': b'theirs'} == await tree(site) and rows(site) == []
    play(scenario)


def test_changed_here_and_deleted_there_is_made_again(play: Play) -> None:
    async def scenario(site: Site) -> None:
        site.theirs('f', b'first')
        await site.look()
        await edit(site, 'f', b'ours')
        site.remove('f')
        await site.flush()
        assert site.content() == {'f': b'ours'} == await tree(site) and rows(site) == []
    play(scenario)


def test_a_conflict_counts_until_its_copy_is_gone(play: Play) -> None:
    """Removed here, or there."""
    async def scenario(site: Site) -> None:
        for path in ('a', 'b'):
            await disagree(site, path)
        await site.flush()
        one, two = (path for path in site.content() if COPY.fullmatch(path))
        await site.fs.unlink(ROOT_INO, one.encode())
        site.remove(two)
        await site.flush()
        await site.look()
        assert rows(site) == []
    play(scenario)


def test_a_copy_of_a_copy_is_named_after_the_original(play: Play) -> None:
    """A copy that another host changed as well goes aside once more: its name does not grow."""
    async def scenario(site: Site) -> None:
        await disagree(site)
        await site.flush()
        copy, = [path for path in site.content() if path != 'f.txt']
        await edit(site, copy, b'edited here')
        site.theirs(copy, b'edited there')
        await site.flush()
        names = [path for path in site.content() if path not in ('f.txt', copy)]
        assert len(names) == 1 and names[0].count('conflict') == 1 and site.content()[names[0]] == b'edited here'
        assert site.content()[copy] == b'edited there'
    play(scenario)


# --- uploads that nobody heard of -------------------------------------------------------------------------------------------------

def test_a_write_in_doubt_is_not_taken_for_another_that_looks_like_it(play: Play) -> None:
    """An upload that never arrived, and another host moved an older object of ours to its key: that one is not ours to replace."""
    async def scenario(site: Site) -> None:
        await site.save(b'g', b'moved there')
        await site.flush()
        with site.failing(PutFile):
            await site.save(b'f', b'never arrived')
            assert not (await site.engine.flush(retry_seconds=0)).ok
        site.workers.context.store.copy(PREFIX + 'g', PREFIX + 'f')
        site.remove('g')
        await site.restart()
        await site.flush()
        assert site.content()['f'] == b'moved there' and copies(site.content()) == {'f': b'never arrived'}
    play(scenario)


@pytest.mark.parametrize('kind', [PutFile, PutBytes])
def test_a_write_in_doubt_that_a_tool_has_edited_since_is_not_ours(play: Play, kind: type[Operation[Any]]) -> None:
    """It arrived, we did not hear of it, and a tool wrote other content and kept all metadata: both are kept."""
    async def scenario(site: Site) -> None:
        with site.after(kind, lose):
            if kind is PutFile:
                await site.save(b'f', b'ours')
            else:
                await site.fs.make(ROOT_INO, b'f', mode=0o120777, caller=ME, target=b'->ours')
            assert not (await site.engine.flush(retry_seconds=0)).ok
        store = site.workers.context.store
        store.put(PREFIX + 'f', b'->edited', metadata=store.head(PREFIX + 'f').metadata)
        await site.restart()
        await site.flush()
        assert site.content()['f'] == b'->edited' and len(copies(site.content())) == 1
    play(scenario)


def test_a_lost_write_that_somebody_saw_and_replaced_is_no_conflict(play: Play) -> None:
    """Where etags tell contents: their version says that it replaced ours, so it is the later one, and nothing goes beside it."""
    async def scenario(site: Site) -> None:
        store = site.workers.context.store = MemoryStore()     # type: ignore[assignment]
        with site.after(PutFile, lose):
            await site.save(b'f', b'ours')
            assert not (await site.engine.flush(retry_seconds=0)).ok
        base = _version(PREFIX + 'f', store.head(PREFIX + 'f').etag)
        store.put(PREFIX + 'f', b'theirs', metadata={'ctxfs': f'v=1;host=there;base={base}'})
        await site.flush()
        await site.look()
        assert site.content() == {'f': b'theirs'} == await tree(site) and rows(site) == []
    play(scenario)


async def lose() -> None:
    raise RemoteUnavailable('the answer is lost')

"""Databases that map their files and lock them: SQLite in WAL mode and LMDB, with writers that are killed."""
from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

from tests.crash.watch import eventually
from tests.programs.home import Home

#: commits rows one by one, and says which are committed: in a file outside, for what is acknowledged must be there
SQLITE_WRITER = '''
import os, sqlite3, sys
who, count, said = sys.argv[1], int(sys.argv[2]), os.open(sys.argv[3], os.O_CREAT | os.O_APPEND | os.O_WRONLY)
db = sqlite3.connect('db', timeout=60, isolation_level=None)
db.execute('PRAGMA journal_mode=WAL')
for n in range(count):
    db.execute('BEGIN IMMEDIATE')
    db.execute('INSERT INTO t VALUES (?, ?, ?)', (who, n, os.urandom(1500)))
    db.execute('COMMIT')
    os.write(said, b'%d\\n' % n)
os._exit(0)     # without closing: the log stays, as after a kill
'''
LMDB_WRITER = '''
import lmdb, os, sys
who, count, said = sys.argv[1], int(sys.argv[2]), os.open(sys.argv[3], os.O_CREAT | os.O_APPEND | os.O_WRONLY)
with lmdb.open('store', map_size=32 << 20, metasync=False) as env:
    for n in range(count):
        with env.begin(write=True) as transaction:
            transaction.put(f'{who}{n:05}'.encode(), who.encode() * 500)
        os.write(said, b'%d\\n' % n)
'''
FOREVER = 1_000_000
ROWS = 150


def writer(program: str, home: Home, who: str, count: int, said: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, '-c', program, who, str(count), str(said)], cwd=home.at, stdin=subprocess.DEVNULL)


def acknowledged(said: Path) -> int:
    return len(said.read_text().splitlines()) if said.exists() else 0


def two_writers_one_killed(program: str, home: Home, outside: Path) -> dict[str, int]:
    """Both write at once; `killed` is killed in the middle, `whole` comes to its end. How many rows each was told that it has."""
    said = {who: outside / who for who in ('whole', 'killed')}
    running = {who: writer(program, home, who, ROWS if who == 'whole' else FOREVER, said[who]) for who in said}
    try:
        eventually('the writer to be killed writes', lambda: acknowledged(said['killed']) > 30)
        running['killed'].send_signal(signal.SIGKILL)
        assert running['killed'].wait(60) == -signal.SIGKILL
        assert running['whole'].wait(120) == 0
    finally:
        for process in running.values():
            process.kill()
            process.wait()
    return {who: acknowledged(path) for who, path in said.items()}


def test_sqlite(home: Home, outside: Path) -> None:
    """WAL mode, two writing processes, one killed: what is acknowledged is there, here and elsewhere, where the log is recovered from."""
    db = sqlite3.connect(home.at / 'db')
    db.execute('PRAGMA journal_mode=WAL')
    db.execute('CREATE TABLE t (who, n, filler, PRIMARY KEY (who, n))')
    db.commit()
    db.close()
    told = two_writers_one_killed(SQLITE_WRITER, home, outside)
    assert (home.at / 'db-wal').stat().st_size > 0
    home.move(inexact=['db', 'db-wal', 'db-shm'])
    db = sqlite3.connect(home.at / 'db')
    assert db.execute('PRAGMA integrity_check').fetchall() == [('ok',)]
    rows = dict(db.execute('SELECT who, count(*) FROM t GROUP BY who'))
    assert rows['whole'] == told['whole'] == ROWS
    assert rows['killed'] in (told['killed'], told['killed'] + 1)      # committed, and killed before it could say so
    db.execute('DELETE FROM t WHERE n % 2')
    db.commit()
    db.execute('VACUUM')
    db.close()
    assert not (home.at / 'db-wal').exists()
    home.move()
    db = sqlite3.connect(home.at / 'db')
    assert db.execute('PRAGMA integrity_check').fetchall() == [('ok',)]
    assert db.execute('SELECT count(*) FROM t WHERE n % 2').fetchone() == (0,)
    db.close()


def test_lmdb(home: Home, outside: Path) -> None:
    """A database of mapped pages: two writing processes, one killed; readers find every acknowledged entry, here and elsewhere."""
    import lmdb
    told = two_writers_one_killed(LMDB_WRITER, home, outside)

    def counted() -> dict[str, int]:
        with lmdb.open(os.fspath(home.at / 'store'), readonly=True) as env, env.begin() as transaction:
            found = [(bytes(key).decode(), bytes(value)) for key, value in transaction.cursor()]
        assert all(value == key[:-5].encode() * 500 for key, value in found)
        return {who: sum(key.startswith(who) for key, _ in found) for who in told}

    here = counted()
    assert here['whole'] == told['whole'] == ROWS
    assert here['killed'] in (told['killed'], told['killed'] + 1)
    home.move(inexact=['store/data.mdb', 'store/lock.mdb'])
    assert counted() == here
    assert writer(LMDB_WRITER, home, 'other', 20, outside / 'other').wait(60) == 0
    home.move()
    told['other'] = 20
    assert counted() == {**here, 'other': 20}

"""Salvage: the rows of a tree database that SQLite refuses, or reads only in part.

Owns which records are rows of which table, by the schema that this ctxfs has. It must not know what rows mean to each other (mend.py), and
changes nothing.

What a table's own tree leads to is certain. Where anything is damaged, all other pages are looked through as well, and what looks like a row
there is one that the tree has lost, or one of an earlier time on a page that is not used any more: uncertain.
"""
from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from ctxfs.storage.sqlite_pages import Damage, Pages, Record, Row
from ctxfs.storage.tree_db import TreeDB

#: tables whose rows are worth a guess, for nothing brings them again, and have a shape of their own
_GUESSED = ('inode', 'dentry', 'object', 'pending', 'attempt', 'conflict')
_TYPES: dict[str, type] = {'INTEGER': int, 'TEXT': str, 'BLOB': bytes}


class Column(NamedTuple):
    name: str
    type: type
    may_be_null: bool
    default: object


class Table(NamedTuple):
    """`has_number`: the first column is the row's integer key."""
    name: str
    columns: tuple[Column, ...]
    has_number: bool

    def row(self, found: Row) -> Record | None:
        """The values of all columns; None when the record is none of this table's."""
        number, record = found
        if len(record) > len(self.columns) or (number is None) is self.has_number:
            return None
        values = (number, *record[1:]) if self.has_number else record
        if self.has_number and record[:1] != (None,):
            return None
        values += tuple(column.default for column in self.columns[len(values):])
        return values if all(map(_fits, values, self.columns)) else None


def _fits(value: object, column: Column) -> bool:
    if value is None:
        return column.may_be_null
    return isinstance(value, column.type) or column.name == 'value'     # of meta: whatever somebody keeps there


class Found(NamedTuple):
    table: str
    row: Record
    is_certain: bool


def tables_of(db: TreeDB) -> dict[str, Table]:
    """The tables of a database with the schema that is to be salvaged."""
    found = {}
    for name, sql in db.rows("SELECT name, sql FROM sqlite_master WHERE type = 'table'"):
        columns = tuple(Column(column, _TYPES[kind], not is_required and not is_key, _default(default))
                        for _, column, kind, is_required, default, is_key in db.rows(f'PRAGMA table_info({name})'))
        found[name] = Table(name, columns, 'WITHOUT ROWID' not in sql)
    return found


def _default(text: str | None) -> object:
    return None if text is None else text[1:-1] if text.startswith("'") else int(text)


class Salvage:
    """Read it once; then `faults` says what was damaged, few words each, FAULTS at most."""

    FAULTS = 20

    def __init__(self, path: Path, tables: dict[str, Table]) -> None:
        self._pages = Pages(path)
        self._tables = tables
        self._visited: set[int] = set()
        self.faults: list[str] = []
        self._note(Damage('the log is damaged, and transactions in it were lost')) if self._pages.log.is_damaged else None

    def close(self) -> None:
        self._pages.close()

    def _note(self, damage: Damage) -> None:
        if len(self.faults) < self.FAULTS:
            self.faults.append(str(damage))

    def rows(self) -> Iterator[Found]:
        """Certain ones first. Of two with one key the first counts."""
        roots: dict[str, int] = {}
        for name, root in self._roots():
            roots.setdefault(name, root)
        self._visited |= self._pages.free_pages()
        for name, table in self._tables.items():
            if name not in roots:
                self._note(Damage(f'where the table {name} begins is not known'))
                continue
            for found in self._tree(roots.pop(name)):
                if (row := table.row(found)) is not None:
                    yield Found(name, row, True)
                else:
                    self._note(Damage(f'a row of the table {name} is none'))
        names_by_inode = [found.record for found in self._tree(roots.pop('dentry_ino', 0))]
        for root in roots.values():
            for _ in self._tree(root):
                continue
        if self.faults:
            yield from self._guesses(names_by_inode)

    def _tree(self, root: int) -> Iterator[Row]:
        for found in self._pages.tree(root, self._visited):
            if isinstance(found, Damage):
                self._note(found)
            else:
                yield found

    def _roots(self) -> Iterator[tuple[str, int]]:
        """(table or index, its root page) by SQLite's own table; where that is damaged, by what looks like its rows."""
        found = [row.record for row in self._tree(1)]
        if self.faults:
            found += [row.record for number in range(1, self._pages.count + 1) for row in self._pages.leaf(number)]
        for record in found:
            if len(record) == 5 and record[0] in ('table', 'index') and isinstance(record[1], str) and isinstance(record[3], int):
                yield record[1], record[3]

    def _guesses(self, names_by_inode: list[Record]) -> Iterator[Found]:
        free = self._pages.free_pages()
        shaped = [self._tables[name] for name in _GUESSED]
        for number in range(1, self._pages.count + 1):
            for found in self._pages.leaf(number) if number not in free else ():
                for table in shaped:
                    if (row := table.row(found)) is not None:
                        yield Found(table.name, row, False)
        # the index of names by inode has every name once more
        for ino, *name in names_by_inode:
            if (row := self._tables['dentry'].row(Row(None, (*name, ino)))) is not None:
                yield Found('dentry', row, False)

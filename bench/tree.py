"""The tree that is measured: a tar archive of the standard library's files and of filler, the same for the same Python and arguments.

Owns its shape: the sizes and directories of source code, which is what people unpack, then files of random bytes up to the asked number
and size. It must not know what is done with it.
"""

from __future__ import annotations

import io
import os
import random
import sysconfig
import tarfile
from collections.abc import Iterator
from pathlib import Path

#: this share of the files, at most, is the standard library's; the rest fills up the size
LIBRARY_SHARE = 0.9
SKIPPED = {'__pycache__', 'site-packages', 'dist-packages'}
MTIME = 1_700_000_000
FILLER_FILES_IN_A_DIRECTORY = 20


def write_archive(path: Path, *, files: int, size: int) -> None:
    """A tar archive of `files` regular files with about `size` bytes in all."""
    library = list(library_files())[: int(files * LIBRARY_SHARE)]
    chosen, total = [], 0
    for source in library:  # a small tree is not filled up by one big file
        length = source.stat().st_size
        if total + length <= size:
            chosen.append(source)
            total += length
    top = Path(sysconfig.get_path('stdlib'))
    with tarfile.open(path, 'w') as archive:
        for source in chosen:
            add(archive, f'tree/{source.relative_to(top)}', source.read_bytes())
        generator, missing = random.Random(1), files - len(chosen)
        for number in range(missing):
            length = (size - total) // (missing - number)
            total += length
            add(archive, f'tree/filler/{number // FILLER_FILES_IN_A_DIRECTORY}/{number}', generator.randbytes(length))


def library_files() -> Iterator[Path]:
    for directory, directories, names in os.walk(sysconfig.get_path('stdlib')):
        directories[:] = sorted(set(directories) - SKIPPED)
        for name in sorted(names):
            path = Path(directory, name)
            if path.is_file() and not path.is_symlink():
                yield path


def add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.mtime, member.mode = len(content), MTIME, 0o644
    archive.addfile(member, io.BytesIO(content))

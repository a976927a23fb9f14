"""What a run found, as lines for a terminal, as Markdown and as JSON.

Owns the spelling of figures. It must not know how they came about.
"""

from __future__ import annotations

import os
import platform
import subprocess
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from bench.rows import CTXFS, LABELS, RIVALS
from bench.world import Sizes

Result = Mapping[str, Any]

#: between these a document has the table, and the caption below it
BEGIN, END = '<!-- benchmark: scripts/bench writes what follows -->\n', '<!-- end of benchmark -->\n'


def machine() -> dict[str, Any]:
    """What figures depend on."""
    info = Path('/proc/cpuinfo').read_text()
    model = next((line.partition(':')[2].strip() for line in info.splitlines() if line.startswith('model name')), platform.machine())
    return {'cores': os.cpu_count(), 'cpu': model, 'memoryGb': round(os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 1e9),
            'kernel': platform.release(), 'python': platform.python_version(), 'system': _system()}


def _system() -> str:
    try:
        return platform.freedesktop_os_release().get('PRETTY_NAME', '')
    except OSError:
        return platform.system()


def file_system(path: Path) -> str:
    return subprocess.run(['findmnt', '-no', 'FSTYPE', '-T', path], capture_output=True, text=True, check=True).stdout.strip()


def document(results: list[dict[str, Any]], *, sizes: Sizes, rounds: int, took: float, directory: Path, missing: Iterable[str]) -> dict[str, Any]:
    """The JSON of a run."""
    return {'date': time.strftime('%Y-%m-%d', time.gmtime()), 'machine': {**machine(), 'fileSystem': file_system(directory)}, 'rounds': rounds,
            'sizes': sizes._asdict(), 'seconds': round(took), 'missing': list(missing), 'results': results}


def caption(found: Mapping[str, Any]) -> str:
    at = found['machine']
    sizes = {name: size for name, size in found['sizes'].items() if size != getattr(Sizes(), name)}
    others = f'; other sizes than the rows say: {", ".join(f"{name} {size}" for name, size in sizes.items())}' if sizes else ''
    return (f'{found["date"]}; {at["cores"]} cores ({at["cpu"]}) shared by server, client and load; {at["memoryGb"]} GB; {at["system"]}, '
            f'Linux {at["kernel"]}, Python {at["python"]}, {at["fileSystem"]}; {found["rounds"]} rounds{others}')


def number(value: float | None) -> str:
    """Three digits that count."""
    if value is None:
        return '–'
    if value == float('inf'):
        return '∞'
    size = abs(value)
    return f'{value:,.0f}' if size >= 100 or value == int(value) else f'{value:.1f}' if size >= 10 else f'{value:.2f}'


def goal(result: Result) -> str:
    return f'{result["direction"]} {result["goal"]:,g}'


def lines(found: Mapping[str, Any]) -> Iterable[str]:
    """For a terminal."""
    yield caption(found)
    yield f'{"":22} {"value":>8} {"min":>8} {"max":>8}  {"goal":>8}      unit'
    for result in found['results']:
        yield from _lines_of(result)
    yield from (f'left out: {line}' for line in found['missing'])


def _lines_of(result: Result) -> Iterable[str]:
    if CTXFS in result['sides']:
        mark = 'ok' if result['met'] else 'MISS'
        figures = ' '.join(f'{number(result[name]):>8}' for name in ('value', 'min', 'max'))
        yield f'{result["name"]:22} {figures}  {goal(result):>8} {mark:4} {result["unit"]}{_raw(result)}'
    else:
        yield f'{result["name"]:22} not measured'
    others = [f'{side} {number(result["sides"][side]["value"])}' for side in RIVALS if side in result['sides']]
    if others:
        ahead = {True: '', False: '  (ctxfs is not ahead)', None: ''}[result.get('fastest')]
        yield f'{"":22} {", ".join(others)}{ahead}'
    for note in result['notes']:
        yield f'{"":22} {note}'


def _raw(result: Result) -> str:
    """What a ratio is made of."""
    ours = result['sides'][CTXFS]
    if not result['basis']:
        return ''
    return f' ({number(ours["raw"])} : {number(ours["basis"])} {result["rawUnit"]})'


def markdown(found: Mapping[str, Any]) -> str:
    """A table for a document."""
    sides = [side for side in RIVALS if any(side in result['sides'] for result in found['results'])]
    head = ['work', 'unit', 'goal', 'ctxfs', *(LABELS.get(side, side) for side in sides)]
    rows = [head, ['---'] * len(head)]
    for result in found['results']:
        values = [number(result['sides'][side]['value']) if side in result['sides'] else '' for side in sides]
        ours = f'**{number(result["value"])}**' if result.get('met') else number(result.get('value'))
        rows.append([result['title'], result['unit'], goal(result), ours, *values])
    return ''.join(f'| {" | ".join(row)} |\n' for row in rows)


def inserted(found: Mapping[str, Any], text: str, *, image: str = '') -> str:
    """The document `text` with the chart at `image` and the table of this run; these alone where it has no place for them."""
    chart = f'![How long work takes on ctxfs, on other mounts of a bucket, and on the local disk]({image})\n\n' if image else ''
    table = f'\n{chart}{markdown(found)}\n{caption(found)}.\n\n'
    before, mark, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    return f'{before}{BEGIN}{table}{END}{after}' if mark and end else table.strip('\n') + '\n'

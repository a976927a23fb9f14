"""Builds the library of ctxfs/edge/fuse_*.c while ctxfs is installed, with the compiler and the headers that pyfuse3 needs as well.

It goes beside the installed packages, not into the checkout. Where it cannot be built, ctxfs is installed without it, which is slower.
"""
from __future__ import annotations

import os
import shlex
import subprocess
import sysconfig
import tempfile
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SOURCES = tuple(f'ctxfs/edge/fuse_{name}.c' for name in ('ops', 'listing', 'made', 'answers'))
NAME = '_ctxfs_fuse_ops'


class CustomBuildHook(BuildHookInterface):
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if self.target_name != 'wheel':
            return
        self._directory = tempfile.TemporaryDirectory(prefix='ctxfs-build-')
        library = os.path.join(self._directory.name, f'{NAME}.so')
        if not self._compile(library):
            return
        included = 'force_include_editable' if version == 'editable' else 'force_include'
        build_data[included][library] = f'{NAME}.so'
        build_data['pure_python'] = False
        build_data['tag'] = f'py3-none-{sysconfig.get_platform().replace("-", "_").replace(".", "_")}'

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        if self.target_name == 'wheel':
            self._directory.cleanup()

    def _compile(self, library: str) -> bool:
        try:
            flags = subprocess.run(['pkg-config', '--cflags', '--libs', 'fuse3'], capture_output=True, text=True, check=True).stdout
            sources = [os.path.join(self.root, source) for source in SOURCES]
            subprocess.run([*shlex.split(os.environ.get('CC', 'cc')), '-O2', '-shared', '-fPIC', '-o', library, *sources, *shlex.split(flags),
                            '-ldl'], capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            self.app.display_warning(f'{NAME} is left out: {getattr(error, "stderr", "") or error}')
            return False
        return True

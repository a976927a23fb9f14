"""A C project built with make: what is up to date on one host is up to date on the next."""
from __future__ import annotations

from collections.abc import Callable

from tests.programs.home import Home

MODULES = 12
MAKEFILE = '''
sources := $(wildcard src/*.c)
objects := $(sources:src/%.c=out/%.o)
out/program: out/libparts.a main.c
	$(CC) -o $@ main.c -Lout -lparts
out/libparts.a: $(objects)
	rm -f $@
	ar rcs $@ $^
out/%.o: src/%.c | out
	$(CC) -MMD -MP -c -o $@ $<
	@echo compiled $<
out:
	mkdir -p $@
-include $(objects:.o=.d)
'''


def test_make(home: Home, needs: Callable[..., None]) -> None:
    """make -j4 with dependency files and an archive; elsewhere nothing is to be done, and a changed header compiles what includes it."""
    needs('make', 'cc', 'ar')
    (home.at / 'src').mkdir()
    (home.at / 'Makefile').write_text(MAKEFILE)
    for n in range(MODULES):
        (home.at / f'src/part{n}.h').write_text(f'int part{n}(void);\n#define PART{n} {n}\n')
        (home.at / f'src/part{n}.c').write_text(f'#include "part{n}.h"\n#include "part{(n + 1) % MODULES}.h"\n'
                                                f'int part{n}(void) {{ return PART{n}; }}\n')
    calls = ' + '.join(f'part{n}()' for n in range(MODULES))
    (home.at / 'main.c').write_text('#include <stdio.h>\n' + ''.join(f'int part{n}(void);\n' for n in range(MODULES))
                                    + f'int main(void) {{ printf("%d\\n", {calls}); return 0; }}\n')
    assert home.run('make', '-s', '-j4').count('compiled') == MODULES
    assert home.run('out/program') == f'{sum(range(MODULES))}\n'
    home.move()
    assert home.run('out/program') == f'{sum(range(MODULES))}\n'
    assert 'up to date' in home.run('make', '-j4')
    (home.at / 'src/part3.h').write_text('int part3(void);\n#define PART3 1003\n')
    assert home.run('make', '-s', '-j4').split('\n')[:-1] in (['compiled src/part2.c', 'compiled src/part3.c'],
                                                           ['compiled src/part3.c', 'compiled src/part2.c'])
    assert home.run('out/program') == f'{sum(range(MODULES)) + 1000}\n'

"""How background transfers hold back while programs use the mount, in virtual time."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from ctxfs.sync.courtesy import BUSY_RATE, SAMPLE_SECONDS, SHARE, Courtesy

CPU = 0.001     # seconds that one operation takes of a worker


class Programs:
    """Programs that make `rate` requests a second."""

    def __init__(self, rate: float) -> None:
        self.rate = rate

    def served(self) -> int:
        return int(trio.current_time() * self.rate)


async def begun_in(seconds: float, courtesy: Courtesy, *, cpu: float = CPU, runners: int = 32) -> int:
    """How many operations begin in that time when so many tasks want to run them one after another, each lasting 3 ms."""
    begun = 0

    async def runner() -> None:
        nonlocal begun
        while True:
            charged = await courtesy.turn()
            begun += 1
            await trio.sleep(0.003)
            courtesy.took(cpu, charged)

    with trio.move_on_after(seconds):
        async with trio.open_nursery() as nursery:
            for _ in range(runners):
                nursery.start_soon(runner)
    return begun


def run(scenario, *args):  # type: ignore[no-untyped-def]
    return trio.run(scenario, *args, clock=trio.testing.MockClock(autojump_threshold=0))


def test_nothing_is_held_back_on_a_quiet_mount() -> None:
    """Nor on one that is hardly used."""
    async def scenario(rate: float) -> int:
        return await begun_in(1.0, Courtesy(Programs(rate).served))

    assert run(scenario, 0.0) > 10_000 and run(scenario, BUSY_RATE / 3) > 10_000


@pytest.mark.parametrize('cpu', [0.0005, 0.001, 0.004])
def test_a_busy_mount_leaves_background_operations_their_share_of_cpu_time(cpu: float) -> None:
    """As many as fit into SHARE of a core, whatever one takes; and never none."""
    async def scenario() -> int:
        courtesy = Courtesy(Programs(5000.0).served)
        await trio.sleep(SAMPLE_SECONDS)
        return await begun_in(10.0, courtesy, cpu=cpu)

    fair = SHARE / cpu * 10.0
    assert 0.7 * fair < run(scenario) < 1.3 * fair


def test_they_run_freely_again_when_the_programs_are_done() -> None:
    """Within a sample of the use."""
    async def scenario() -> tuple[int, int]:
        programs = Programs(5000.0)
        courtesy = Courtesy(programs.served)
        await trio.sleep(SAMPLE_SECONDS)
        busy = await begun_in(1.0, courtesy)
        programs.served = courtesy.served = lambda: 5000     # nothing more comes
        await trio.sleep(2 * SAMPLE_SECONDS)
        return busy, await begun_in(1.0, courtesy)

    busy, free = run(scenario)
    assert busy < 1000 < 10_000 < free


def test_a_waiting_task_that_is_cancelled_leaves_the_others_their_turn() -> None:
    """The turn is a lock."""
    async def scenario() -> int:
        courtesy = Courtesy(Programs(5000.0).served)
        await trio.sleep(SAMPLE_SECONDS)
        await begun_in(0.5, courtesy)       # ends by cancelling 32 tasks that wait
        return await begun_in(1.0, courtesy)

    assert run(scenario) > 0.5 * SHARE / CPU

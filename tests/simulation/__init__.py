"""A seeded simulation of the sample lifecycle: the real exporter with faults everywhere, ten hours per second.

`run(Scenario.of(seed))` returns the world with its violations; `python -m tests.simulation` runs many seeds.
"""

import asyncio
import shutil
import tempfile
from pathlib import Path

from tests.simulation.checks import check
from tests.simulation.process import Crash, Host, silence
from tests.simulation.virtual_time import VirtualLoop
from tests.simulation.world import Scenario, World

__all__ = ["Scenario", "World", "run"]


def run(scenario: Scenario) -> World:
    """Run a scenario to its end; `violations` of the result is empty when every rule held."""
    shared_memory = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(prefix="simulation-", dir=shared_memory if shared_memory.is_dir() else None))
    world = World(scenario)
    try:
        with silence(world), asyncio.Runner(loop_factory=VirtualLoop) as runner:
            runner.run(_simulate(world, folder))
            loop = runner.get_loop()
            assert isinstance(loop, VirtualLoop)
            for complaint in loop.complaints:
                if not isinstance(complaint.get("exception"), Crash):
                    world.violated("asyncio complains", f"{complaint}")
    finally:
        shutil.rmtree(folder)
    return world


async def _simulate(world: World, folder: Path) -> None:
    hosts = [Host(world, name, folder) for name in ("AB" if "takeover" in world.faults else "A")]
    tasks = [asyncio.create_task(host.run()) for host in hosts]
    tasks.append(asyncio.create_task(world.live()))
    await asyncio.sleep(world.scenario.hours * 3600)
    world.calm()
    for host in hosts:
        host.calm.set()
    # Long enough for the absence timeout of values CloudWatch never publishes, and for two polls of an idle worker.
    await asyncio.sleep(world.rules.absence_timeout * 2 + 3600)
    leading = next((host.process for host in hosts if host.process and host.process.lease.held), None)
    if leading is None:
        world.violated("no exporter leads")
    else:
        check(world, leading.outbox)
    for task in tasks:
        task.cancel()
    for end in await asyncio.gather(*tasks, return_exceptions=True):
        if isinstance(end, Exception):
            raise end

"""The part of `check` about the databases of `history.forward`: each is asked whether it answers; nothing is written there."""

import asyncio

from exporter.commands.check.finding import CheckResult
from exporter.core.errors import ConfigError, StoreError
from exporter.core.history_settings import ForwardTarget
from exporter.core.logs import mask
from exporter.core.settings import Settings
from exporter.stores.opening import open_store

TARGET_SECONDS = 10.0
"""The limit for each target."""


async def check_targets(settings: Settings) -> list[CheckResult]:
    """Ask every target; one that does not answer is a warning, since `serve` works without it."""
    return await asyncio.gather(*map(_check, settings.history.forward))


async def _check(target: ForwardTarget) -> CheckResult:
    check = f"forward {target.label}"
    try:
        store = open_store(target.address())
    except ConfigError as error:
        return CheckResult(check, "FAIL", str(error))
    try:
        async with asyncio.timeout(TARGET_SECONDS):
            await store.ping()
    except TimeoutError:
        return CheckResult(check, "warn", f"{store.name} has not answered within {TARGET_SECONDS:g} s; samples would wait")
    except StoreError as error:
        return CheckResult(check, "warn", f"{mask(str(error))}; samples would wait")
    finally:
        await store.close()
    return CheckResult(check, "ok", f"{store.name} answers")

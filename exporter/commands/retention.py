"""`cml-worker-exporter retention`: show how long the history keeps its samples, or change it after saying what that deletes."""

import time
from typing import TextIO

from exporter.core.errors import ConfigError, IncompatibleStoreError
from exporter.core.periods import DAY, format_duration, rfc3339
from exporter.core.settings import MAX_RETENTION, Settings
from exporter.storage.mongo import connect
from exporter.storage.repository import repository, require_history


async def run(settings: Settings, wanted: int | None, yes: bool, out: TextIO) -> int:
    """Show the retention (`wanted` None) or set it to `wanted` seconds; a shorter one needs `yes`.

    Returns:
        The exit status: 0 done, 1 nothing was changed because `yes` is missing.

    Raises:
        ConfigError: the settings name no history, or the retention is not longer than `gap_fill_window`, or longer than
            MongoDB allows.
        StoreError: MongoDB does not answer, or does not allow it.
    """
    name = require_history(settings, "keep")
    if wanted is not None and wanted <= settings.gap_fill_window:
        raise ConfigError(
            f"--set: {format_duration(wanted)} must be longer than gap_fill_window "
            f"({format_duration(settings.gap_fill_window)}), "
            "else what was deleted would be filled again"
        )
    if wanted is not None and not DAY <= wanted <= MAX_RETENTION:
        raise ConfigError(
            f"--set: {format_duration(wanted)} must be at least 1d, since MongoDB deletes by the day, "
            f"and at most {format_duration(MAX_RETENTION // DAY * DAY)}"
        )
    client, database = connect(settings)
    async with client:
        history = repository(settings, database, name).collection
        kept = await history.current_retention()
        shown = "for good" if kept is None else f"for {format_duration(kept)}"
        if wanted is None or wanted == kept:
            print(f"{history.namespace} keeps samples {shown}.", file=out)
            return 0
        if kept is None or wanted < kept:
            limit = int(time.time()) - wanted
            count = await history.count_before(limit)
            print(
                f"{history.namespace} keeps samples {shown}. With {format_duration(wanted)} MongoDB deletes everything before "
                f"{rfc3339(limit)}: {count} samples now, within a day or two, for good.",
                file=out,
            )
            if not yes:
                print("Nothing was changed. Say --yes to do it.", file=out)
                return 1
        await history.set_retention(wanted)
        print(f"{history.namespace} now keeps samples for {format_duration(wanted)}.", file=out)
        if "retention" in settings.mongodb.model_fields_set and settings.mongodb.retention > wanted:
            raise IncompatibleStoreError(
                f"mongodb.retention is set to {format_duration(settings.mongodb.retention)}, which the next start applies "
                f"again; set it to {format_duration(wanted)} too",
                reason="retention",
            )
    return 0

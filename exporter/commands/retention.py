"""`cml-worker-exporter retention`: show how long the history keeps its samples, or change it."""

import json
import time
from typing import TextIO

from exporter.commands.terminal import say
from exporter.core.errors import ConfigError, IncompatibleStoreError
from exporter.core.periods import DAY, format_duration, rfc3339
from exporter.core.settings import MAX_RETENTION, Settings
from exporter.storage.mongo import connect
from exporter.storage.repository import repository, require_history


async def run(settings: Settings, wanted: int | None, yes: bool, out: TextIO, *, as_json: bool = False) -> int:
    """Show the retention or set it; what a shorter one would delete is printed first.

    Args:
        settings: where the history is.
        wanted: the new retention in seconds; None: only show it.
        yes: confirms a shorter one.
        out: for the text.
        as_json: print JSON.

    Returns:
        The exit status: 0 done, 1 nothing was changed because `yes` is false.

    Raises:
        ConfigError: the settings name no history, or it cannot keep samples so long.
        StoreError: MongoDB does not answer, or lacks a privilege for it.
    """
    name = require_history(settings, "keep")
    if wanted is not None:
        _check_wanted(wanted, settings)

    def show(text: str) -> None:
        if not as_json:
            say(text, out)

    client, database = connect(settings)
    async with client:
        history = repository(settings, database, name).collection
        kept = await history.current_retention()
        shown = "without limit" if kept is None else f"for {format_duration(kept)}"
        result, status = {"history": history.namespace, "retention_seconds": kept, "changed": False}, 0
        if wanted is None or wanted == kept:
            show(f"{history.namespace} keeps samples {shown}.")
        else:
            if kept is None or wanted < kept:
                limit = int(time.time()) - wanted
                count = await history.count_before(limit)
                result |= {"deletes_before": rfc3339(limit), "deletes_samples": count}
                deletes = f"With {format_duration(wanted)} MongoDB deletes everything before {rfc3339(limit)}"
                deletes += f": {count:,} samples now, permanently, within a day or two."
                show(f"{history.namespace} keeps samples {shown}. {deletes}")
                status = 0 if yes else 1
            if status:
                show("Nothing was changed. Use --yes to do it.")
            else:
                await history.set_retention(wanted)
                result |= {"retention_seconds": wanted, "changed": True}
                show(f"{history.namespace} now keeps samples for {format_duration(wanted)}.")
        if as_json:
            print(json.dumps(result), file=out)
        lengthens = "retention" in settings.mongodb.model_fields_set and settings.mongodb.retention > (wanted or 0)
        if wanted is not None and result["changed"] and lengthens:
            raise IncompatibleStoreError(
                f"mongodb.retention is set to {format_duration(settings.mongodb.retention)}, which the next start applies "
                f"again; set it to {format_duration(wanted)} too",
                reason="retention",
            )
    return status


def _check_wanted(wanted: int, settings: Settings) -> None:
    if wanted <= settings.gap_fill_window:
        raise ConfigError(
            f"--set: {format_duration(wanted)} must be longer than gap_fill_window "
            f"({format_duration(settings.gap_fill_window)}), "
            "otherwise the exporter would fill deleted samples again"
        )
    if not DAY <= wanted <= MAX_RETENTION:
        raise ConfigError(
            f"--set: {format_duration(wanted)} must be at least 1d, since MongoDB deletes by the day, "
            f"and at most {format_duration(MAX_RETENTION // DAY * DAY)}"
        )

"""How many worker documents a command found, and where: a wrong database must not look like success."""

from exporter.commands.backfill.plan import counted
from exporter.core.errors import NoWorkersError
from exporter.core.model import Fleet

WHERE_TO_LOOK = "check the database in mongodb.uri and mongodb.workers, or wait for the manager"


def describe(fleet: Fleet) -> str:
    """Return "12 worker documents in cml_cloud_manager.workers", those that cannot be read included."""
    count = len(fleet.workers) + sum(fleet.skipped.values())
    return f"{counted(count, 'worker document')} in {fleet.namespace}"


def missing(fleet: Fleet) -> str:
    """Return the sentence for a read that found no worker document: where there are some, or what to check."""
    return "; ".join(fleet.complaints) or f"{fleet.namespace} holds no worker document; {WHERE_TO_LOOK}"


def require(fleet: Fleet) -> None:
    """Refuse to go on without workers.

    Raises:
        NoWorkersError: there is no worker document.
    """
    if not fleet.workers and not fleet.skipped:
        raise NoWorkersError(missing(fleet))

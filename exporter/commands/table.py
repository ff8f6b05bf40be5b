"""The table of commands: help texts, the command's own flags, the settings it reads, its function in `commands.run`.

The command line adds those that need itself, and the demo.
"""

from exporter.commands import flags, run
from exporter.commands.command import EVERY_SETTING, Command

_TIME = """\
TIME is a duration before now (30d, -30d, now-30d), RFC 3339 (2026-01-31T12:00:00Z; a date alone is 00:00 UTC),
unix seconds, or now.
"""
_MONGODB = ("mongodb.uri", "mongodb.uri_file")
_HISTORY = (*_MONGODB, "mongodb.workers", "mongodb.history", "mongodb.retention")
_WORKERS = ("workers.fields", "workers.extra")
"""What commands need that read the worker documents; the price is for gauges and pages."""


COMMANDS: dict[str, Command] = {
    "serve": Command(
        run.serve,
        "run the exporter",
        "Run the exporter until SIGINT or SIGTERM: collect, answer HTTP on port 9877, write the history. SIGHUP reloads.",
        settings=EVERY_SETTING,
        notes="""\
example:
  cml-worker-exporter serve --config.file exporter.yml
  CML_EXPORTER_MONGODB__URI=mongodb://127.0.0.1/cml_cloud_manager cml-worker-exporter serve --web.listen-address :9877

In a database without any worker document nothing is created before the first one is there.
""",
        statuses="0 ended by a signal, 1 it cannot start or cannot go on, 2 wrong command line",
    ),
    "check": Command(
        run.check,
        "validate the settings and every connection, change nothing",
        "Validate the settings, MongoDB (version, privileges, the collection) and AWS (identity, one CloudWatch call\n"
        "per region), and print the findings. Exit status 1 when `serve` would not work.",
        flags.json_flag,
        settings=EVERY_SETTING,
        usage="[--json]",
        notes="""\
example:
  cml-worker-exporter check --config.file exporter.yml
  cml-worker-exporter check --config.file exporter.yml --json | jq '.checks[] | select(.status == "FAIL")'
""",
        statuses="0 serve would work, warnings allowed, 1 a check failed, 2 wrong command line",
    ),
    "retention": Command(
        run.retention,
        "show how long the history keeps its samples, or change it",
        "Show how long the history keeps its samples. With --set, print what the change deletes, and with --yes apply\n"
        "it; the setting mongodb.retention alone never shortens a history.",
        flags.retention_flags,
        (*_MONGODB, "mongodb.history", "mongodb.retention", "period", "gap_fill_window", "log.format"),
        "[--set DURATION] [--yes] [--json]",
        """\
example:
  cml-worker-exporter retention --config.file exporter.yml
  cml-worker-exporter retention --config.file exporter.yml --set 90d
  cml-worker-exporter retention --config.file exporter.yml --set 14d --yes
""",
        statuses="0 done, 1 it failed, or nothing was changed because --yes is missing, 2 wrong command line",
    ),
    "estimate": Command(
        run.estimate,
        "what CloudWatch will cost with this fleet and these settings",
        "Read the worker documents, find out which workers have a CloudWatch agent, and print calls, metrics billed,\n"
        "and dollars per collection cycle, day, and month. Makes no CloudWatch call that is billed.",
        flags.json_flag,
        # Those below `period` change no figure, but other intervals are valid only together with them.
        settings=(
            *(*_MONGODB, "mongodb.workers", "period"),
            *("settle_delay", "absence_timeout", "gap_fill_window", "max_age"),
            *("cloudwatch.enabled", "cloudwatch.endpoint_url", "cloudwatch.memory", "cloudwatch.extra", "cloudwatch.interval"),
            *("cloudwatch.max_usd_per_day", "cloudwatch.reader_budget_share", "aws"),
            *(*_WORKERS, "workers.shard", "workers.regions", "workers.filter", "log.format"),
        ),
        usage="[--json]",
        notes="""\
example:
  cml-worker-exporter estimate --config.file exporter.yml
  cml-worker-exporter estimate --config.file exporter.yml --cloudwatch.interval 15m --json
""",
        statuses="0 done, 1 it failed, 2 wrong command line, or there is no worker document",
    ),
    "backfill": Command(
        run.backfill,
        "fill older gaps of the history from CloudWatch",
        "Fill gaps of the history that `serve` no longer fills, from CloudWatch: CPU and memory. Prints the price\n"
        "first. May be interrupted at any moment: the same command continues and repeats no completed call. An\n"
        "exporter may run at the same time. Exit status 1 when samples are still missing.",
        flags.backfill_flags,
        (
            *(*_HISTORY, "period", "gap_fill_window", "cloudwatch.enabled", "cloudwatch.endpoint_url"),
            *("cloudwatch.memory", "cloudwatch.max_usd_per_day", "aws", *_WORKERS, "data_dir", "log.format"),
        ),
        "--since TIME [--worker ID ...] [--dry-run] [--max-usd DOLLARS]",
        f"""\
{_TIME}
example:
  cml-worker-exporter backfill --config.file exporter.yml --since 14d --dry-run
  cml-worker-exporter backfill --config.file exporter.yml --since 14d --max-usd 0.05

docs/backfill.md explains what is filled, what it costs, and what happens after an interruption.
""",
        statuses="0 done, 1 it failed or samples are still missing, 2 wrong command line, or there is no worker",
    ),
    "verify": Command(
        run.verify,
        "compare the history with CloudWatch",
        "Compare CPU and memory of the history with CloudWatch, value by value, and name what is missing, extra,\n"
        "different or stored twice. Prints the price first, changes nothing. May be interrupted at any moment: the\n"
        "same command continues and repeats no completed call. An exporter may run at the same time. With --repair,\n"
        "print which samples are stored twice, and remove the copies after a confirmation.",
        flags.verify_flags,
        (
            *(*_HISTORY, "period", "absence_timeout", "cloudwatch.enabled", "cloudwatch.interval", "cloudwatch.endpoint_url"),
            *("cloudwatch.memory", "cloudwatch.max_usd_per_day", "aws", *_WORKERS, "data_dir", "log.format"),
        ),
        "--since TIME [--worker ID ...] [--sample PERCENT] [--max-usd DOLLARS] [--dry-run] [--json] [--quiet]\n"
        "       cml-worker-exporter verify --repair --since TIME [--worker ID ...] [--dry-run] [--yes]",
        f"""\
{_TIME}
example:
  cml-worker-exporter verify --config.file exporter.yml --since 7d --dry-run
  cml-worker-exporter verify --config.file exporter.yml --since 7d --sample 5% --max-usd 0.01
  cml-worker-exporter verify --config.file exporter.yml --since 1d --json > verify.json
  cml-worker-exporter verify --config.file exporter.yml --since 30d --repair --dry-run

docs/verify.md explains what is compared, what each kind of difference means, and what it costs.
""",
        failure=3,
        statuses="0 all equal, 1 a difference was found, 2 wrong command line, or there is no worker,\n"
        "3 it failed, or not all could be compared and the rest is equal",
    ),
    "import-events": Command(
        run.import_events,
        "fill older gaps of the history from the manager's events",
        "Write what the manager's events tell of a worker (CPU, memory, labs, status, at the time of the event) into\n"
        "periods that the history lacks and `serve` no longer fills. Prints the plan first: events by type, periods,\n"
        "what is skipped and why. Costs nothing, makes no AWS call, and never changes a sample that is there.",
        flags.import_events_flags,
        (*(*_HISTORY, "events", "period", "gap_fill_window", *_WORKERS, "data_dir", "log.format"),),
        "--since TIME [--until TIME] [--worker ID ...] [--dry-run] [--quiet]",
        f"""\
{_TIME}
example:
  cml-worker-exporter import-events --config.file exporter.yml --since 90d --dry-run
  cml-worker-exporter import-events --config.file exporter.yml --since 90d

May be interrupted at any moment: the same command continues. An exporter may run at the same time. Where CloudWatch
still has datapoints (63 days), run `backfill` first: its values are the more exact ones, and a period is written once.

The user of mongodb.uri needs `find` on the events, which only this command uses; see docs/manager.md.
docs/import-events.md explains which events and fields are read, and which period a value belongs to.
""",
        statuses="0 done or nothing to do, 1 it failed or MongoDB rejects a sample, 2 wrong command line",
    ),
    "export": Command(
        run.export,
        "write the history as a file, or copy it into another database",
        "Write the history of all or some workers: as OpenMetrics text that promtool turns into blocks of Prometheus, as\n"
        "CSV, InfluxDB's line protocol, or Parquet. A file appears under its name only when it is complete.\n"
        "With --to, copy it into VictoriaMetrics, InfluxDB, or PostgreSQL: may be interrupted at any moment, the same\n"
        "command continues. Exit status 1 when the database has fewer samples than were sent.",
        flags.export_flags,
        (*_MONGODB, "mongodb.history", "period", "data_dir", "log.format"),
        "--since TIME [--until TIME] [--tz ZONE] [--worker ID ...] [--format FORMAT] [--output FILE] [--json]\n"
        "       cml-worker-exporter export --since TIME [--until TIME] [--worker ID ...] --to ADDRESS [--rate N] [--json]",
        f"""\
{_TIME}
example:
  cml-worker-exporter export --config.file exporter.yml --since 30d --output history.om
  promtool tsdb create-blocks-from openmetrics --max-block-duration=744h history.om /var/lib/prometheus
  cml-worker-exporter export --config.file exporter.yml --since 90d --to victoriametrics+http://127.0.0.1:8428
  cml-worker-exporter export --config.file exporter.yml --since 90d --to influxdb+http://user:password@127.0.0.1:8086/cml
  cml-worker-exporter export --config.file exporter.yml --since 90d --to postgresql://user:password@127.0.0.1/cml

docs/export.md explains what is in the file, and how to make Prometheus keep such old blocks.
""",
        statuses="0 done, 1 it failed, or the other database has fewer samples than were sent, 2 wrong command line",
    ),
    "purge": Command(
        run.purge,
        "delete all stored data of a worker",
        "Print what is stored of a worker (samples and inventory entry), and delete it permanently after its id is\n"
        "typed at the terminal, or with --yes. A worker that an exporter may still write is refused.",
        flags.purge_flags,
        (*_MONGODB, "mongodb.workers", "mongodb.history", "period", "gap_fill_window", *_WORKERS, "log.format"),
        "--worker ID [--worker ID ...] [--yes] [--even-if-listed]",
        """\
example:
  cml-worker-exporter purge --config.file exporter.yml --worker 2f1c… --worker 77ab…

The user of mongodb.uri needs `remove` on the history and the inventory, which only this command uses; see docs/manager.md.
""",
        statuses="0 deleted, 1 it failed, or nothing was deleted, 2 wrong command line",
    ),
    "migrate": Command(
        run.migrate,
        "print settings made from a configuration of YACE or cloudwatch_exporter",
        "Read a configuration of YACE or cloudwatch_exporter, and print settings with its roles, regions, and period.\n"
        "What has no counterpart is named in comments.",
        flags.migrate_flags,
        usage="FILE",
        notes="""\
example:
  cml-worker-exporter migrate yace.yml > exporter.yml

docs/migration.md has the map of metrics, settings, and dashboards.
""",
    ),
    "assets": Command(
        run.assets,
        "write the files for Prometheus, Grafana, and systemd into a folder",
        "List the files for other programs that this version brings: Prometheus's configuration, rules and alerts with their\n"
        "runbook, Grafana's dashboards, systemd's unit. With --output, write them; files with another content are kept,\n"
        "and nothing is written, unless --force is given.",
        flags.assets_flags,
        usage="[--output DIR] [--force] [--exporter HOST:PORT] [--alertmanager HOST:PORT] [--json]",
        notes="""\
example:
  cml-worker-exporter assets --output /etc/cml --exporter 10.0.0.7:9877
  prometheus --config.file=/etc/cml/prometheus/prometheus.yml
""",
        statuses="0 done, 1 a file has another content or the folder cannot be written, 2 wrong command line",
    ),
}

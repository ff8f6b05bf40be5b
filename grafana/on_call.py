"""On-call dashboard: what is wrong now, since when, what it means, and what to do; for a phone in the night."""

import re
from dataclasses import replace
from pathlib import Path

import yaml

from exporter.core.catalog import INFO
from grafana import conventions
from grafana.panels import Column, Dashboard, Json, Panel, Query, Style, choices, instant, stat, table, timeline, variable
from grafana.promql import alerts_firing, alerts_since

_RULES = Path(__file__).parents[1] / "prometheus" / "rules"
SUMMARIES = {
    rule["alert"]: rule["annotations"]["summary"]
    for file in sorted(_RULES.glob("*_alerts.yml"))
    for group in yaml.safe_load(file.read_text())["groups"]
    for rule in group["rules"]
}
"""Alert → what it means, in one sentence: the summary of its rule."""

FIRST_STEPS = {
    "CMLWorkerCPUHigh": "Stop or move labs, or use a larger instance type.",
    "CMLWorkerMemoryHigh": "Stop labs, or use a larger instance type.",
    "CMLWorkerIdle": "Stop or terminate the worker. This can wait until morning.",
    "CMLWorkerEC2CheckImpaired": "Stop and start the worker: it moves to another host.",
    "CMLWorkerDiskNearlyFull": "Delete labs and images, or enlarge the EBS volume.",
    "CMLWorkerNotReady": "Restart CML or the worker.",
    "CMLWorkerUnlicensed": "Register the license in the manager; check its token.",
    "CMLWorkerFailed": "Repair or terminate the worker in the manager.",
    "CMLWorkerStuck": "Compare with EC2; let the manager refresh the worker.",
    "CMLWorkerMetricsMissing": "Check instance id and region in the worker document.",
    "CMLWorkerMetricsStale": "Memory: start the CloudWatch agent. CPU: see the runbook.",
    "CMLFleetShrinking": "Ask who stopped workers. On purpose: do nothing.",
    "CMLFleetGone": "Look for the worker documents in MongoDB.",
    "CMLExporterDown": "Start the exporter: status and labs are lost meanwhile.",
    "CMLExporterNoLeader": "Read history in /-/ready: it says why nothing is written.",
    "CMLExporterSourceFailing": "Read /-/ready: the error says what to change.",
    "CMLExporterSourceSlow": "Check the load of MongoDB, proxies, and throttling.",
    "CMLExporterCloudWatchThrottled": "Raise cloudwatch.interval, or AWS's quota.",
    "CMLExporterBudgetSpent": "Raise cloudwatch.max_usd_per_day, or wait until 00:00 UTC.",
    "CMLExporterGapFillingPaused": "Once: nothing. Every day: raise the budget.",
    "CMLExporterCostAboveBudget": "Divide the budget among the exporters, or stop one.",
    "CMLExporterOutboxGrowing": "Check writes to MongoDB and reads of the sources.",
    "CMLExporterMirrorFailing": "Restore MongoDB. Samples wait in the outbox.",
    "CMLExporterOutboxNotWritable": "Make room on the disk of data_dir, or mount it writable.",
    "CMLExporterOutboxDiskLow": "Make room on the disk of data_dir, or enlarge it.",
    "CMLExporterOutboxReplaced": "Check the disk of data_dir; replace a failing one.",
    "CMLExporterSamplesDropped": "Stopped workers: nothing. Else see the runbook.",
    "CMLExporterSamplesUnavailable": "Find out why CloudWatch gave no final answer.",
    "CMLExporterSamplesRevised": "Raise settle_delay. This can wait until morning.",
    "CMLExporterShardMissing": "Start the missing exporter, or stop those of an old number.",
    "CMLExporterHistoryDuplicates": "Find a second writer, then run verify --repair.",
    "CMLExporterHistoryReplaced": "Run backfill since the time of the backup.",
    "CMLExporterOTLPFailing": "Start the collector, or correct otlp.endpoint.",
    "CMLExporterForwardBehind": "Read forward in /-/ready: it says what is wrong.",
    "CMLExporterForwardDropped": "Copy what is missing with export --to.",
    "CMLExporterSamplesRejected": "Remove the validator that rejects the samples.",
}
"""Alert → the first step; the rest is in the runbook."""

_ANY = 'alertname=~"CML.+"'
_FIRING = f'ALERTS{{{_ANY},alertstate="firing"}}'
_CHOSEN = 'alertname=~"$alertname",region=~"$region|",worker_id=~"$workers|"'
"""Alerts about the exporter have neither a region nor a worker."""
_ROWS = 100
"""Rows of the table of each alert: a fault of the whole fleet must not fill the phone."""
_TEXT = {"custom.minWidth": 260, "custom.inspect": True, "custom.cellOptions": {"type": "auto", "wrapText": True}}
"""Of a sentence: Grafana 11.3 and later wrap it; earlier ones shorten it and show all of it at a touch."""


def words(alert: str) -> str:
    """Return the name of an alert as words without the prefix CML: CMLWorkerCPUHigh → Worker CPU high."""
    first, *rest = re.findall(r"CloudWatch|EC2|[A-Z]+(?![a-z])|[A-Z][a-z]+", alert.removeprefix("CML"))
    return " ".join((first, *(each if each.isupper() or each in ("CloudWatch", "EC2") else each.lower() for each in rest)))


def _mapped(texts: dict[str, str]) -> list[Json]:
    return [{"type": "value", "options": {value: {"text": text} for value, text in texts.items()}}]


_RUNBOOK_LINK = conventions.link_cell("Open the runbook", '${__data.fields["Runbook"]}#${__data.fields["Anchor"]}')
_ALERT_CELL: Json = {
    "mappings": _mapped({alert: words(alert) for alert in SUMMARIES}),
    "custom.minWidth": 200,
}
_HIDDEN = {"custom.hidden": True}


def _now() -> list[Panel]:
    colors = {name: {"color": {"mode": "fixed", "fixedColor": color}} for name, color in conventions.SEVERITY_COLORS.items()}
    return [
        stat(
            "Firing now",
            "Is anything wrong?",
            "Number of alerts that fire now, by severity. Several workers with the same fault count once each.",
            [instant(f"count by (severity) ({alerts_firing()})", "{{severity}}")],
            Style("none", "Nothing is wrong", decimals=0, minimum=0, fixed=colors),
            width=24,
            height=3,
        ),
        table(
            "What is wrong",
            "What is wrong, since when, what does it mean, and what do I do?",
            "Alerts that fire now, the most severe first, with the first step. Touch a step for the section of the runbook, an "
            "alert for its workers below.",
            [
                instant("sort_desc(cml:alert_severity:explained)"),
                instant(f"1000 * min by (alertname) ({alerts_since()})"),
                instant(f"count by (alertname) ({alerts_firing()})"),
            ],
            (
                Column("Value #A", "Severity", {**conventions.SEVERITY_CODE_CELL, "custom.width": 80}),
                Column("alertname", "Alert", {**_ALERT_CELL, **conventions.ALERT_LINK}),
                Column("Value #B", "Since", {**conventions.MOMENT_CELL, "custom.minWidth": 110}),
                Column("means", "What it means", {"mappings": _mapped(SUMMARIES), **_TEXT}),
                Column("step", "What to do", {"mappings": _mapped(FIRST_STEPS), **_TEXT, **_RUNBOOK_LINK}),
                Column("Value #C", "Number"),
                Column("anchor", "Anchor", {"mappings": _mapped({each: each.lower() for each in SUMMARIES}), **_HIDDEN}),
                Column("url", "Runbook", _HIDDEN),
            ),
            Style("none", "Nothing is wrong"),
            sort="Severity",
            height=10,
        ),
    ]


def _exporter() -> list[Panel]:
    return [
        stat(
            "Exporter",
            "Can the numbers be trusted?",
            "Whether Prometheus can scrape an exporter; while it cannot, every other value is missing.",
            [instant(f"max(up {conventions.OF_EXPORTERS})")],
            Style("none", "Not scraped", mappings=conventions.UP_DOWN),
            width=6,
            height=3,
        ),
        conventions.data_age(width=6, height=3),
        stat(
            "Sources failing",
            "Does reading MongoDB or CloudWatch fail?",
            "Sources whose last read failed: the worker documents in MongoDB, and CloudWatch in each region.",
            [instant("sum(1 - cml_exporter:source_up:min)")],
            replace(conventions.COUNT, empty="Exporter not seen", thresholds=((1, "red"),)),
            width=6,
            height=3,
        ),
        stat(
            "Writes the history",
            "Are samples lost?",
            "Whether an exporter of every shard holds the lease to write the history. Without one, status and labs are lost.",
            [instant("cml_exporter:leader:min")],
            Style("none", "Exporter not seen", mappings={"1": ("yes", "green"), "0": ("no", "red")}),
            width=6,
            height=3,
        ),
    ]


def _each() -> Panel:
    chosen = f"topk({_ROWS}, cml:alert_active_timestamp_seconds:named{{{_CHOSEN}}})"
    return table(
        "Whom it concerns",
        "Which worker, region, or source is it?",
        "Each alert that fires now, with its labels. The link of an alert's message shows only its own rows; choose All above "
        f"for all of them. At most {_ROWS} rows, the newest ones.",
        [instant(f"1000 * {chosen}")],
        (
            Column("alertname", "Alert", _ALERT_CELL),
            Column("worker", "Worker", conventions.ROW_LINK),
            Column("Value", "Since", {**conventions.MOMENT_CELL, "custom.minWidth": 110}),
            Column("detail", "Detail"),
            Column("region", "Region"),
            Column("severity", "Severity", conventions.SEVERITY_CELL),
            Column("worker_id", "Worker id"),
        ),
        Style("none", "Nothing is wrong, or not with what is chosen above"),
        sort="Since",
        height=8,
    )


def _before() -> Panel:
    return timeline(
        "When it fired",
        "Since when, and has it happened before?",
        "Each alert; red while it fired for at least one worker, source, or exporter.",
        Query(f"max by (alertname) ({_FIRING})", "{{alertname}}"),
        Style("none", "No alert fired in this time range", mappings={"1": ("firing", "red")}),
        height=8,
    )


DASHBOARD = Dashboard(
    uid=conventions.ON_CALL,
    title="CML / On call",
    description="What is wrong now, since when, what it means, and what to do. Alerts link to it.",
    items=[*_now(), *_exporter(), _each(), _before()],
    variables=[
        choices("alertname", "Alert", "The alerts that the lower table shows.", tuple(sorted(SUMMARIES))),
        conventions.REGION,
        variable(
            "workers",
            "Workers",
            "The workers whose alerts the lower table shows, by id.",
            f'label_values({INFO.name}{{region=~"$region"}}, worker_id)',
        ),
    ],
    annotations=[conventions.alerts(), conventions.RESTARTS],
    time_from="now-12h",
)

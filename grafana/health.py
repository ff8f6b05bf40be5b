"""Exporter health dashboard: sources, CloudWatch cost, writing of the history, the process."""

from dataclasses import replace

from exporter.core.catalog import INFO, SAMPLE_TIME
from grafana import conventions
from grafana.panels import Dashboard, Panel, Query, Row, Style, bars, graph, instant, name_stat, stat, timeline, variable
from grafana.promql import (
    WORKER,
    counted,
    counted_by_exporter,
    exporter_metric,
    in_status,
    threshold,
)

_JOB = 'job="$job"'
_INSTANCE = 'instance=~"$instance"'
_TARGET = f"{_JOB},{_INSTANCE}"
"""Of series that other jobs have, too."""
_EACH = "5m"
"""The exporter works every 5 minutes; narrower columns would alternate between full and empty."""
_YES_NO = {"1": ("yes", "green"), "0": ("no", "red")}
_UP_DOWN = {"1": ("up", "green"), "0": ("down", "red")}
_NEVER = Style("none", "None yet", decimals=0, minimum=0)
_FAILURES = replace(_NEVER, thresholds=((1, "red"),))
_DOLLARS = Style("currencyUSD", "CloudWatch is not used", decimals=4, minimum=0)
_THROTTLED = 'code=~".*Throttl.*|.*LimitExceeded.*|TooManyRequests.*|SlowDown|429"'
"""As in the alert CMLExporterCloudWatchThrottled."""


def _metric(name: str) -> str:
    """Return a selector of an exporter metric: its job is that of the chosen exporters, also when all of them are chosen."""
    return exporter_metric(name, _INSTANCE)


def _now_row() -> list[Panel]:
    return [
        stat(
            "Exporter",
            "Is the exporter up?",
            "Whether Prometheus can scrape the exporter. With several exporters, one is enough.",
            [instant(f"max(up{{{_TARGET}}})")],
            Style("none", "Not scraped", mappings=_UP_DOWN, thresholds=((0, "red"), (1, "green"))),
            width=6,
            height=3,
        ),
        stat(
            "Writes the history",
            "Does an exporter write the history?",
            "Whether an exporter of every shard holds the lease to write. Without a writer, the history lacks status and labs "
            "of this time.",
            [instant("cml_exporter:leader:min")],
            Style("none", "Exporter not seen", mappings=_YES_NO, thresholds=((0, "red"), (1, "green"))),
            width=6,
            height=3,
        ),
        conventions.data_age(width=6, height=3),
        stat(
            "Sources failing",
            "Does reading MongoDB or CloudWatch fail?",
            "Sources whose last read failed: the worker documents in MongoDB, and CloudWatch in each region.",
            [instant("sum(1 - cml_exporter:source_up:min)")],
            replace(_FAILURES, empty="Exporter not seen"),
            width=6,
            height=3,
        ),
        stat(
            "Samples in the outbox",
            "Is the history up to date?",
            "Samples that are not in the history yet. Two to four per worker are normal, without a CloudWatch agent five to "
            "eight; after an outage there are more until the gaps are filled.",
            [instant("cml_exporter:outbox_samples:sum")],
            replace(conventions.COUNT, empty="Exporter not seen"),
            width=8,
            height=3,
        ),
        stat(
            "CloudWatch today",
            "What does CloudWatch cost?",
            "Estimated cost of today's requests (since 00:00 UTC) at AWS's list price, and the daily budget if one is set.",
            [
                instant(f"sum({_metric('cloudwatch_day_cost_dollars')})", "spent"),
                instant("cml_exporter:cloudwatch_budget_dollars:sum", "budget"),
            ],
            replace(_DOLLARS, decimals=2),
            width=8,
            height=3,
        ),
        name_stat(
            "Version",
            "Which version runs?",
            "Version and source revision of the exporter.",
            [instant(f"max by (version, revision) ({_metric('build_info')})", "{{version}} {{revision}}")],
            Style("none", "Exporter not seen"),
            width=8,
            height=3,
        ),
    ]


ERRORS = {
    "cloudwatch_request_failures": "CloudWatch requests failed",
    "cloudwatch_malformed": "malformed parts of answers",
    "mirror_failures": "writes to MongoDB failed",
    "forward_failures": "writes to other databases failed",
    "outbox_write_failures": "writes to the outbox failed",
    "samples_unavailable": "values recorded as absent",
    "samples_lost": "samples lost",
    "history_replaced": "history replaced",
}
"""Counters of what goes wrong, and their legends."""


def _at_a_glance() -> list[Panel]:
    return [
        timeline(
            "Sources",
            "When did reads of a source fail?",
            "Each source; green while its last read succeeded, by an exporter of every shard.",
            Query("max by (source, region) (cml_exporter:source_up:min)", "{{source}} {{region}}"),
            Style("none", "Exporter not seen", mappings={"1": ("ok", "green"), "0": ("failed", "red")}),
            width=12,
            height=8,
        ),
        graph(
            "Errors",
            "Does anything fail, and what?",
            "Everything that failed, per interval. The rows below say why: requests by AWS's code, writes by reason.",
            [Query(counted("errors"), "{{counter}}")],
            replace(
                _NEVER,
                empty="Nothing has failed",
                fixed={counter: {"displayName": legend} for counter, legend in ERRORS.items()},
            ),
            columns=True,
            stacked=True,
            interval=_EACH,
        ),
    ]


def _sources() -> list[Panel]:
    times = f"max by ({WORKER}, metric) ({SAMPLE_TIME.name})"
    age = f"max by (metric) (time() - {times} and on ({WORKER}) {in_status('running', '')})"
    return [
        graph(
            "Age of each source",
            "How old is the data of each source?",
            "Time since the last successful read of each source, by the shard for which it is longest. It normally rises to 5 "
            "minutes and falls again.",
            [
                Query(
                    "time() - cml_exporter:source_last_success_timestamp_seconds:min",
                    "{{source}} {{region}}",
                )
            ],
            replace(conventions.CLOCK, empty="Nothing read yet", thresholds=((900, "red"),)),
            width=24,
            height=7,
        ),
        graph(
            "Duration of reads",
            "Is a source slow?",
            f"Duration of the last read. An alert fires above {threshold_of('mongodb'):g} s for MongoDB and above "
            f"{threshold_of('cloudwatch'):g} s for CloudWatch.",
            [Query("cml_exporter:source_duration_seconds:max", "{{source}} {{region}}")],
            replace(
                conventions.SECONDS,
                empty="Nothing read yet",
                thresholds=((threshold_of("mongodb"), conventions.AMBER), (threshold_of("cloudwatch"), "red")),
            ),
        ),
        graph(
            "Age of the workers' values",
            "How old is the oldest value of a running worker?",
            "The oldest CPU value, memory value, and status of any running worker. CPU and memory are normally 5 to 10 "
            "minutes old.",
            [Query(age, "oldest {{metric}}")],
            replace(conventions.CLOCK, empty="No running worker", thresholds=conventions.STALE),
        ),
        bars(
            "Worker documents skipped",
            "Which workers are missing from all dashboards?",
            "Worker documents that the exporter cannot use, by reason; its log names them.",
            instant("max by (reason) (cml_exporter:workers_skipped:sum)", "{{reason}}"),
            replace(_FAILURES, empty="None skipped"),
            width=12,
            height=5,
        ),
        bars(
            "Workers without CPU",
            "Which running workers have no CPU value?",
            "Running workers without a current CPU value, by region. A new worker is listed here for up to 15 minutes.",
            instant("max by (region) (cml_region:workers_without_cpu:count)", "{{region}}"),
            replace(_FAILURES, empty="All running workers have one", thresholds=((1, conventions.AMBER),)),
            width=12,
            height=5,
        ),
    ]


_BUDGET = {
    state: {"color": {"mode": "fixed", "fixedColor": color}}
    for state, color in (("ok", "green"), ("gap_filling_paused", conventions.AMBER), ("polling_paused", "red"))
}


def threshold_of(source: str) -> float:
    """Return the alert threshold for the duration of one read of a source, in seconds."""
    return threshold("source_duration_seconds", source=source)


def _cloudwatch() -> list[Panel]:
    throttled = f"sum by (region) ({counted('cloudwatch_request_failures', matchers=_THROTTLED)})"
    share = f"{throttled} / (sum by (region) ({counted('cloudwatch_requests')}) > 0)"
    return [
        graph(
            "CloudWatch requests",
            "How many CloudWatch requests are sent?",
            "Requests to CloudWatch per interval of the graph, including retries.",
            [Query(counted("cloudwatch_requests"), "{{operation}} {{region}}")],
            replace(_NEVER, empty="CloudWatch is not used"),
            columns=True,
            stacked=True,
            interval=_EACH,
        ),
        graph(
            "Failed requests by error",
            "Why do CloudWatch requests fail?",
            "Failed requests per interval, by AWS error code. AccessDenied: extend the IAM policy. Throttling: raise the "
            "quota or the poll interval.",
            [Query(counted("cloudwatch_request_failures"), "{{code}} {{operation}} {{region}}")],
            replace(_FAILURES, empty="No request has failed", thresholds=()),
            columns=True,
            stacked=True,
            interval=_EACH,
        ),
        graph(
            "Throttled share",
            "Is AWS throttling us?",
            "Share of the requests that AWS throttled. The alert fires above the red line.",
            [Query(share, "{{region}}")],
            Style(
                "percentunit", "Nothing throttled", minimum=0, maximum=1, thresholds=((threshold("throttled_ratio"), "red"),)
            ),
            width=8,
            interval=_EACH,
        ),
        graph(
            "Metrics requested",
            "What does AWS bill?",
            "Metrics requested per interval, by region; AWS bills each of them.",
            [Query(counted("cloudwatch_metrics_requested"), "{{region}}")],
            replace(_NEVER, empty="CloudWatch is not used"),
            width=8,
            columns=True,
            stacked=True,
            interval=_EACH,
        ),
        graph(
            "Estimated cost of today",
            "Does today's cost stay within the budget?",
            "Estimated cost since 00:00 UTC, cost since the exporter started, and the daily budget if one is set.",
            [
                Query(f"sum({_metric('cloudwatch_day_cost_dollars')})", "today"),
                Query(f"sum({_metric('cloudwatch_estimated_cost_dollars_total')})", "since the start"),
                Query("cml_exporter:cloudwatch_budget_dollars:sum", "budget"),
            ],
            _DOLLARS,
            width=8,
        ),
        graph(
            "Cost of HTTP readers today",
            "How much do HTTP readers spend?",
            "Estimated cost since 00:00 UTC of `/resources` and of history older than MongoDB's, and the readers' share of the "
            "budget. Beyond it these routes answer 429.",
            [
                Query(f"sum({_metric('cloudwatch_reader_day_cost_dollars')})", "today"),
                Query("cml_exporter:cloudwatch_reader_budget_dollars:sum", "share of the budget"),
            ],
            _DOLLARS,
            width=8,
        ),
        graph(
            "Refused reads",
            "Are HTTP readers refused?",
            "CloudWatch requests on behalf of HTTP readers that were not sent because their share of the budget is spent.",
            [Query(counted("cloudwatch_reader_requests_refused"), "refused")],
            replace(_NEVER, empty="None was refused"),
            width=8,
            columns=True,
            interval=_EACH,
        ),
        graph(
            "Malformed parts of answers",
            "Does CloudWatch send nonsense?",
            "Parts of CloudWatch's answers dropped per interval because they are malformed, by kind. Behind a proxy or another "
            "endpoint, look there first.",
            [Query(counted("cloudwatch_malformed"), "{{kind}}")],
            replace(_FAILURES, empty="Nothing was malformed", thresholds=()),
            width=8,
            columns=True,
            stacked=True,
            interval=_EACH,
        ),
        name_stat(
            "Budget",
            "Does the budget limit polling?",
            "ok: no limit reached. gap_filling_paused: only running workers are polled. polling_paused: CloudWatch is not "
            "polled until 00:00 UTC.",
            [instant("cml_exporter:cloudwatch_budget_state:max == 1", "{{state}}")],
            Style("none", "Exporter not seen", fixed=_BUDGET),
            width=12,
        ),
        stat(
            "Cost of the last 24 hours",
            "What does a day cost?",
            "Estimated cost of the metrics requested in the last 24 hours.",
            [instant(counted("cloudwatch_estimated_cost_dollars", "1d"))],
            _DOLLARS,
            width=12,
        ),
        timeline(
            "AWS accounts",
            "Which AWS account fails?",
            "Each account in each region; green while its last calls succeeded. Shown where a region has several accounts.",
            Query("cml_exporter:cloudwatch_account_up:min", "{{account}} {{region}}"),
            Style("none", "One account per region", mappings={"1": ("ok", "green"), "0": ("failed", "red")}),
            width=24,
            height=5,
        ),
    ]


def _history() -> list[Panel]:
    oldest = "time() - cml_exporter:outbox_oldest_timestamp_seconds:min"
    mirrored = "time() - cml_exporter:mirror_last_success_timestamp_seconds:min"
    forwarded = "time() - cml_exporter:forward_last_success_timestamp_seconds:min"
    return [
        graph(
            "Outbox by state",
            "Does the outbox grow?",
            "Samples in the outbox. observed: waits for CloudWatch. final: waits for MongoDB. rejected: MongoDB rejected it "
            "permanently.",
            [Query("cml_exporter:outbox_samples:sum_by_state", "{{state}}")],
            replace(_NEVER, empty="Exporter not seen"),
            width=8,
            stacked=True,
        ),
        graph(
            "Age of samples and writes",
            "How far behind is the history?",
            "Time since the start of the oldest sample in the outbox, and since the last write that emptied it, of the shard "
            "that is furthest behind. One hour is normal for workers of which CloudWatch has no datapoints.",
            [Query(oldest, "oldest sample"), Query(mirrored, "last write")],
            replace(conventions.CLOCK, empty="Nothing written yet", thresholds=((7200, conventions.AMBER), (86400, "red"))),
            width=8,
        ),
        graph(
            "Samples mirrored",
            "Is the history being written?",
            "Samples that the mirror processed per interval, by result.",
            [Query(counted("mirror_samples"), "{{result}}")],
            replace(_NEVER, empty="None written yet"),
            width=8,
            columns=True,
            stacked=True,
            interval=_EACH,
        ),
        graph(
            "Failed writes",
            "Why do writes of the history fail?",
            "Failed attempts to write the history, by reason. No sample is lost: they wait in the outbox.",
            [Query(counted_by_exporter("mirror_failures", _INSTANCE, "reason"), "{{instance}} {{reason}}")],
            replace(_NEVER, empty="No write has failed"),
            width=6,
            columns=True,
            stacked=True,
            interval=_EACH,
        ),
        graph(
            "Gaps filled, dropped, lost",
            "Were gaps filled, and were samples dropped or lost?",
            "Samples written for periods that no exporter observed in time (gap-filled), samples without any value, which "
            "are not written (dropped), and samples of periods that were too old to be filled (lost).",
            [
                Query(counted("samples_gap_filled"), "gap-filled"),
                Query(counted("samples_dropped"), "dropped"),
                Query(counted("samples_lost"), "lost"),
            ],
            replace(_NEVER, empty="Exporter not seen"),
            width=6,
            columns=True,
            interval=_EACH,
        ),
        graph(
            "Values recorded as absent",
            "Which values are missing permanently?",
            "CPU and memory values for which CloudWatch returned no final answer in time; the history lacks them.",
            [Query(counted("samples_unavailable"), "{{metric}}")],
            replace(_NEVER, empty="None recorded as absent"),
            width=6,
            columns=True,
            stacked=True,
            interval=_EACH,
        ),
        graph(
            "Late and revised values",
            "Does CloudWatch change values that are final?",
            "CPU and memory values that CloudWatch published after they had been recorded as absent (late), or changed after "
            "they were final (revised), by metric. The history keeps what it has.",
            [Query(counted(f"samples_{kind}"), f"{kind} {{{{metric}}}}") for kind in ("late", "revised")],
            replace(_NEVER, empty="Exporter not seen"),
            width=6,
            columns=True,
            stacked=True,
            interval=_EACH,
        ),
        graph(
            "Doubled and lost samples",
            "Does the history have each sample once?",
            "Samples of the last day that are stored twice (doubled), and how often the history lost samples that MongoDB had "
            "acknowledged (replaced), by reason.",
            [
                Query(f"max({_metric('history_duplicates')})", "doubled"),
                Query(counted("history_replaced"), "replaced: {{reason}}"),
            ],
            replace(_NEVER, empty="Exporter not seen", thresholds=((1, "red"),)),
            width=24,
            columns=True,
            interval=_EACH,
        ),
        graph(
            "Other databases: age",
            "Do the databases of history.forward have all samples?",
            "Time since the oldest sample that a database lacks was mirrored, and since the last write that it acknowledged, "
            "of the shard that is furthest behind.",
            [
                Query(f"max by (target) ({_metric('forward_lag_seconds')})", "{{target}}: oldest sample"),
                Query(forwarded, "{{target}}: last write"),
            ],
            replace(conventions.CLOCK, empty="No other database is configured", thresholds=((1800, conventions.AMBER),)),
            width=12,
        ),
        graph(
            "Other databases: samples",
            "How many samples do they get, and how many wait or are dropped?",
            "Samples that a database of history.forward has acknowledged and will never get, per interval, and those that wait "
            "for it in the outbox.",
            [
                Query(counted("forward_samples"), "{{target}}: forwarded"),
                Query(counted("forward_samples_dropped"), "{{target}}: dropped"),
                Query(f"sum by (target) ({_metric('forward_pending_samples')})", "{{target}}: waiting"),
            ],
            replace(_NEVER, empty="No other database is configured"),
            width=12,
            interval=_EACH,
        ),
        graph(
            "OpenTelemetry pushes",
            "Does the OpenTelemetry collector get the gauges?",
            "Pushes to the collector of the setting otlp.endpoint, by result.",
            [Query(counted_by_exporter("otlp_pushes", _INSTANCE, "result"), "{{instance}} {{result}}")],
            replace(_NEVER, empty="No OpenTelemetry collector is configured"),
            width=24,
            columns=True,
            interval=_EACH,
        ),
        graph(
            "Outbox failures",
            "Can the exporter write its outbox?",
            "Failed transactions on the outbox per interval, by reason, and damaged outboxes that were set aside. While the "
            "outbox cannot be written, status and labs do not reach the history.",
            [
                Query(counted_by_exporter("outbox_write_failures", _INSTANCE, "reason"), "{{instance}} {{reason}}"),
                Query(counted_by_exporter("outbox_replaced", _INSTANCE), "{{instance}} set aside"),
            ],
            replace(_NEVER, empty="Exporter not seen"),
            width=12,
            columns=True,
            stacked=True,
            interval=_EACH,
        ),
        graph(
            "Disk of the outbox",
            "Does a day without MongoDB fit on the disk?",
            "Free space on the disk of data_dir, and the space that a day of samples of all workers would need.",
            [
                Query(f"min({_metric('outbox_free_bytes')})", "free"),
                Query(f"max({_metric('outbox_day_bytes')})", "a day of samples"),
            ],
            Style("bytes", "Exporter not seen", minimum=0),
            width=12,
        ),
    ]


def _process() -> list[Panel]:
    return [
        graph(
            "Scrape size",
            "How large is a scrape?",
            "Samples per scrape; about 17 per worker.",
            [Query(f"scrape_samples_scraped{{{_TARGET}}}", "{{instance}}")],
            replace(conventions.COUNT, empty="Not scraped"),
            width=6,
        ),
        graph(
            "Scrape duration",
            "How long does a scrape take?",
            "Duration of a scrape as measured by Prometheus; the timeout is 10 seconds.",
            [Query(f"scrape_duration_seconds{{{_TARGET}}}", "{{instance}}")],
            replace(conventions.SECONDS, empty="Not scraped", thresholds=((1, conventions.AMBER), (5, "red"))),
            width=6,
        ),
        graph(
            "Memory of the exporter",
            "How much memory does the exporter use?",
            "Resident memory of the exporter process.",
            [Query(f"process_resident_memory_bytes{{{_TARGET}}}", "{{instance}}")],
            Style("bytes", "Not scraped", minimum=0),
            width=6,
        ),
        graph(
            "CPU of the exporter",
            "How much CPU does the exporter use?",
            "CPU cores in use; 1 means one core used fully.",
            [Query(f"rate(process_cpu_seconds_total{{{_TARGET}}}[$__rate_interval])", "{{instance}}")],
            Style("none", "Not scraped", decimals=2, minimum=0),
            width=6,
        ),
        graph(
            "Connections of the web server",
            "Does a client use up the web server?",
            "Open connections, and connections per second that were closed because of a limit (docs/web.md), by reason.",
            [
                Query(_metric("http_connections"), "{{instance}} open"),
                Query(
                    f"sum by (instance, reason) (rate({_metric('http_connections_closed_total')}[$__rate_interval])) > 0",
                    "{{instance}} closed: {{reason}}",
                ),
            ],
            Style("none", "Not scraped", minimum=0),
            width=24,
        ),
        graph(
            "Workers listed",
            "Does the exporter list all workers?",
            "Workers that each exporter lists on /metrics. The line ends if the collector hangs.",
            [Query(f"count by (instance) ({INFO.name}{{{_INSTANCE}}})", "{{instance}}")],
            conventions.COUNT,
            width=8,
        ),
        graph(
            "Leader",
            "Which exporter writes the history?",
            "1 for the exporter that holds the lease.",
            [Query(_metric("leader"), "{{instance}}")],
            Style("none", "Exporter not seen", decimals=0, minimum=0, maximum=1),
            width=8,
        ),
        graph(
            "Age of the leader's snapshot",
            "How old is what an exporter that stands by shows of CloudWatch?",
            "Time since the exporter that holds the lease polled it. An exporter that polls CloudWatch itself has no line.",
            [Query(f"time() - {_metric('leader_snapshot_timestamp_seconds')}", "{{instance}}")],
            replace(conventions.CLOCK, empty="No exporter stands by"),
            width=8,
        ),
        graph(
            "Shards",
            "Does every shard of the fleet have an exporter?",
            "How many shards have an exporter that collects, and into how many the fleet is divided. Exporters that wait for "
            "another division to end do not count.",
            [
                Query(f"count(max by (shard) ({_metric('shard_info')}) == 1)", "collecting"),
                Query(f"max({_metric('shards')})", "configured"),
            ],
            Style("none", "Exporter not seen", decimals=0, minimum=0),
            width=24,
        ),
    ]


def _configuration() -> list[Panel]:
    return [
        timeline(
            "Configuration",
            "Was the last reload refused?",
            "Whether the last start, reload, or reading of a changed web.yml succeeded. After a failure the exporter goes on "
            "with the earlier configuration; its log has the reason.",
            Query(_metric("config_last_reload_successful"), "{{instance}}"),
            Style("none", "Exporter not seen", mappings={"1": ("in use", "green"), "0": ("refused", "red")}),
            width=12,
            height=7,
        ),
        graph(
            "Age of the configuration",
            "When was the configuration last read?",
            "Time since the last start or reload that succeeded.",
            [Query(f"time() - {_metric('config_last_reload_success_timestamp_seconds')}", "{{instance}}")],
            replace(conventions.CLOCK, empty="Exporter not seen"),
            width=12,
            height=7,
        ),
    ]


DASHBOARD = Dashboard(
    uid=conventions.EXPORTER,
    title="CML / Exporter health",
    description=(
        "Whether the numbers can be trusted: sources, CloudWatch and its cost, writing of the history, the exporter process."
    ),
    items=[
        Row("Now"),
        *_now_row(),
        *_at_a_glance(),
        Row("Sources", collapsed=_sources()),
        Row("CloudWatch", collapsed=_cloudwatch()),
        Row("History", collapsed=_history()),
        Row("Process", collapsed=[*_process(), *_configuration()]),
    ],
    variables=[
        variable(
            "job",
            "Job",
            "The scrape job of the exporters.",
            f"label_values({exporter_metric('build_info')}, job)",
            several=False,
        ),
        variable(
            "instance",
            "Exporter",
            "Exporters, by address, in panels that show each of them. What is recorded is of all exporters.",
            f"label_values({exporter_metric('build_info', _JOB)}, instance)",
            everything=None,
        ),
    ],
    annotations=[conventions.alerts(), conventions.RESTARTS],
)

"""Exporter health: can the numbers be trusted, what do they cost, is the history being written?"""

from dataclasses import replace

from exporter.core.catalog import CPU, INFO, SAMPLE_TIME
from grafana import looks
from grafana.panels import Dashboard, Panel, Query, Row, Style, bars, graph, names, now, stat, timeline, variable
from grafana.promql import WORKER, added, added_within, in_status, own, threshold

_JOB = 'job="$job"'
_TARGET = f'{_JOB},instance=~"$instance"'
_ON_THEIR_WAY = 'state=~"observed|final"'
_EACH = "5m"
"""The exporter works every 5 minutes; finer columns would be one high, several empty."""
_YES_NO = {"1": ("yes", "green"), "0": ("no", "red")}
_UP_DOWN = {"1": ("up", "green"), "0": ("down", "red")}
_NEVER = Style("none", "None yet", decimals=0, least=0)
_FAILURES = replace(_NEVER, thresholds=((1, "red"),))
_DOLLARS = Style("currencyUSD", "CloudWatch is not used", decimals=4, least=0)
_THROTTLED = 'code=~".*Throttl.*|.*LimitExceeded.*|TooManyRequests.*|SlowDown|429"'
"""As in the alert CMLExporterCloudWatchThrottled."""
_SOURCE_AGE = "time() - max by (source, region) ({} > 0)"


def _own(name: str, more: str = "") -> str:
    return own(name, f"{_TARGET},{more}" if more else _TARGET)


def _ages_now() -> str:
    return _SOURCE_AGE.format(_own("source_last_success_timestamp_seconds"))


def _now_row() -> list[Panel]:
    return [
        stat(
            "Exporter",
            "Does the exporter answer?",
            "Whether Prometheus reaches the exporter. With several, one that answers is enough.",
            [now(f"max(up{{{_TARGET}}})")],
            Style("none", "Not scraped", mappings=_UP_DOWN, thresholds=((0, "red"), (1, "green"))),
            width=3,
        ),
        stat(
            "Writes the history",
            "Is there an exporter that writes the history?",
            "Whether one of the exporters holds the lease to write. Without one, status and labs of this time will be missing.",
            [now(f"max({_own('leader')})")],
            Style("none", "Exporter not seen", mappings=_YES_NO, thresholds=((0, "red"), (1, "green"))),
            width=3,
        ),
        stat(
            "Age of the data",
            "How old is what I see?",
            "Time since every source was last read successfully: the oldest of them, read every 5 minutes. One that never "
            "was is counted beside.",
            [now(f"max({_ages_now()})")],
            replace(looks.SECONDS, empty="Nothing read yet", thresholds=((450, "yellow"), (900, "red"))),
            width=3,
        ),
        stat(
            "Sources failing",
            "Does reading MongoDB or CloudWatch fail?",
            "Sources whose last reading failed: the aggregates in MongoDB, and CloudWatch in each region.",
            [now(f"count(max by (source, region) ({_own('source_up')})) - sum(max by (source, region) ({_own('source_up')}))")],
            replace(_FAILURES, empty="Exporter not seen"),
            width=3,
        ),
        stat(
            "Waiting samples",
            "Is the history up to date?",
            "Samples on their way to the history. Two or three for each worker are normal; after an outage more, until "
            "it is made up for.",
            [now(f"sum(max by (state) ({_own('outbox_samples', _ON_THEIR_WAY)}))")],
            replace(looks.COUNT, empty="Exporter not seen"),
            width=3,
        ),
        stat(
            "CloudWatch today",
            "What does CloudWatch cost?",
            "Estimated price of today's requests (since 00:00 UTC) at AWS' list price, and what the budget allows if "
            "there is one.",
            [
                now(f"sum({_own('cloudwatch_day_cost_dollars')})", "spent"),
                now(f"max({_own('cloudwatch_budget_dollars')})", "budget"),
            ],
            replace(_DOLLARS, decimals=2),
            width=5,
        ),
        names(
            "Version",
            "Which version runs?",
            "Version and source revision of the exporter.",
            [now(f"max by (version, revision) ({_own('build_info')})", "{{version}} {{revision}}")],
            Style("none", "Exporter not seen"),
            width=4,
        ),
    ]


def _sources() -> list[Panel]:
    seen = f"max by (source, region) ({_own('source_up')})"
    times = f"max by ({WORKER}, metric) ({SAMPLE_TIME.name})"
    age = f"max by (metric) (time() - {times} and on ({WORKER}) {in_status('running', '')})"
    return [
        timeline(
            "Sources",
            "When did reading a source fail?",
            "Each source, green while its last reading succeeded.",
            Query(seen, "{{source}} {{region}}"),
            Style("none", "Exporter not seen", mappings={"1": ("ok", "green"), "0": ("failed", "red")}),
            width=12,
            height=7,
        ),
        graph(
            "Age of each source",
            "How old is what each source said?",
            "Time since each source was last read successfully; it rises to 5 minutes and falls again while all is well.",
            [Query(_ages_now(), "{{source}} {{region}}")],
            replace(looks.SECONDS, empty="Nothing read yet", thresholds=((900, "red"),)),
            height=7,
        ),
        graph(
            "How long reading took",
            "Is a source slow?",
            f"Duration of the last reading. An alert comes above {threshold_of('mongodb'):g} s for MongoDB and above "
            f"{threshold_of('cloudwatch'):g} s for CloudWatch.",
            [Query(f"max by (source, region) ({_own('source_duration_seconds')})", "{{source}} {{region}}")],
            replace(
                looks.SECONDS,
                empty="Nothing read yet",
                thresholds=((threshold_of("mongodb"), "yellow"), (threshold_of("cloudwatch"), "red")),
            ),
        ),
        graph(
            "Age of the workers' numbers",
            "How old is the oldest number of a running worker?",
            "The oldest CPU, memory and state among the running workers. CPU and memory are 5 to 10 minutes old when "
            "all is well.",
            [Query(age, "oldest {{metric}}")],
            replace(looks.SECONDS, empty="No running worker", thresholds=looks.STALE),
        ),
        bars(
            "Aggregates left out",
            "Are there workers I cannot see?",
            "Documents of the manager that cannot be used, by reason; the exporter's log names them.",
            now(f"max by (reason) ({_own('workers_skipped')})", "{{reason}}"),
            replace(_FAILURES, empty="None left out"),
            width=12,
            height=5,
        ),
        bars(
            "Workers without CPU",
            "Which running workers have no CPU value?",
            "Running workers by region whose CPU is not known at present. A new one is here for up to 15 minutes.",
            now(
                f"count by (region) ({in_status('running', '')} unless on ({WORKER}) {CPU.name})",
                "{{region}}",
            ),
            replace(_FAILURES, empty="Every running worker has one", thresholds=((1, "yellow"),)),
            width=12,
            height=5,
        ),
    ]


_BUDGET = {
    state: {"color": {"mode": "fixed", "fixedColor": color}}
    for state, color in (("ok", "green"), ("gap_filling_paused", "yellow"), ("polling_paused", "red"))
}


def threshold_of(source: str) -> float:
    """How long reading this source may take, in seconds."""
    return threshold("source_duration_seconds", source=source)


def _cloudwatch() -> list[Panel]:
    requests, failures = _own("cloudwatch_requests_total"), _own("cloudwatch_request_failures_total")
    metrics = _own("cloudwatch_metrics_requested_total")
    throttled = _own("cloudwatch_request_failures_total", _THROTTLED)
    share = f"{added(throttled, 'region')} / ({added(requests, 'region')} > 0)"
    state = f"max by (state) ({_own('cloudwatch_budget_state')}) == 1"
    return [
        graph(
            "CloudWatch requests",
            "How often is CloudWatch asked?",
            "Requests to CloudWatch, retries included, in about each interval of the graph.",
            [Query(added(requests, "operation, region"), "{{operation}} {{region}}", interval=_EACH)],
            replace(_NEVER, empty="CloudWatch is not used", decimals=None),
            columns=True,
            stacked=True,
        ),
        graph(
            "Failed requests by error",
            "Why does CloudWatch refuse?",
            "Requests that failed, by AWS' error code, in each interval: AccessDenied wants a policy, Throttling a "
            "higher quota.",
            [Query(added(failures, "code, operation, region"), "{{code}} {{operation}} {{region}}", interval=_EACH)],
            replace(_FAILURES, empty="No request has failed", decimals=None, thresholds=()),
            columns=True,
            stacked=True,
        ),
        graph(
            "Throttled share",
            "Is AWS throttling us?",
            "Part of the requests that AWS turned away for being too many. The red line is where the alert comes.",
            [Query(share, "{{region}}", interval=_EACH)],
            Style("percentunit", "Nothing throttled", least=0, most=1, thresholds=((threshold("throttled_ratio"), "red"),)),
            width=8,
        ),
        graph(
            "Metrics requested",
            "What are we billed for?",
            "Metrics asked for in each interval, by region; AWS bills each of them.",
            [Query(added(metrics, "region"), "{{region}}", interval=_EACH)],
            replace(_NEVER, empty="CloudWatch is not used", decimals=None),
            width=8,
            columns=True,
            stacked=True,
        ),
        graph(
            "Estimated cost of today",
            "Does today's cost stay within the budget?",
            "Estimated price since 00:00 UTC, what the exporter has spent since it started, and the budget if there is one.",
            [
                Query(f"sum({_own('cloudwatch_day_cost_dollars')})", "today"),
                Query(f"sum({_own('cloudwatch_estimated_cost_dollars_total')})", "since the start"),
                Query(f"max({_own('cloudwatch_budget_dollars')})", "budget"),
            ],
            _DOLLARS,
            width=8,
        ),
        names(
            "Budget",
            "Does the budget hold anything back?",
            "ok: nothing. gap_filling_paused: gaps wait, running workers are asked about. polling_paused: CPU and memory "
            "stop until 00:00 UTC.",
            [now(state, "{{state}}")],
            Style("none", "Exporter not seen", fixed=_BUDGET),
            width=12,
        ),
        stat(
            "Cost of the last 24 hours",
            "What does a day cost?",
            "Estimated price of the metrics requested in the last 24 hours.",
            [now(added_within(_own("cloudwatch_estimated_cost_dollars_total"), "1d"))],
            _DOLLARS,
            width=12,
        ),
    ]


def _history() -> list[Panel]:
    oldest = f"time() - min({_own('outbox_oldest_timestamp_seconds')})"
    mirrored = f"time() - max({_own('mirror_last_success_timestamp_seconds')})"
    return [
        graph(
            "Samples on their way",
            "Do samples pile up before the history?",
            "Samples in the outbox: observed ones wait for CloudWatch, settled ones for MongoDB, rejected ones were "
            "set aside for good.",
            [Query(f"max by (state) ({_own('outbox_samples')})", "{{state}}")],
            replace(_NEVER, empty="Exporter not seen"),
            width=8,
            stacked=True,
        ),
        graph(
            "Age of the oldest sample, and of the last write",
            "How far behind is the history?",
            "Time since the start of the oldest sample on its way, and since the outbox was last emptied. An hour is "
            "still normal where "
            "CloudWatch has nothing to say of a worker.",
            [Query(oldest, "oldest sample"), Query(mirrored, "last write")],
            replace(looks.SECONDS, empty="Nothing written yet", thresholds=((7200, "yellow"), (86400, "red"))),
            width=8,
        ),
        graph(
            "Samples mirrored",
            "Is the history being written?",
            "Samples that left for the history in each interval, by what became of them.",
            [Query(added(_own("mirror_samples_total"), "result"), "{{result}}", interval=_EACH)],
            replace(_NEVER, empty="None written yet", decimals=None),
            width=8,
            columns=True,
            stacked=True,
        ),
        graph(
            "Failed writes",
            "Why is the history not written?",
            "Attempts to write the history that failed, by reason. Nothing is lost: the samples wait in the outbox.",
            [Query(added(_own("mirror_failures_total"), "reason"), "{{reason}}", interval=_EACH)],
            replace(_NEVER, empty="No write has failed", decimals=None),
            width=8,
            columns=True,
            stacked=True,
        ),
        graph(
            "Gaps made up for",
            "Were gaps healed, or is anything lost?",
            "Samples written for periods nobody observed in time (healed), and those that ended with nothing in them "
            "(dropped).",
            [
                Query(added(_own("samples_gap_filled_total")), "healed", interval=_EACH),
                Query(added(_own("samples_dropped_total")), "dropped", interval=_EACH),
            ],
            replace(_NEVER, empty="Exporter not seen", decimals=None),
            width=8,
            columns=True,
        ),
        graph(
            "Values given up",
            "Which values will be missing for good?",
            "CPU and memory values given up because CloudWatch did not decide them in time; the history lacks them.",
            [Query(added(_own("samples_unavailable_total"), "metric"), "{{metric}}", interval=_EACH)],
            replace(_NEVER, empty="None given up", decimals=None),
            width=8,
            columns=True,
            stacked=True,
        ),
    ]


def _process() -> list[Panel]:
    return [
        graph(
            "Scrape size",
            "How large is a scrape?",
            "Samples in each scrape; about 17 for each worker.",
            [Query(f"scrape_samples_scraped{{{_TARGET}}}", "{{instance}}")],
            replace(looks.COUNT, empty="Not scraped"),
            width=6,
        ),
        graph(
            "Scrape duration",
            "How long does a scrape take?",
            "As Prometheus sees it; it gives up after 10 seconds.",
            [Query(f"scrape_duration_seconds{{{_TARGET}}}", "{{instance}}")],
            replace(looks.SECONDS, empty="Not scraped", thresholds=((1, "yellow"), (5, "red"))),
            width=6,
        ),
        graph(
            "Memory of the exporter",
            "Does the exporter need much memory?",
            "Resident memory of the process.",
            [Query(f"process_resident_memory_bytes{{{_TARGET}}}", "{{instance}}")],
            Style("bytes", "Not scraped", least=0),
            width=6,
        ),
        graph(
            "CPU of the exporter",
            "Does the exporter need much CPU?",
            "Cores in use; 1 is one core all the time.",
            [Query(f"rate(process_cpu_seconds_total{{{_TARGET}}}[$__rate_interval])", "{{instance}}")],
            Style("none", "Not scraped", decimals=2, least=0),
            width=6,
        ),
        graph(
            "Workers listed",
            "Does the exporter list all workers?",
            "Workers that each exporter lists on /metrics. It falls to nothing when the collector hangs.",
            [Query(f"count by (instance) ({INFO.name}{{{_TARGET}}})", "{{instance}}")],
            looks.COUNT,
            width=12,
        ),
        graph(
            "Leader",
            "Which exporter writes the history?",
            "1 for the exporter that holds the lease.",
            [Query(_own("leader"), "{{instance}}")],
            Style("none", "Exporter not seen", decimals=0, least=0, most=1),
            width=12,
        ),
    ]


DASHBOARD = Dashboard(
    uid=looks.EXPORTER,
    title="CML / Exporter health",
    description=(
        "Whether the numbers can be trusted: sources, CloudWatch and its cost, the way into the history, the exporter itself."
    ),
    items=[
        Row("Now"),
        *_now_row(),
        Row("Sources"),
        *_sources(),
        Row("CloudWatch"),
        *_cloudwatch(),
        Row("History"),
        *_history(),
        Row("Process"),
        *_process(),
    ],
    variables=[
        variable("job", "Job", "The scrape job of the exporters.", f"label_values({own('build_info')}, job)", several=False),
        variable("instance", "Exporter", "Exporters, by address.", f"label_values({own('build_info', _JOB)}, instance)"),
    ],
    annotations=[looks.alerts(), looks.RESTARTS],
)

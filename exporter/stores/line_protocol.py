r"""Samples as InfluxDB's line protocol, which InfluxDB 1, 2 and 3, Telegraf and VictoriaMetrics read. Pure.

One point a sample: measurement `cml_worker_metrics`, tags `worker_id` and `region`, the fields of the history's documents
(utilizations in percent), and `sample`, always 1, because a point needs a field and so that points can be counted.

https://docs.influxdata.com/influxdb/v1/write_protocols/line_protocol_reference/: in tags a backslash escapes comma, equals sign
and space; a tag cannot hold a line break or be empty.
"""

import re
from collections.abc import Iterator

from exporter.core.history_metrics import METRIC_FIELDS
from exporter.stores.store import Batch

MEASUREMENT = "cml_worker_metrics"
_SPECIAL = re.compile(r"[,= ]")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_NO_TAG = re.compile(r"[\x00-\x1f\x7f\\]")


def lines(batch: Batch) -> Iterator[str]:
    """Yield the point of each sample, its time in milliseconds, without a line break."""
    key = f"{MEASUREMENT},worker_id={_escaped(batch.worker_id)}" + (f",region={_escaped(batch.region)}" if batch.region else "")
    columns = [(field, batch.numbers[field]) for field in METRIC_FIELDS]
    for at, time in enumerate(batch.times):
        fields = ["sample=1i", *(f"{name}={values[at]!r}" for name, values in columns if values[at] is not None)]
        status = batch.statuses[at]
        if status is not None:
            fields.append('status="' + _CONTROL.sub("�", status).replace("\\", r"\\").replace('"', r"\"") + '"')
        yield f"{key} {','.join(fields)} {time}"


def tag(text: str) -> str:
    """Return a tag's value; what it cannot hold, a backslash too, which could escape what follows, becomes U+FFFD."""
    return _NO_TAG.sub("�", text)


def _escaped(text: str) -> str:
    return _SPECIAL.sub(lambda found: "\\" + found[0], tag(text))

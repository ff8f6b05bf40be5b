"""Prometheus HTTP service discovery: running workers as targets, so that node_exporter's metrics get the same worker_id.

https://prometheus.io/docs/prometheus/latest/http_sd/
"""

import ipaddress
import re
from collections.abc import Iterable

from exporter.core.model import WorkerGauges
from exporter.web.schemas import TargetGroup

NODE_EXPORTER_PORT = 9100
"""Default port of node_exporter."""


def targets(gauges: Iterable[WorkerGauges], port: int) -> tuple[TargetGroup, ...]:
    """Return one target group for each running worker with an address.

    Args:
        gauges: of the newest collection cycle.
        port: of the target, on the worker's private address.
    """
    return tuple(
        TargetGroup(
            targets=(f"[{worker.address}]:{port}" if ":" in worker.address else f"{worker.address}:{port}",),
            labels={
                "worker_id": worker.id,
                "region": worker.region,
                "__meta_cml_name": worker.name or "",
                "__meta_cml_instance_id": worker.instance_id or "",
                "__meta_cml_instance_type": worker.instance_type or "",
                "__meta_cml_version": worker.cml_version or "",
            },
        )
        for worker in (gauge.worker for gauge in gauges if gauge.show_state)
        if worker.status == "running" and worker.address and _is_address(worker.address)
    )


def _is_address(text: str) -> bool:
    """Return whether the text is an IP address or a host name; for any other target Prometheus keeps logging errors."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return re.fullmatch(r"(?=.*[A-Za-z])[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?", text) is not None
    return True

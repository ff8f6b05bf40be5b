"""Workers as the sizes of series and scrapes are measured with: with few fields, and with all."""

from dataclasses import replace

from exporter.core.model import EC2_CHECK_STATES, LICENSE_STATES, SERVICE_STATES, Worker, WorkerFacts


def running_worker(now: int, worker_id: str = "worker-00001", *, every_field: bool = False) -> Worker:
    """Return a running worker.

    Args:
        now: UTC seconds, of all its times.
        worker_id: its id.
        every_field: with what the exporter knows; else with what every version of the manager writes.
    """
    worker = Worker(
        worker_id,
        "eu-west-1",
        "i-0123456789abcdef0",
        "running",
        name="cml-1",
        instance_type="m5zn.metal",
        cml_version="2.8.1",
        active_labs=1,
        created_at=now,
    )
    if not every_field:
        return worker
    facts = WorkerFacts(
        ready=True,
        uptime=86400.0,
        nodes_running=1,
        nodes_total=2,
        disk_used=64e9,
        disk_total=128e9,
        memory_total=192e9,
        licensed=True,
        auto_pauses=1,
        idle_pause_at=now,
        detailed_monitoring=True,
        instance_check=EC2_CHECK_STATES[0],
        system_check=EC2_CHECK_STATES[0],
        service_status=SERVICE_STATES[0],
        license_status=LICENSE_STATES[0],
    )
    return replace(worker, last_activity_at=now, facts=facts)

"""`name[]` of /metrics: whole families by name, nothing else."""

from prometheus_client.parser import text_string_to_metric_families

from exporter.metrics.families import select

TEXT = b"""\
# HELP cml_worker_info Name.
# TYPE cml_worker_info gauge
cml_worker_info{worker_id="w1",name="a\\n# HELP cml_x no family\\n"} 1
cml_worker_info{worker_id="w2",name="# HELP b"} 1
# HELP cml_requests_total Requests.
# TYPE cml_requests_total counter
cml_requests_total 3
# HELP cml_worker_info_extra Longer name.
# TYPE cml_worker_info_extra gauge
cml_worker_info_extra 1
"""


def families(*names: str) -> list[str]:
    found = select(TEXT, names)
    assert not found or found.endswith(b"\n")
    return [family.name for family in text_string_to_metric_families(found.decode())]


def test_only_the_named_families_are_left_in_their_order() -> None:
    assert families("cml_worker_info") == ["cml_worker_info"]
    assert families("cml_worker_info_extra", "cml_worker_info") == ["cml_worker_info", "cml_worker_info_extra"]
    assert select(TEXT, ["cml_worker_info", "cml_requests_total", "cml_worker_info_extra"]) == TEXT


def test_a_counter_may_be_named_with_and_without_total() -> None:
    assert families("cml_requests_total") == families("cml_requests") == ["cml_requests"]


def test_a_name_that_does_not_exist_selects_nothing() -> None:
    assert select(TEXT, ["cml_x", "cml_worker", "", "HELP"]) == b""
    assert select(b"", ["cml_x"]) == b""

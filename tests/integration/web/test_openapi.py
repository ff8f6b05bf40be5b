"""The OpenAPI document is right: every response is one that it describes, and none is a 500."""

import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.strategies import SearchStrategy
from schemathesis import Case, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import (
    allow_header_conformance,
    content_type_conformance,
    missing_required_header,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)

from exporter.core.model import STATUSES
from exporter.history import remote_read
from exporter.storage.mongo import Database
from exporter.web import openapi, routes
from exporter.web.examples import JSON_EXAMPLES
from tests.fixtures.process import RunExporter
from tests.helpers.fake_cloudwatch import FakeCloudWatch, instance_id

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    negative_data_rejection,
    missing_required_header,
    unsupported_method,
    allow_header_conformance,
]
"""All but `positive_data_acceptance`: no schema can say that `start` is before `end`, or that a cursor was sent as `next`."""
AnyCase = Case[Any]
REGION = "eu-west-1"
KNOWN = {"name": "pages.css", "worker_id": "w1", "region": REGION}
EXAMPLES = int(os.environ.get("OPENAPI_EXAMPLES", "12"))
REFUSED = EXAMPLES // 3
"""Examples of what nearly always has the same answer: an id that no worker has, and parameters that are none."""
MANY = "/api/metrics/history"


def test_every_route_and_placeholder_is_in_the_document() -> None:
    document = openapi.document(routes.ROUTES, "http://exporter:9877")
    assert document["openapi"] == "3.1.0"
    assert document["paths"].keys() >= {endpoint.template for endpoint in routes.ROUTES}
    assert "/workers/{worker_id}/metrics/history" in document["paths"]
    for path, operations in document["paths"].items():
        for operation in operations.values():
            described = [each["name"] for each in operation["parameters"] if each["in"] == "path"]
            assert [f"{{{name}}}" for name in described] == [part for part in path.split("/") if part.startswith("{")]
    shared = document["components"]["schemas"]["WorkerStatus"]["enum"]
    assert shared == list(STATUSES), "one class in a generated client"
    for operations in document["paths"].values():
        for operation in operations.values():
            (tag,) = operation["tags"]
            assert tag in {each["name"] for each in document["tags"]}
    names = [operation["operationId"] for path in document["paths"].values() for operation in path.values()]
    assert len(set(names)) == len(names)


def test_a_generated_client_has_readable_names_and_the_words_of_every_parameter() -> None:
    document = openapi.document(routes.ROUTES, "http://exporter:9877")
    schemas = document["components"]["schemas"]
    assert schemas["WorkerColumns"]["properties"]["columns"] == {"$ref": "#/components/schemas/Columns"}
    for model in ("IntervalRow", "IntervalValues"):
        assert schemas[model]["properties"]["status_share"] == {"$ref": "#/components/schemas/StatusShares"}
    names = {operation["operationId"] for path in document["paths"].values() for operation in path.values()}
    assert names >= {"get_workers", "get_worker", "get_worker_history", "get_fleet_history", "get_worker_resources"}
    for path in document["paths"].values():
        for operation in path.values():
            for parameter in operation["parameters"]:
                schema = parameter["schema"]
                assert "enum" not in schema, f"{parameter['name']} would be named after its operation"
                assert "$ref" in schema or schema["description"] == parameter["description"]
    read = document["paths"]["/api/v1/read"]["post"]
    assert read["requestBody"]["content"].keys() >= {remote_read.CONTENT_TYPE}


def examples_of(operation: Mapping[str, Any]) -> Iterator[dict[str, str]]:
    lists = {each["name"]: each["schema"].get("examples", []) for each in operation["parameters"] if each["in"] == "query"}
    for number in range(max(map(len, lists.values()), default=0)):
        yield {name: examples[number % len(examples)] for name, examples in lists.items() if examples}


def test_every_body_has_an_example_and_those_of_models_are_valid() -> None:
    for endpoint in routes.ROUTES:
        for media_type, body in endpoint.response.content.items():
            if isinstance(body, type):
                body.model_validate_json(json.dumps(JSON_EXAMPLES[body]), strict=True)
            elif media_type != remote_read.CONTENT_TYPE:  # which is binary
                assert endpoint.response.examples[media_type], endpoint.title
    document = openapi.document(routes.ROUTES, "http://exporter:9877")
    for path, operations in document["paths"].items():
        for operation in operations.values():
            content = operation["responses"]["200"]["content"].values()
            assert all("example" in each for each in content) or path == "/api/v1/read"


async def test_every_response_to_a_generated_request_is_as_described_and_never_a_500(
    fake_cloudwatch: FakeCloudWatch, run_exporter: RunExporter, database: Database
) -> None:
    with requests.Session() as session:
        session.trust_env = False
        fake_cloudwatch.add(instance_id(1))
        await database["workers"].insert_one(
            {"_id": "w1", "name": "one", "aws_region": REGION, "aws_instance_id": instance_id(1), "status": "running"}
        )
        host, port = await database.client.address or ("", 0)
        exporter = run_exporter(
            {
                "mongodb": {"uri": f"mongodb://{host}:{port}/{database.name}?directConnection=true", "retention": "1d"},
                "cloudwatch": {"endpoint_url": fake_cloudwatch.url},
            }
        )
        exporter.wait_for(lambda: exporter.get("/workers/w1/metrics/history").json()["data"], 30, "storing samples")
        assert try_examples(exporter.get("/openapi.json").json(), exporter.url, session) > 20
        codes: Counter[tuple[str, int]] = Counter()
        for found in schemathesis.openapi.from_dict(exporter.get("/openapi.json").json()).get_all_operations():
            assert isinstance(found, Ok)
            operation = found.ok()
            known = {name: value for name, value in KNOWN.items() if f"{{{name}}}" in operation.path} or None
            strategies = [(operation.as_strategy(path_parameters=known), EXAMPLES)]
            if known:
                strategies.append((operation.as_strategy(), REFUSED))  # any id
            if operation.path == MANY:
                strategies.append((operation.as_strategy().map(of_a_known_worker), EXAMPLES))
            if operation.query:
                strategies.append((operation.as_strategy(GenerationMode.NEGATIVE, path_parameters=known), REFUSED))
            for strategy, examples in strategies:
                codes.update((operation.path, code) for code in send_all(strategy, examples, exporter.url, session))
        answered = {path for path, code in codes if code == 200}
        refused = {path for path, code in codes if code == 400}
        described = openapi.document(routes.ROUTES, "http://exporter:9877")["paths"]
        assert answered == {path for path, operations in described.items() if "get" in operations}
        assert refused >= {path for path in answered if "workers" in path}
        assert all(codes[path, 200] >= 3 for path in answered if "workers" in path), codes


def try_examples(document: Mapping[str, Any], url: str, session: requests.Session) -> int:
    """Check that the examples of parameters work together, and return how often: those of the same number are combined."""
    tried = 0
    for path, operations in document["paths"].items():
        for query in examples_of(operations.get("get", {"parameters": []})):
            response = session.get(url + path.format(**KNOWN), params=query)
            assert response.status_code == 200, (path, query, response.text)
            tried += 1
    return tried


def of_a_known_worker(case: AnyCase) -> AnyCase:
    """Have a generated request name a worker that there is: any other name, and two kinds of selection, are refused."""
    case.query = {name: value for name, value in (case.query or {}).items() if name not in ("region", "cursor")}
    case.query["worker"] = [KNOWN["worker_id"]]
    return case


def send_all(cases: SearchStrategy[AnyCase], examples: int, url: str, session: requests.Session) -> list[int]:
    """Send that many requests, check every response, and return the status codes."""
    codes = []

    @settings(
        max_examples=examples,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=cases)
    def validate(case: AnyCase) -> None:
        response = case.call(base_url=url, session=session)
        codes.append(response.status_code)
        case.validate_response(response, checks=CHECKS)

    validate()
    return codes

"""Descriptions of routes, and the OpenAPI document made of them. Pure functions."""

import re
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from exporter import __version__
from exporter.web.examples import JSON_EXAMPLES
from exporter.web.schemas import Problem, definitions

Schema = Mapping[str, Any]
Body = Schema | type[BaseModel]
"""Schema of a response body: a JSON schema, or the pydantic model that has one."""
Tag = Literal["workers", "history", "pages", "prometheus", "operations"]
TAGS: Mapping[Tag, str] = {
    "workers": "The fleet as it is now.",
    "history": "Samples and statistics of the past.",
    "pages": "Pages and images for people.",
    "prometheus": "What Prometheus reads.",
    "operations": "Probes, the configuration, and this document.",
}
"""Groups of routes → what they are."""


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter of a route: what its parser and the OpenAPI document need."""

    name: str
    description: str
    schema: Schema
    place: Literal["query", "path"] = "query"
    many: bool = False
    """Whether it may be repeated."""
    empty: bool = False
    """Whether an empty value is the same as none, as a form of a page sends it, although the schema does not allow it."""

    def parameter_object(self) -> dict[str, Any]:
        """Return the OpenAPI Parameter Object."""
        schema = {"type": "array", "items": self.schema} if self.many else self.schema
        if "enum" not in schema:  # which becomes a schema of its own, without the words of one parameter
            schema = {**schema, "description": self.description}  # generated clients look for it here
        result = {"name": self.name, "in": self.place, "description": self.description, "schema": schema}
        return result | ({"required": True} if self.place == "path" else {}) | ({"allowEmptyValue": True} if self.empty else {})


@dataclass(frozen=True, slots=True)
class ResponseSpec:
    """The responses of a route: the bodies and headers of a 200, and the other status codes."""

    content: Mapping[str, Body]
    """Media type → body."""
    errors: tuple[int, ...] = ()
    headers: Mapping[str, str] = field(default_factory=dict)
    """Name → description."""
    also: Mapping[int, tuple[str, Body]] = field(default_factory=dict)
    """Status codes with a body that is not a `Problem` → media type and body."""
    examples: Mapping[str, object] = field(default_factory=dict)
    """Media type → an example of a body without a model."""


class Endpoint(NamedTuple):
    """One route: path, handler, responses, and a description for the page of the API, docs/http.md and OpenAPI."""

    path: str
    handler: Callable[[Request], Awaitable[Response]]
    description: str
    response: ResponseSpec
    tag: Tag
    parameters: tuple[Parameter, ...] = ()
    also: str = ""
    """A second path of the same route."""
    method: str = "GET"
    takes: tuple[str, ...] = ()
    """Media types that the binary body of a request may be sent as; empty: it has none."""

    @property
    def template(self) -> str:
        """The path without the convertors of its placeholders."""
        return template(self.path)

    def operation_id(self, path: str) -> str:
        """Return the name of the operation in generated clients, such as get_fleet_history; the second path has its own."""
        name = f"{self.method.lower()}_{self.handler.__name__}"
        return name if path == self.path else f"{name}_short"

    @property
    def title(self) -> str:
        """The template; the method stands before it if it is not GET."""
        return self.template if self.method == "GET" else f"{self.method} {self.template}"


ERRORS: Mapping[int, str] = {
    400: "Invalid query parameter or request body.",
    401: "Basic authentication is required (docs/web.md), and the user name or password is missing or wrong.",
    403: "The route is not enabled.",
    404: "Unknown worker.",
    413: "Request body too large.",
    429: "Too many requests at once, or HTTP readers have spent their share of the day's CloudWatch budget; try again after "
    "the seconds in Retry-After.",
    500: "Invalid configuration; nothing has changed.",
    503: "MongoDB or CloudWatch is unavailable; try again after the seconds in Retry-After.",
}


def template(path: str) -> str:
    """Return a path of Starlette as OpenAPI writes it: {id:path} → {id}."""
    return re.sub(r"{(\w+):\w+}", r"{\1}", path)


def document(endpoints: Sequence[Endpoint], url: str) -> dict[str, Any]:
    """Return the OpenAPI 3.1 document of these routes, whose paths follow `url`."""
    paths: dict[str, Any] = {}
    for endpoint in endpoints:
        for path in filter(None, (endpoint.path, endpoint.also)):
            paths[template(path)] = {endpoint.method.lower(): _operation(endpoint, path)}
    found: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {
            "title": "CML worker metrics",
            "version": __version__,
            "description": "Metrics and history of Cisco Modeling Labs workers. Times are UTC, utilizations percent, "
            "null is an unknown value. Routes that accept GET accept HEAD as well.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": url.rstrip("/") or "/"}],
        "tags": [{"name": tag, "description": description} for tag, description in TAGS.items()],
        "paths": paths,
        "components": {
            "schemas": definitions(_models(endpoints)),
            "securitySchemes": {"basic": {"type": "http", "scheme": "basic"}},
        },
        "security": [{}, {"basic": []}],
    }
    named: dict[str, Any] = {}
    found = _hoisted(found, named)
    components: dict[str, Any] = found["components"]
    components["schemas"] |= named
    return found


def _hoisted(part: Any, named: dict[str, Any]) -> Any:  # noqa: ANN401 -- any part of a JSON document
    """Return a part of the document with a reference in place of each enumeration that has a title; these go to `named`.

    A generated client then has one class for it, instead of one for each place.
    """
    if isinstance(part, Mapping):
        if "enum" in part and "title" in part:
            named[part["title"]] = dict(part)
            return {"$ref": f"#/components/schemas/{part['title']}"}
        return {name: _hoisted(value, named) for name, value in part.items()}
    return [_hoisted(each, named) for each in part] if isinstance(part, list | tuple) else part


def _operation(endpoint: Endpoint, path: str) -> dict[str, Any]:
    headers = {name: {"description": text, "schema": {"type": "string"}} for name, text in endpoint.response.headers.items()}
    success: dict[str, Any] = {
        "description": endpoint.description,
        "content": {
            kind: _media_type(body, endpoint.response.examples.get(kind)) for kind, body in endpoint.response.content.items()
        },
    }
    responses: dict[str, Any] = {"200": success | ({"headers": headers} if headers else {})}
    for code in (401, *endpoint.response.errors):
        responses[str(code)] = {
            "description": ERRORS[code],
            "content": {"application/problem+json": _media_type(Problem)},
        }
    for code, (kind, body) in endpoint.response.also.items():
        responses[str(code)] = {"description": endpoint.description, "content": {kind: _media_type(body)}}
    binary = {"schema": {"type": "string", "format": "binary"}}
    return {
        "summary": endpoint.description,
        "operationId": endpoint.operation_id(path),
        "tags": [endpoint.tag],
        "parameters": [parameter.parameter_object() for parameter in endpoint.parameters],
        "responses": responses,
        **({"requestBody": {"required": True, "content": dict.fromkeys(endpoint.takes, binary)}} if endpoint.takes else {}),
    }


def _media_type(body: Body, example: object = None) -> dict[str, Any]:
    """Return the OpenAPI Media Type Object of a body."""
    if not isinstance(body, type):
        return {"schema": body} | ({} if example is None else {"example": example})
    return {"schema": {"$ref": f"#/components/schemas/{body.__name__}"}, "example": JSON_EXAMPLES[body]}


def _models(endpoints: Sequence[Endpoint]) -> Iterator[type[BaseModel]]:
    yield Problem
    for endpoint in endpoints:
        bodies = (*endpoint.response.content.values(), *(body for _, body in endpoint.response.also.values()))
        yield from (body for body in bodies if isinstance(body, type))

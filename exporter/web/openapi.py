"""What the table of routes is made of, and the OpenAPI document that it makes. Pure."""

import re
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from exporter import __version__
from exporter.web.schemas import Problem, components

Schema = Mapping[str, Any]
Body = Schema | type[BaseModel]
"""What a media type holds: a JSON schema, or the model that has one."""


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter of a route, for whoever parses it and whoever describes it."""

    name: str
    description: str
    schema: Schema
    place: Literal["query", "path"] = "query"
    many: bool = False
    """Whether it may be given several times."""

    def described(self) -> dict[str, Any]:
        """The OpenAPI Parameter Object."""
        schema = {"type": "array", "items": self.schema} if self.many else self.schema
        described = {"name": self.name, "in": self.place, "description": self.description, "schema": schema}
        return described | ({"required": True} if self.place == "path" else {})


@dataclass(frozen=True, slots=True)
class ResponseSpec:
    """What a route answers with 200, and with what other codes it may."""

    content: Mapping[str, Body]
    """Media type → body."""
    errors: tuple[int, ...] = ()
    headers: Mapping[str, str] = field(default_factory=dict)
    """Name → what it says."""
    also: Mapping[int, tuple[str, Body]] = field(default_factory=dict)
    """Further codes that are answered in a form of their own: media type and schema."""


class Endpoint(NamedTuple):
    """One route: its path, what answers it, and what it is in one line, for the landing page, docs/http.md and OpenAPI."""

    path: str
    handler: Callable[[Request], Awaitable[Response]]
    description: str
    answer: ResponseSpec
    parameters: tuple[Parameter, ...] = ()
    also: str = ""
    """Another path to the same."""
    method: str = "GET"

    @property
    def template(self) -> str:
        """The path without the convertors of its placeholders."""
        return template(self.path)

    @property
    def title(self) -> str:
        """The template, and before it the method if it is not GET."""
        return self.template if self.method == "GET" else f"{self.method} {self.template}"


ERRORS: Mapping[int, str] = {
    400: "A parameter is not as it must be.",
    401: "The exporter asks for basic authentication (docs/web.md), and the user or the password is missing or wrong.",
    404: "There is no such worker.",
    413: "The body is too large.",
    503: "MongoDB or CloudWatch does not answer; Retry-After says when to ask again.",
}


def template(path: str) -> str:
    """Return a path of Starlette as OpenAPI and people write it: {id:path} → {id}."""
    return re.sub(r"{(\w+):\w+}", r"{\1}", path)


def document(endpoints: Sequence[Endpoint]) -> dict[str, Any]:
    """Return the OpenAPI document of these routes."""
    paths: dict[str, Any] = {}
    for endpoint in endpoints:
        for path in filter(None, (endpoint.path, endpoint.also)):
            paths[template(path)] = {endpoint.method.lower(): _operation(endpoint, path)}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "CML worker metrics",
            "version": __version__,
            "description": "Metrics and history of Cisco Modeling Labs workers. Times are UTC, utilizations percent, "
            "null is a value nobody has. Routes that answer GET answer HEAD as well.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": paths,
        "components": {
            "schemas": components(_models(endpoints)),
            "securitySchemes": {"basic": {"type": "http", "scheme": "basic"}},
        },
        "security": [{}, {"basic": []}],
    }


def _operation(endpoint: Endpoint, path: str) -> dict[str, Any]:
    headers = {name: {"description": said, "schema": {"type": "string"}} for name, said in endpoint.answer.headers.items()}
    good: dict[str, Any] = {
        "description": endpoint.description,
        "content": {kind: _media_type(body) for kind, body in endpoint.answer.content.items()},
    }
    responses: dict[str, Any] = {"200": good | ({"headers": headers} if headers else {})}
    for code in (401, *endpoint.answer.errors):
        responses[str(code)] = {
            "description": ERRORS[code],
            "content": {"application/problem+json": _media_type(Problem)},
        }
    for code, (kind, body) in endpoint.answer.also.items():
        responses[str(code)] = {"description": endpoint.description, "content": {kind: _media_type(body)}}
    return {
        "summary": endpoint.description,
        "operationId": re.sub(r"\W+", "_", template(path)).strip("_") or "index",
        "parameters": [parameter.described() for parameter in endpoint.parameters],
        "responses": responses,
    }


def _media_type(body: Body) -> dict[str, Any]:
    """Return the OpenAPI Media Type Object of a body."""
    return {"schema": {"$ref": f"#/components/schemas/{body.__name__}"} if isinstance(body, type) else body}


def _models(endpoints: Sequence[Endpoint]) -> Iterator[type[BaseModel]]:
    yield Problem
    for endpoint in endpoints:
        bodies = (*endpoint.answer.content.values(), *(body for _, body in endpoint.answer.also.values()))
        yield from (body for body in bodies if isinstance(body, type))

"""The page of the HTTP API, made of its OpenAPI document. Pure."""

import re
from collections.abc import Iterable, Mapping
from http import HTTPStatus
from typing import Any, NamedTuple

from markupsafe import Markup, escape

from exporter.web.pages import templates


class Parameter(NamedTuple):
    """A parameter of a route."""

    name: str
    place: str
    values: str
    description: Markup


class Answer(NamedTuple):
    """A response of a route."""

    code: str
    phrase: str
    media_types: str
    description: Markup
    headers: tuple[tuple[str, Markup], ...]


class Operation(NamedTuple):
    """A route."""

    anchor: str
    method: str
    path: str
    address: str | None
    """Where a GET without a parameter in its path leads; None: there is no such."""
    description: Markup
    parameters: tuple[Parameter, ...]
    answers: tuple[Answer, ...]


def render(document: Mapping[str, Any], root: str) -> str:
    """Return the page of an OpenAPI document; `root` is the relative path to the root of the exporter."""
    info = document["info"]
    page = {"description": _code(info["description"]), "operations": list(operations(document, root))}
    return templates.render("api.html", root=root, page=page)


def operations(document: Mapping[str, Any], root: str) -> Iterable[Operation]:
    """Yield the routes of an OpenAPI document, in its order."""
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            linked = method == "get" and "{" not in path
            yield Operation(
                operation["operationId"],
                method.upper(),
                path,
                root + path.removeprefix("/") if linked else None,
                _code(operation["summary"]),
                tuple(_parameter(each, document) for each in operation["parameters"]),
                tuple(_answer(code, response) for code, response in operation["responses"].items()),
            )


def _parameter(parameter: Mapping[str, Any], document: Mapping[str, Any]) -> Parameter:
    schema = parameter["schema"]
    item = schema.get("items", schema)
    repeatable = "items" in schema
    if "$ref" in item:
        item = document["components"]["schemas"][item["$ref"].rpartition("/")[2]]
    values = ", ".join(map(str, item["enum"])) if "enum" in item else str(item.get("type", ""))
    if "minimum" in item and "maximum" in item:
        values += f" {item['minimum']} to {item['maximum']}"
    if repeatable:
        values += "; repeatable"
    return Parameter(parameter["name"], parameter["in"], values, _code(parameter["description"]))


def _answer(code: str, response: Mapping[str, Any]) -> Answer:
    headers = tuple((name, _code(header["description"])) for name, header in response.get("headers", {}).items())
    media_types = ", ".join(response.get("content", ()))
    return Answer(code, HTTPStatus(int(code)).phrase, media_types, _code(response["description"]), headers)


def _code(text: str) -> Markup:
    """Return a text in which words between backticks are code."""
    return Markup(re.sub("`([^`]+)`", r"<code>\1</code>", str(escape(text))))

"""The placeholder of a worker id in a path. An id is any text that the manager wrote: with slashes, and with line breaks."""

from starlette.convertors import Convertor, register_url_convertor


class _WorkerId(Convertor[str]):
    regex = "(?s:.*)"  # Starlette's own `path` stops at a line break

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


register_url_convertor("worker", _WorkerId())

PLACEHOLDER = "{worker_id:worker}"
"""The rest of the path up to what follows in the route; clients percent-encode an id (%2F, %0A)."""

"""Regular expressions of users, in RE2's syntax: matching takes time linear in the text, whatever the expression."""

from typing import Any

MAX_PATTERN_CHARACTERS = 4096


def compile_pattern(pattern: str, *, max_bytes: int | None = None) -> Any:  # noqa: ANN401  # google-re2 ships no types
    """Return a pattern whose `fullmatch` takes time linear in the text.

    Args:
        pattern: the expression.
        max_bytes: limit of the memory of the compiled pattern, including the states that matching adds; None: RE2's own.

    Raises:
        ValueError: it is no RE2 expression, or too long.
    """
    if len(pattern) > MAX_PATTERN_CHARACTERS:
        raise ValueError(f"the expression has {len(pattern)} characters; at most {MAX_PATTERN_CHARACTERS} are accepted")
    import re2  # here: a program that uses only WorkerMetricsRepository does not need it

    options = re2.Options()
    options.log_errors = False
    options.never_capture = True  # groups would turn RE2's fast automaton off, and take memory for each of them
    if max_bytes is not None:
        options.max_mem = max_bytes
    try:
        return re2.compile(pattern, options)
    except re2.error as error:
        reason = error.args[0].decode(errors="replace") if isinstance(error.args[0], bytes) else str(error)
        raise ValueError(f"{pattern[:100]!r} is not a valid RE2 regular expression: {reason}") from error

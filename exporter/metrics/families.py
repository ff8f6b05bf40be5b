"""Select families of an exposition by name. Pure."""

from collections.abc import Collection

_HELP = b"# HELP "
_NEXT = b"\n# HELP "
"""Begins a family. Label values cannot contain it: their line breaks are escaped."""


def select(text: bytes, names: Collection[str]) -> bytes:
    """Return the families of an exposition that are named, in their order; those that do not exist are ignored.

    Args:
        text: in the text format 0.0.4, where every family begins with its HELP.
        names: of families, as they stand there; of counters also without `_total`, the name of the family in OpenMetrics.
    """
    wanted = {name.encode() for name in names} | {f"{name}_total".encode() for name in names}
    families = text.removeprefix(_HELP).removesuffix(b"\n").split(_NEXT)
    return b"".join(b"%b%b\n" % (_HELP, family) for family in families if family.partition(b" ")[0] in wanted)

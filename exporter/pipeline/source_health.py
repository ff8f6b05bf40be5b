"""The last error of each source, for metrics and /-/ready."""


def _name(source: str, region: str) -> str:
    return f"{source} {region}".strip()

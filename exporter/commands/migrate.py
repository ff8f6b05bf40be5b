"""`cml-worker-exporter migrate`: settings for this exporter from a configuration of YACE or cloudwatch_exporter.

Only what concerns workers is carried over: roles with their regions, the period, and where memory is. All else is named in
comments, so that nothing is lost silently.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import yaml

from exporter.core.errors import ConfigError
from exporter.core.periods import MINUTE
from exporter.core.regions import normal_region
from exporter.core.yaml_file import parse_yaml

_CPU = ("AWS/EC2", "CPUUtilization")
_MEMORY = "mem_used_percent"
_MEMORY_NAMESPACE = "CWAgent"
_YACE_PERIOD, _CLOUDWATCH_EXPORTER_PERIOD = 300, 60
"""Seconds of a metric that names no period."""
_HEADER = "# Settings made from {name}. Add mongodb.uri or mongodb.uri_file; docs/migration.md explains the rest.\n"


class Source(NamedTuple):
    """One CloudWatch metric that a configuration reads."""

    namespace: str
    metric: str
    period: int
    """Seconds."""
    regions: tuple[str, ...]
    roles: tuple[tuple[str, str | None], ...]
    """(ARN, external id) of each; empty: the own credentials."""

    @property
    def is_memory(self) -> bool:
        """Whether it is the memory in use of a worker."""
        return self.metric == _MEMORY

    @property
    def is_read(self) -> bool:
        """Whether this exporter reads it, too."""
        return self.is_memory or (self.namespace, self.metric) == _CPU


def run(file: Path, output: TextIO) -> int:
    """Write the settings as YAML and return the exit status 0; raises ConfigError."""
    try:
        text = file.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} cannot be read: {error}") from error
    settings, notes = convert(parse_yaml(text, str(file)), str(file))
    output.write(_HEADER.format(name=file.name))
    output.writelines(f"# {' '.join(note.splitlines())}\n" for note in notes)
    output.write(yaml.safe_dump(settings, sort_keys=False))
    return 0


def convert(content: object, name: str) -> tuple[dict[str, Any], list[str]]:
    """Return settings, and what they do not say.

    Args:
        content: a configuration of YACE or cloudwatch_exporter.
        name: name of its file, for messages.

    Raises:
        ConfigError: it is neither, or reads nothing of a worker.
    """
    if not isinstance(content, Mapping):
        raise ConfigError(f"{name} is no configuration: a mapping is expected")
    try:
        if content.keys() & {"discovery", "static", "customNamespace"}:
            sources = list(_of_yace(content))
        elif "metrics" in content:
            sources = list(_of_cloudwatch_exporter(content))
        else:
            raise ConfigError(
                f"{name} is neither YACE's (discovery, static, customNamespace) nor cloudwatch_exporter's (region, metrics)"
            )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{name} has not the form that its exporter documents: {error!r}") from error
    read = [source for source in sources if source.is_read]
    if not read:
        raise ConfigError(f"{name} reads neither {' '.join(_CPU)} nor {_MEMORY}: there is nothing to carry over")
    settings: dict[str, Any] = {"period": "1m" if min(source.period for source in read) <= MINUTE else "5m"}
    elsewhere = [source.namespace for source in read if source.is_memory and source.namespace != _MEMORY_NAMESPACE]
    if elsewhere:
        settings["cloudwatch"] = {"memory": {"namespace": elsewhere[0], "metric": _MEMORY}}
    if roles := _roles(read):
        settings["aws"] = {"roles": roles}
    return settings, list(_notes(sources, read, bool(roles)))


def _roles(read: list[Source]) -> list[dict[str, Any]]:
    """Return the roles in the form of `aws.roles`, each once, with the regions of all that it reads."""
    regions: dict[tuple[str, str | None], dict[str, None]] = {}
    for source in read:
        for role in source.roles:
            regions.setdefault(role, {}).update(dict.fromkeys(source.regions))
    return [
        {"role_arn": arn} | ({"external_id": external} if external else {}) | {"regions": list(found)}
        for (arn, external), found in regions.items()
    ]


def _notes(sources: list[Source], read: list[Source], has_roles: bool) -> Iterator[str]:
    regions = dict.fromkeys(region for source in read for region in source.regions)
    yield f"Regions: those of the worker documents; no setting is needed for {', '.join(regions)}."
    if has_roles and any(not source.roles for source in read):
        yield "Without a role, too: in a region with roles the own credentials are not used; list a role of that account."
    if periods := sorted({source.period for source in read} - {60, 300}):
        yield f"Period: 1m and 5m are possible; {', '.join(f'{period} s' for period in periods)} was given."
    if not any(source.is_memory for source in read):
        yield "Memory is read, too, where the CloudWatch agent publishes it; it costs as much as CPU."
    further = dict.fromkeys(f"{source.namespace} {source.metric}" for source in sources if not source.is_read)
    if further:
        yield "Not carried over; of a worker it can be a gauge by cloudwatch.extra, for all else keep the other exporter:"
        yield from (f"  {each}" for each in further)


def _of_yace(content: Mapping[str, Any]) -> Iterator[Source]:
    discovery = (content.get("discovery") or {}).get("jobs") or []
    for job in (*discovery, *(content.get("customNamespace") or []), *(content.get("static") or [])):
        roles = [(role.get("roleArn") or "", role.get("externalId")) for role in job.get("roles") or []]
        for metric in job.get("metrics") or []:
            yield Source(
                str(job.get("namespace") or _namespace(job["type"])),
                str(metric["name"]),
                int(metric.get("period") or job.get("period") or _YACE_PERIOD),
                tuple(map(normal_region, job["regions"])),
                tuple(role for role in roles if role[0]),
            )


def _namespace(kind: str) -> str:
    """Return the namespace of a discovery job's type, which older configurations abbreviate."""
    return _CPU[0] if kind == "ec2" else kind


def _of_cloudwatch_exporter(content: Mapping[str, Any]) -> Iterator[Source]:
    arn = content.get("role_arn")
    default = content.get("period_seconds") or _CLOUDWATCH_EXPORTER_PERIOD
    for metric in content["metrics"]:
        yield Source(
            str(metric["aws_namespace"]),
            str(metric["aws_metric_name"]),
            int(metric.get("period_seconds") or default),
            (normal_region(content["region"]),) if content.get("region") else (),
            ((str(arn), None),) if arn else (),
        )

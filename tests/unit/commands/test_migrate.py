"""Configurations in the documented forms of YACE and cloudwatch_exporter become settings that this exporter accepts."""

from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import yaml

from exporter.commands import migrate
from exporter.core.errors import ConfigError
from exporter.core.settings import Settings
from exporter.core.settings_loader import load

ARN, OTHER = "arn:aws:iam::222222222222:role/reader", "arn:aws:iam::333333333333:role/reader"
YACE = f"""
apiVersion: v1alpha1
sts-region: eu-west-1
discovery:
  jobs:
    - type: AWS/EC2
      regions: [us-east-1, eu-west-1]
      period: 300
      length: 300
      roles:
        - {{roleArn: "{ARN}", externalId: shared}}
        - {{roleArn: "{OTHER}"}}
      metrics:
        - {{name: CPUUtilization, statistics: [Average]}}
        - {{name: NetworkIn, statistics: [Average, Sum]}}
    - type: AWS/SQS
      regions: [eu-central-1]
      metrics: [{{name: NumberOfMessagesSent, statistics: [Sum], period: 60, length: 300}}]
customNamespace:
  - name: memory
    namespace: Lab/Linux
    regions: [eu-west-1, eu-north-1]
    roles: [{{roleArn: "{ARN}", externalId: shared}}]
    metrics: [{{name: mem_used_percent, statistics: [Average], period: 60, length: 300}}]
"""
CLOUDWATCH_EXPORTER = f"""
region: us-east-1
role_arn: {ARN}
delay_seconds: 600
metrics:
  - {{aws_namespace: AWS/EC2, aws_metric_name: CPUUtilization, aws_dimensions: [InstanceId], period_seconds: 300}}
  - {{aws_namespace: AWS/ELB, aws_metric_name: RequestCount, aws_dimensions: [LoadBalancerName], aws_statistics: [Sum]}}
"""


def migrated(folder: Path, text: str) -> tuple[Settings, str]:
    """The settings as this exporter loads them, and their file."""
    (folder / "theirs.yml").write_text(text)
    out = StringIO()
    assert migrate.run(folder / "theirs.yml", out) == 0
    (folder / "ours.yml").write_text(out.getvalue())
    return load(folder / "ours.yml", {"CML_EXPORTER_MONGODB__URI": "mongodb://127.0.0.1/db"}), out.getvalue()


def test_roles_regions_and_period_of_yace(tmp_path: Path) -> None:
    settings, text = migrated(tmp_path, YACE)
    assert [(role.role_arn, role.regions) for role in settings.aws.roles] == [
        (ARN, ["us-east-1", "eu-west-1", "eu-north-1"]),
        (OTHER, ["us-east-1", "eu-west-1"]),
    ]
    assert yaml.safe_load(text)["aws"]["roles"][0]["external_id"] == "shared"
    assert settings.period == 60
    assert (settings.cloudwatch.memory.namespace, settings.cloudwatch.memory.metric) == ("Lab/Linux", "mem_used_percent")
    comments = [line for line in text.splitlines() if line.startswith("#")]
    assert [line.removeprefix("#   ") for line in comments[-2:]] == ["AWS/EC2 NetworkIn", "AWS/SQS NumberOfMessagesSent"]
    assert "eu-central-1" not in text, "a region where no worker is read"


def test_role_region_and_period_of_cloudwatch_exporter(tmp_path: Path) -> None:
    settings, text = migrated(tmp_path, CLOUDWATCH_EXPORTER)
    assert [(role.role_arn, role.regions) for role in settings.aws.roles] == [(ARN, ["us-east-1"])]
    assert settings.period == 300
    assert "#   AWS/ELB RequestCount\n" in text
    assert "Memory is read, too" in text


def test_without_a_role_the_own_credentials_read_every_region(tmp_path: Path) -> None:
    settings, text = migrated(tmp_path, CLOUDWATCH_EXPORTER.replace(f"role_arn: {ARN}\n", ""))
    assert settings.aws.roles == []
    assert "no setting is needed for us-east-1." in text


def test_the_default_periods_are_theirs() -> None:
    yace: dict[str, Any] = {
        "discovery": {"jobs": [{"type": "ec2", "regions": ["r-1"], "metrics": [{"name": "CPUUtilization"}]}]}
    }
    theirs: dict[str, Any] = {"region": "r-1", "metrics": [{"aws_namespace": "AWS/EC2", "aws_metric_name": "CPUUtilization"}]}
    assert migrate.convert(yace, "f")[0] == {"period": "5m"}
    assert migrate.convert(theirs, "f")[0] == {"period": "1m"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: b", "is neither YACE's"),
        ("- a", "a mapping is expected"),
        ("metrics: [{aws_namespace: AWS/ELB, aws_metric_name: RequestCount}]", "there is nothing to carry over"),
        ("discovery: {jobs: [{type: AWS/EC2, metrics: [{name: CPUUtilization}]}]}", "has not the form"),
        ("a: [", "this is not valid YAML"),
    ],
)
def test_what_cannot_be_carried_over_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        migrated(tmp_path, text)


def test_a_name_with_a_line_break_stays_a_comment(tmp_path: Path) -> None:
    settings, _ = migrated(tmp_path, YACE.replace("name: NetworkIn", 'name: "a\\nlog: {level: debug}"'))
    assert settings.log.level == "info"


def test_a_file_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nothing\.yml cannot be read"):
        migrate.run(tmp_path / "nothing.yml", StringIO())

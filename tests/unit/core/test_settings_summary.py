"""What the first line of the log tells of the settings."""

from exporter.core.settings import Settings
from exporter.core.settings_summary import differing


def test_only_what_differs_is_told_and_no_secret() -> None:
    role = {"role_arn": "arn:aws:iam::123456789012:role/r", "external_id": "hunter2"}
    given = {
        "mongodb": {"uri": "mongodb://user:hunter2@db/cml"},
        "period": "5m",
        "settle_delay": "6m",
        "cloudwatch": {"max_usd_per_day": 1.5},
        "aws": {"roles": [role]},
        "web": {"listen_address": ":1"},
        "history": {
            "forward": [
                {"type": "victoriametrics", "url": "http://u:hunter2@v"},
                {"type": "influxdb", "url_file": "i", "name": "b"},
            ]
        },
    }
    found = differing(Settings.model_validate(given))
    assert set(found) == {
        "mongodb.uri",
        "settle_delay",
        "cloudwatch.max_usd_per_day",
        "aws.roles",
        "web.listen_address",
        "history.forward",
    }
    assert (found["settle_delay"], found["cloudwatch.max_usd_per_day"], found["web.listen_address"]) == (360, 1.5, ":1")
    assert found["history.forward"] == "{type=victoriametrics,url=***},{type=influxdb,url_file=i,name=b}"
    assert "hunter2" not in str(found)

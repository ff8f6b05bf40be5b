"""Write dashboards without variables, for Grafana's public dashboards: `python -m grafana.public --datasource UID FOLDER`.

A public dashboard refuses panels that use a variable, the data source among them. These copies have one data source by its uid
and the defaults of all variables (all regions, all workers), no annotations, which a public dashboard does not query, and no
links, which lead to dashboards with a login. CML / Worker detail is not among them: its variable chooses the worker.
"""

import argparse
import json
import re
from pathlib import Path
from typing import Any

from grafana import build, conventions
from grafana.panels import ALL, Dashboard, Json, render

EVERYWHERE = ".*"
_VARIABLE = re.compile(r"\$(?:(\w+)|{(\w+)})")


def public(dashboard: Dashboard, datasource: str, job: str = conventions.JOB) -> Json:
    """Return the dashboard with the defaults of its variables, and with the uid of a data source."""
    made = render(dashboard)
    values = {each["name"]: _default(each, job) for each in made["templating"]["list"][1:]}

    def replaced(part: Any) -> Any:  # noqa: ANN401  # any part of a JSON document
        if isinstance(part, dict):
            return {key: [] if key == "links" else replaced(each) for key, each in part.items()}
        if isinstance(part, list):
            return [replaced(each) for each in part if not (isinstance(each, dict) and each.get("id") == "links")]
        if isinstance(part, str):
            return _VARIABLE.sub(lambda match: values.get(match[1] or match[2], match[0]), part)
        return part

    made = replaced(made) | {"uid": f"{dashboard.uid}-public", "title": f"{dashboard.title} (public)"}
    made["templating"], made["annotations"] = {"list": []}, {"list": []}
    text = json.dumps(made).replace("${datasource}", datasource)
    again: Json = json.loads(text)
    return again


def _default(variable: Json, job: str) -> str:
    if variable["multi"]:
        assert variable["current"]["value"] == [ALL]
        return EVERYWHERE
    return job if variable["name"] == "job" else str(variable["current"]["value"])


def dashboards() -> list[Dashboard]:
    """Return the dashboards that need no choice."""
    return [each for each in build.DASHBOARDS if each.uid != conventions.WORKER]


def main() -> None:
    """Write the files."""
    parser = argparse.ArgumentParser(description="Write dashboards without variables, for Grafana's public dashboards.")
    parser.add_argument("--datasource", required=True, help="uid of the Prometheus data source in Grafana")
    parser.add_argument("folder", type=Path, help="folder for the JSON files")
    chosen = parser.parse_args()
    chosen.folder.mkdir(parents=True, exist_ok=True)
    for each in dashboards():
        made = public(each, chosen.datasource)
        (chosen.folder / f"{made['uid']}.json").write_text(
            json.dumps(made, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
        )


if __name__ == "__main__":
    main()

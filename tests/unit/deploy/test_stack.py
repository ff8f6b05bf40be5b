"""docker-compose.yml, the Dockerfile, Grafana's provisioning and prometheus/ agree on names, ports and paths."""

import ast
import json
import re
import sys
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
import yaml

from deploy import check_stack
from deploy import demo_services as services
from exporter.core import assets
from exporter.core.settings_loader import ENV_PREFIX, load, table
from exporter.demo import past
from exporter.web.routes import ROUTES

ROOT = Path(__file__).parents[3]
COMPOSE_TEXT = (ROOT / "docker-compose.yml").read_text()
COMPOSE: dict[str, Any] = yaml.safe_load(COMPOSE_TEXT)
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
DOCKERFILE = (ROOT / "deploy" / "Dockerfile").read_text()
EXAMPLE = (ROOT / ".env.example").read_text()
PROVISIONING = ROOT / "grafana" / "provisioning"
PROMETHEUS = yaml.safe_load((ROOT / "prometheus" / "prometheus.yml").read_text())
GUIDE = (ROOT / "docs" / "deploy.md").read_text()
WORKFLOW = (ROOT / ".github" / "workflows" / "stack.yml").read_text()
PORTS = {"exporter": 9877, "mongodb": 27017, "prometheus": 9090, "alertmanager": 9093, "grafana": 3000, "fake-aws": 5000}
"""What each service listens on inside the stack."""


def provisioned(kind: str) -> dict[str, Any]:
    (file,) = (PROVISIONING / kind).iterdir()
    content: dict[str, Any] = yaml.safe_load(file.read_text())
    return content


SOURCES = {source["uid"]: source for source in provisioned("datasources")["datasources"]}
(PROVIDER,) = provisioned("dashboards")["providers"]


def mounts(service: str) -> Iterator[tuple[str, PurePosixPath, str]]:
    """(source, path in the container, mode) of each mount; variables of the source at their default."""
    for mount in SERVICES[service].get("volumes", ()):
        source, target, mode = [*re.sub(r"\$\{\w+:-(\w+)\}", r"\1", mount).split(":"), "rw"][:3]
        yield source, PurePosixPath(target), mode


def on_the_host(service: str, path: str) -> Path:
    """The file of the checkout that a path in the container means."""
    for source, target, _ in mounts(service):
        if source.startswith("./") and PurePosixPath(path).is_relative_to(target):
            return ROOT / source / PurePosixPath(path).relative_to(target)
    raise AssertionError(f"{service} has no {path}")


def flag(service: str, name: str) -> str:
    (value,) = [word.partition("=")[2] for word in SERVICES[service]["command"] if word.startswith(f"--{name}=")]
    return str(value)


def variables(text: str) -> set[str]:
    return set(re.findall(r"(?<!\$)\$\{(\w+)", text))


def strings(value: Any) -> Iterator[str]:  # noqa: ANN401  # any part of a YAML document
    for each in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from strings(each)
    if isinstance(value, str):
        yield value


# -- names and ports ---------------------------------------------------------------------------------------------------


def test_every_address_in_any_file_is_a_service_and_the_port_it_listens_on() -> None:
    said = [
        *strings(PROMETHEUS),
        *(source["url"] for source in SOURCES.values()),
        *strings(SERVICES),
        *EXAMPLE.splitlines(),
        assets.EXPORTER,
    ]
    names = "|".join([*SERVICES, "localhost"])
    found = {pair for text in said for pair in re.findall(rf"(?<![\w./-])(?:https?://)?({names}):(\d{{2,5}})(?![\d.])", text)}
    assert {(name, int(port)) for name, port in found} == {(name, port) for name, port in PORTS.items() if name != "grafana"}


def test_every_host_in_a_configuration_is_a_service() -> None:
    """Includes a misspelled one, which the test above does not recognize as a host."""
    addresses = [*strings(PROMETHEUS), *(source["url"] for source in SOURCES.values())]
    hosts = {found[1] for text in addresses if (found := re.match(r"(?:https?://)?([\w.-]+):\d{2,5}(?:/|$)", text))}
    assert hosts == {"exporter", "alertmanager", "prometheus"}


def test_published_and_checked_ports_are_those_the_services_listen_on() -> None:
    for name, service in SERVICES.items():
        assert [int(port.rpartition(":")[2]) for port in service.get("ports", ())] in ([], [PORTS.get(name)]), name
        checked = re.findall(r"(?:127\.0\.0\.1|mongodb)(?::|', | )(\d+)", " ".join(service["healthcheck"]["test"]))
        assert [int(port) for port in checked] == ([PORTS[name]] if name in PORTS else []), name
    assert SERVICES["fake-aws"]["command"] == ["fake-aws", "--listen", f"0.0.0.0:{PORTS['fake-aws']}"]
    assert next(setting.default for setting in table() if setting.key == "web.listen_address") == [f":{PORTS['exporter']}"]
    assert f"EXPOSE {PORTS['exporter']}\n" in DOCKERFILE


def test_the_exporter_is_checked_at_a_route_it_has() -> None:
    paths = {route.path for route in ROUTES}
    assert re.findall(r"'GET', '([^']+)'", DOCKERFILE) == ["/-/healthy"]
    assert {"/-/healthy", "/-/ready", "/api/v1/read", "/sd/workers"} <= paths
    urls = [text for text in strings(PROMETHEUS) if text.startswith("http://exporter:")]
    assert {"/" + url.split("/", 3)[3] for url in urls} <= paths


def test_the_databases_and_users_of_the_connection_strings_are_those_the_init_script_makes() -> None:
    script = (ROOT / "deploy" / "mongodb" / "users.js").read_text()
    (database,) = re.findall(r'const name = "(\w+)"', script)
    made = {(user, variable) for user, variable in re.findall(r'user\("(\w+)", process\.env\.(\w+)', script)}
    used = re.findall(r"mongodb://(\w+):\$\$?\{?(\w+)[^@]*@([^/:]+)[:\d]*/(\w+)", COMPOSE_TEXT)
    assert {(user, variable) for user, variable, _, _ in used} == made
    assert {name for _, _, _, name in used} == {database}
    assert {variable for _, variable in made} <= set(SERVICES["mongodb"]["environment"])
    assert (services.WORKERS, past.STATE) == ("workers", "demo_state")


def test_no_service_reaches_another_through_a_proxy() -> None:
    """Docker passes the proxy of its client to every container; health checks would use it, too."""
    for name, service in SERVICES.items():
        given = _environment(service)
        assert given["NO_PROXY"] == given["no_proxy"], name
        assert set(SERVICES) | {"localhost", "127.0.0.1", "169.254.169.254"} == set(given["NO_PROXY"].split(",")), name
        check = service["healthcheck"]["test"]
        assert check[1] != "wget" or check[check.index("-Y") + 1] == "off", name
        assert "urllib" not in str(check), name


# -- paths and volumes -------------------------------------------------------------------------------------------------


def test_every_volume_is_declared_and_belongs_to_one_service() -> None:
    named = [source for name in SERVICES for source, _, _ in mounts(name) if not source.startswith(".")]
    assert sorted(named) == sorted(COMPOSE["volumes"])


def test_every_file_that_is_mounted_is_in_the_checkout_and_read_only() -> None:
    for name in SERVICES:
        for source, _, mode in mounts(name):
            if source.startswith("."):
                assert (ROOT / source).exists(), source
                assert mode == "ro", source


def test_every_path_a_service_is_told_is_there() -> None:
    assert on_the_host("prometheus", flag("prometheus", "config.file")) == ROOT / "prometheus" / "prometheus.yml"
    assert [list((ROOT / "prometheus").glob(pattern)) for pattern in PROMETHEUS["rule_files"]] != [[]]
    start = on_the_host("alertmanager", SERVICES["alertmanager"]["entrypoint"][0]).read_text()
    default, own = re.findall(r"^\w+=\$\{\w+:-(/etc/[\w/.-]+)\}$", start, re.MULTILINE)
    assert on_the_host("alertmanager", default) == ROOT / "prometheus" / "alertmanager.yml"
    assert on_the_host("alertmanager", own).parent == ROOT / "prometheus" / "local"
    for service, path in (
        ("prometheus", flag("prometheus", "storage.tsdb.path")),
        ("alertmanager", flag("alertmanager", "storage.path")),
        ("exporter", dict(re.findall(r"(CML_EXPORTER_DATA_DIR)=(\S+)", DOCKERFILE))["CML_EXPORTER_DATA_DIR"]),
        ("grafana", "/var/lib/grafana"),
        ("mongodb", "/data/db"),
    ):
        assert (service, PurePosixPath(path), "rw") in list(mounts(service))
    assert on_the_host("mongodb", "/docker-entrypoint-initdb.d/users.js").is_file()
    (checked,) = re.findall(r"/tmp/\w+", str(SERVICES["simulator"]["healthcheck"]))
    assert SERVICES["simulator"]["command"] == ["manager", "--alive", checked]


def test_a_receivers_secret_is_where_the_configuration_says_and_git_and_the_image_have_none() -> None:
    text = (ROOT / "prometheus" / "alertmanager.yml").read_text()
    (named,) = re.findall(r"api_url_file: (/[\w./-]+)", text)
    folder = on_the_host("alertmanager", named).parent
    assert folder == ROOT / "secrets" / "alertmanager"
    assert f"{folder.relative_to(ROOT)}" in text
    rules = [line for line in (folder / ".gitignore").read_text().splitlines() if not line.startswith("#")]
    assert rules == ["*", "!.gitignore"]
    assert "!secrets" not in (ROOT / ".dockerignore").read_text()


def test_grafana_finds_its_data_source_its_dashboards_and_its_home() -> None:
    grafana = SERVICES["grafana"]["environment"]
    dashboards = on_the_host("grafana", PROVIDER["options"]["path"])
    home = on_the_host("grafana", grafana["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"])
    found = {json.loads(file.read_text())["uid"]: file for file in dashboards.glob("*.json")}
    assert set(found) == check_stack.DASHBOARDS
    assert found[check_stack.HOME] == home
    for kind in ("datasources", "dashboards", "alerting"):
        assert all(file.suffix == ".yml" for file in on_the_host("grafana", f"/etc/grafana/provisioning/{kind}").iterdir())
    assert PROVIDER["folder"]
    assert "foldersFromFilesStructure" not in PROVIDER["options"]
    assert not PROVIDER["allowUiUpdates"]


def test_the_data_sources_interval_and_timeout_fit_prometheus() -> None:
    source = SOURCES[check_stack.DATA_SOURCE]
    assert source["isDefault"]
    assert source["jsonData"]["timeInterval"] == PROMETHEUS["global"]["scrape_interval"]
    assert source["jsonData"]["alertmanagerUid"] in SOURCES
    (read,) = PROMETHEUS["remote_read"]
    assert read["remote_timeout"] == "1m"
    assert source["jsonData"]["timeout"] > 60, "Grafana waits as long as Prometheus does"


@pytest.mark.parametrize("kind", ["none", "webhook", "slack"])
def test_a_contact_point_is_whole_or_is_not_there_at_all(kind: str) -> None:
    content = provisioned(f"contact-points/{kind}")
    assert content.pop("apiVersion") == 1
    if kind == "none":
        assert not content
        return
    (contact,), (policy,) = content["contactPoints"], content["policies"]
    assert policy["receiver"] == contact["name"]
    (receiver,) = contact["receivers"]
    assert (receiver["type"], receiver["settings"]["url"]) == (kind, "${GRAFANA_CONTACT_URL}")
    assert "GRAFANA_CONTACT_URL" in SERVICES["grafana"]["environment"]


def test_the_kind_remove_deletes_what_the_other_kinds_create() -> None:
    content = provisioned("contact-points/remove")
    made = [provisioned(f"contact-points/{kind}") for kind in ("webhook", "slack")]
    ids = {(each["orgId"], receiver["uid"]) for one in made for each in one["contactPoints"] for receiver in each["receivers"]}
    assert {(each["orgId"], each["uid"]) for each in content["deleteContactPoints"]} == ids
    assert set(content["resetPolicies"]) == {each["orgId"] for one in made for each in one["policies"]}
    assert set(content) == {"apiVersion", "deleteContactPoints", "resetPolicies"}


def test_there_is_a_contact_point_for_every_kind_the_example_names() -> None:
    (kinds,) = re.findall(r"made in Grafana go: ([\w, ]+)\.", EXAMPLE)
    assert set(re.split(r", | or ", kinds)) == {folder.name for folder in (PROVISIONING / "contact-points").iterdir()}


# -- health, privileges, limits ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_is_pinned_checked_limited_and_may_do_little(name: str) -> None:
    service = SERVICES[name]
    if not service["image"].endswith(":local"):
        assert re.fullmatch(r"[\w./-]+:v?\d+\.\d+\.\d+", service["image"]), "not pinned to one version"
        assert not service["user"].startswith("0"), "runs as root"
    assert service["read_only"]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert "privileged" not in service
    assert re.fullmatch(r"\d+[mg]", service["mem_limit"])
    assert {"interval", "timeout", "start_period", "retries"} < set(service["healthcheck"])
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ())), "can be reached from elsewhere"
    for needed, how in service.get("depends_on", {}).items():
        assert needed in SERVICES
        # A check that a busy machine starves must not make the next `up` stop the service that waits for it.
        assert how == {"condition": "service_healthy" if name in ("fake-aws", "simulator") else "service_started"}


def test_an_image_of_our_own_is_built_by_one_service_and_pulled_by_none() -> None:
    """Two builds that export the same name fail where Docker keeps its images in containerd."""
    built = [service["image"] for service in SERVICES.values() if "build" in service]
    assert sorted(built) == sorted({service["image"] for service in SERVICES.values() if service["image"].endswith(":local")})
    for name, service in SERVICES.items():
        if service["image"] in built:
            assert "build" in service or service["pull_policy"] == "never", name


def test_the_exporter_is_checked_as_its_image_says() -> None:
    ((times, command),) = re.findall(r"^HEALTHCHECK (.*) \\\n  CMD (\[.*\])$", DOCKERFILE, re.MULTILINE)
    said = {name.replace("-", "_"): value for name, value in re.findall(r"--([\w-]+)=(\w+)", times)}
    check = {name: str(value) for name, value in SERVICES["exporter"]["healthcheck"].items() if name != "test"}
    assert check == said
    assert SERVICES["exporter"]["healthcheck"]["test"] == ["CMD", *json.loads(command)]


def test_the_guide_says_of_every_version_how_it_was_checked() -> None:
    pinned = {service["image"] for service in SERVICES.values() if not service["image"].endswith(":local")}
    pinned.add("python:" + re.findall("^ARG PYTHON=(.+)$", DOCKERFILE, re.MULTILINE)[0])
    assert set(re.findall(r"^\| `([^`]+:[^`]+)` \| [^|]{20,} \|$", GUIDE, re.MULTILINE)) == pinned


def test_the_guide_states_the_memory_limits() -> None:
    units = {"m": 1, "g": 1024}
    limits = {name: int(each["mem_limit"][:-1]) * units[each["mem_limit"][-1]] for name, each in SERVICES.items()}
    rows = re.findall(r"^\| ([^|]+) \|.*\| (\d[\d MB,]+) \|$", GUIDE, re.MULTILINE)
    told = {
        name: int(size)
        for names, sizes in rows
        for name, size in zip(re.findall(r"`([\w-]+)`", names), re.findall(r"(\d+) MB", sizes), strict=True)
    }
    assert told == limits
    (plain, demo) = map(int, re.findall(r"limits below: (\d+) GB, with the demo (\d+) GB", GUIDE)[0])
    assert demo * 1024 >= sum(limits.values()) > (demo - 1) * 1024
    without = sum(limit for name, limit in limits.items() if "profiles" not in SERVICES[name])
    assert plain * 1024 >= without > (plain - 1) * 1024


def test_what_the_guide_has_users_edit_is_ignored_by_git() -> None:
    """An upgrade by `git pull` then never conflicts."""
    kinds = ("further rules and targets", "thresholds", "receivers of alerts")
    cells = dict(re.findall(rf"^\| ({'|'.join(kinds)}) \| ([^|]+) \|", GUIDE, re.MULTILINE))
    named = [path for kind in kinds for path in re.findall("`([^`]+)`", cells[kind])]
    assert len(named) == 4
    assert all(path.startswith(("prometheus/local/", "secrets/alertmanager/")) for path in named)
    assert "prometheus/local/*" in (ROOT / ".gitignore").read_text().splitlines()


def test_the_guides_way_to_another_mongodb_fits_the_services() -> None:
    class Loader(yaml.SafeLoader):
        """Knows Compose's `!reset`."""

    Loader.add_constructor("!reset", lambda loader, node: {})
    (block,) = re.findall(r"  ```yaml\n(.*?)  ```", GUIDE, re.DOTALL)
    override = yaml.load(block, Loader)["services"]
    assert set(override) == {"exporter", "mongodb"}
    assert override["exporter"].pop("depends_on") == {}
    assert set(SERVICES["exporter"]["depends_on"]) == {"mongodb"}
    assert set(override["exporter"].pop("environment")) < set(SERVICES["exporter"]["environment"])
    assert not override["exporter"]
    assert override["mongodb"] == {"profiles": ["own-mongodb"]}


def test_no_command_of_the_guide_or_the_workflow_has_a_password_in_it() -> None:
    assert not re.findall(r"--password|://root", GUIDE + WORKFLOW)
    assert not re.findall(r"\$\$", str([service["healthcheck"]["test"] for service in SERVICES.values()]))


def test_only_the_exporter_and_the_demo_reach_mongodb() -> None:
    beside = {name for name, service in SERVICES.items() if "data" in service["networks"]}
    assert beside == {"mongodb", "exporter", "fake-aws", "simulator"}
    assert {name for name, service in SERVICES.items() if service.get("profiles") == ["demo"]} == {"fake-aws", "simulator"}


def test_grafana_is_closed_and_calls_nobody() -> None:
    grafana = SERVICES["grafana"]["environment"]
    assert grafana["GF_SECURITY_ADMIN_PASSWORD"] == "${GRAFANA_ADMIN_PASSWORD:-}", "its start script refuses an empty one"
    assert grafana["GF_AUTH_ANONYMOUS_ENABLED"] == grafana["GF_USERS_ALLOW_SIGN_UP"] == "false"
    updates = ("ANALYTICS_CHECK_FOR_UPDATES", "ANALYTICS_CHECK_FOR_PLUGIN_UPDATES", "PLUGINS_PREINSTALL_AUTO_UPDATE")
    off = (*updates, "ANALYTICS_REPORTING", "NEWS_NEWS_FEED", "SNAPSHOTS_EXTERNAL", "PLUGINS_PLUGIN_ADMIN")
    given = {name.removeprefix("GF_").removesuffix("_ENABLED"): value for name, value in grafana.items()}
    assert {name: given[name] for name in off} == dict.fromkeys(off, "false")
    calls = ("PLUGINS_PREINSTALL_DISABLED", "PLUGINS_PUBLIC_KEY_RETRIEVAL_DISABLED", "SECURITY_DISABLE_GRAVATAR")
    assert {name: given[name] for name in calls} == dict.fromkeys(calls, "true")


def test_a_new_env_and_the_check_of_a_stack_look_at_the_same_files() -> None:
    assert f'mounted="{" ".join(check_stack.MOUNTED)}"' in (ROOT / "deploy" / "new-env").read_text()


def test_a_script_of_ours_that_a_service_starts_is_mounted_and_can_be_executed() -> None:
    scripts = [
        (name, word)
        for name, service in SERVICES.items()
        for word in [*service.get("entrypoint", ()), *service["healthcheck"]["test"]]
        if word.startswith("/opt/")
    ]
    assert len(scripts) == 4
    for name, path in scripts:
        assert on_the_host(name, path).stat().st_mode & 0o111 == 0o111, path


# -- .env --------------------------------------------------------------------------------------------------------------


def test_the_example_lists_every_variable_and_no_other() -> None:
    passed = {key for service in SERVICES.values() for key, value in _environment(service).items() if value is None}
    passed |= {name for service in SERVICES.values() for name in service.get("build", {}).get("args", ())}
    listed = re.findall(r"^#?([A-Z][A-Z0-9_]+)=", EXAMPLE, re.MULTILINE)
    assert set(listed) == variables(COMPOSE_TEXT) | passed
    set_ones = re.findall(r"^([A-Z][A-Z0-9_]+)=", EXAMPLE, re.MULTILINE)
    assert len(set_ones) == len(set(set_ones))


def test_the_example_holds_no_password() -> None:
    assert ":?" not in COMPOSE_TEXT, "`down`, `ps` and `logs` would need .env too"
    given = dict(re.findall(r"^(\w+_PASSWORD)=(.*)$", EXAMPLE, re.MULTILINE))
    assert given == dict.fromkeys(sorted(name for name in variables(COMPOSE_TEXT) if name.endswith("_PASSWORD")), "")


def test_what_is_handed_to_the_exporter_are_settings_it_knows() -> None:
    handed = {name for name in SERVICES["exporter"]["environment"] if name.startswith(ENV_PREFIX)}
    assert handed <= {setting.env for setting in table()}
    example = dict(re.findall(r"^#?(CML_EXPORTER_\w+)=(.*)$", EXAMPLE, re.MULTILINE))
    load(environment=example | {"CML_EXPORTER_MONGODB__URI": "mongodb://mongodb/"})


def test_a_fresh_example_uses_the_fake_aws() -> None:
    given = check_stack.read_env(ROOT / ".env.example")
    assert given["CML_EXPORTER_CLOUDWATCH__ENDPOINT_URL"] == f"http://fake-aws:{PORTS['fake-aws']}"
    assert given["CML_EXPORTER_AWS__STS_ENDPOINT_URL"] == given["CML_EXPORTER_CLOUDWATCH__ENDPOINT_URL"]
    assert (given["AWS_ACCESS_KEY_ID"], given["AWS_SECRET_ACCESS_KEY"]) == ("demo", "demo")


def _environment(service: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = service.get("environment", {})
    return found


# -- the image ---------------------------------------------------------------------------------------------------------


def test_the_image_copies_what_the_context_has() -> None:
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    kept = {".git" if name.startswith(".git/") else name for name in kept}
    lines = re.findall(r"^COPY (?!--from)(.*)$", DOCKERFILE, re.MULTILINE)
    copied = {word.replace("[t]", "t") for line in lines for word in line.split()[:-1]}
    assert copied == kept
    assert all((ROOT / name).exists() for name in copied)


def test_the_image_installs_by_hash_only_runs_without_root_and_gets_its_signals() -> None:
    # A command may go over several lines and hold several installations.
    commands = re.sub(r"\\\n", " ", DOCKERFILE).replace("&&", "\n")
    installs = re.findall(r"pip (?:--python \S+ )?install (.*)", commands)
    assert len(installs) == 4
    assert all("--require-hashes" in each or re.match(r"--no-deps dist/", each) for each in installs)
    assert "--no-build-isolation" in commands
    users = re.findall(r"^USER (.*)$", DOCKERFILE, re.MULTILINE)
    assert [re.fullmatch(r"(\d+):\1", user) is not None for user in users] == [True]
    assert users != ["0:0"]
    started = re.findall(r"^(?:ENTRYPOINT|CMD|  CMD) (.*)$", DOCKERFILE, re.MULTILINE)
    assert [isinstance(json.loads(each), list) for each in started] == [True] * 4
    assert re.findall(r"^STOPSIGNAL (.*)$", DOCKERFILE, re.MULTILINE) == ["SIGTERM"]
    assert {service["build"]["target"] for service in SERVICES.values() if "build" in service} <= set(
        re.findall(r" AS (\w+)$", DOCKERFILE, re.MULTILINE)
    )


@pytest.mark.parametrize("demo", [False, True], ids=["exporter", "demo"])
def test_all_that_a_module_imports_is_pinned_for_its_image(demo: bool) -> None:
    pinned = (ROOT / ("requirements-demo.txt" if demo else "requirements.txt")).read_text()
    installed = {name.lower().replace("_", "-") for name in re.findall(r"^([\w.-]+)==", pinned, re.MULTILINE)}
    provides = packages_distributions()
    beside = [ROOT / "deploy" / "demo_services.py"] if demo else []
    for file in (*sorted((ROOT / "exporter").rglob("*.py")), *beside):
        if file == ROOT / "exporter" / "demo" / "aws.py" and not demo:
            continue
        if file == ROOT / "exporter" / "commands" / "export" / "parquet.py":  # 150 MB that the images do without
            continue
        for name in _foreign(file):
            distributions = {each.lower().replace("_", "-") for each in provides.get(name, [name])}
            assert distributions & installed, f"{file.name} imports {name}, of which no image has a pinned version"


def _foreign(file: Path) -> set[str]:
    named = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            named |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            named.add(node.module)
    named = {name for name in named if not name.startswith("types_")}  # imported for mypy only
    heads = {name.partition(".")[0] for name in named}
    return heads - set(sys.stdlib_module_names) - {"exporter", "google"} | {
        "google" for name in named if name.startswith("google.")
    }


def test_the_image_has_the_python_the_tests_run_with() -> None:
    (version,) = re.findall(r"^ARG PYTHON=(\d+\.\d+)\.\d+-slim-\w+$", DOCKERFILE, re.MULTILINE)
    assert f'requires-python = ">={version}"' in (ROOT / "pyproject.toml").read_text()


# -- the workflow ------------------------------------------------------------------------------------------------------


def test_the_workflow_uses_what_is_there() -> None:
    jobs = yaml.safe_load(WORKFLOW)["jobs"].values()
    script = "\n".join(step.get("run", "") for job in jobs for step in job["steps"])
    assert set(re.findall(r"deploy/[\w.-]+", script)) == {"deploy/new-env", "deploy/check_stack.py", "deploy/Dockerfile"}
    assert all((ROOT / name).is_file() for name in re.findall(r"deploy/[\w.-]+", script))
    images = {service["image"] for service in SERVICES.values() if "build" in service}
    assert set(re.findall(r"[\w-]+:local", script)) == images

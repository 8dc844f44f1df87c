"""docker-compose.yml and what it mounts: what is known without Docker, and Compose's own word where it is installed."""

from __future__ import annotations

import itertools
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from kong_plugins.adapters.outbox import SinkStatus
from kong_plugins.adapters.plugin_metrics import PostingMetrics
from kong_plugins.adapters.sinks import open_sink
from kong_plugins.application.deliver import Progress
from kong_plugins.cli.collector import run
from kong_plugins.cli.compose import make_secrets
from kong_plugins.cli.stack import default_config, keys_for
from kong_plugins.collector.metrics import Metrics
from kong_plugins.collector.sink_names import name_and_url

ROOT = Path(__file__).parents[2]
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
ENGINES = {"sim": "vllm-sim", "gpu": "vllm-gpu", "cpu-engine": "vllm-cpu"}
PROFILES = [*ENGINES, "analytics"]


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_is_pinned_watched_bounded_and_closed(name: str) -> None:
    """A tag is a version; there is a health check, a limit of CPU and memory, a bound on logs; no privilege."""
    service = SERVICES[name]
    tag = service["image"].partition(":")[2]
    assert re.search(r"\d+\.\d+\.\d+", tag), "a tag that names no version is another image tomorrow"
    assert service["healthcheck"]["test"]
    limits = service["deploy"]["resources"]["limits"]
    assert {"cpus", "memory"} <= limits.keys()
    assert service["logging"]["options"]["max-size"]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert not service.get("privileged")
    if name not in {"vllm-gpu", "vllm-cpu", "clickhouse", "kafka"}:  # these write beside their programs
        assert service["read_only"] is True


def test_only_kongs_proxy_port_is_published_and_only_on_this_machine() -> None:
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    assert published == {"kong": ["127.0.0.1:${TOKEN_QUOTA_PORT:-8000}:8000"]}


def test_networks_are_internal_but_for_kongs_way_in_and_the_models() -> None:
    """Whoever is on an open network can be reached from, and reach, the outside."""
    opened = {name for name, network in COMPOSE["networks"].items() if not network.get("internal")}
    assert opened == {"edge", "download"}
    on_open = {name for name, service in SERVICES.items() if opened & set(service.get("networks", ()))}
    assert on_open == {"kong", "vllm-gpu"}


def test_no_secret_stands_in_the_file() -> None:
    """Passwords, tokens and keys come by files that `make-secrets.sh` makes; the environment holds paths at most."""
    assert all(secret.keys() == {"file"} for secret in COMPOSE["secrets"].values())
    for name, service in SERVICES.items():
        assert set(service.get("secrets", ())) <= COMPOSE["secrets"].keys(), name
        for variable, value in service.get("environment", {}).items():
            if re.search("PASSWORD|TOKEN|SECRET|KEY", variable.removeprefix("TOKEN_QUOTA")):
                assert str(value).startswith(("/run/secrets/", "/run/tenants/")), f"{name}: {variable}"


def source_of(volume: str) -> str:
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", volume).split(":")[0]


def test_every_mounted_file_is_there(tmp_path: Path) -> None:
    make_secrets(tmp_path, default_config(), {})
    for name, service in SERVICES.items():
        for source in map(source_of, service.get("volumes", ())):
            if source.startswith("./secrets/"):
                assert (tmp_path / source.removeprefix("./secrets/")).exists(), f"{name}: {source}"
            elif source.startswith("./"):
                assert (ROOT / source).exists(), f"{name}: {source}"
            else:
                assert source in COMPOSE["volumes"], f"{name}: {source}"


def test_what_a_reload_reads_again_is_mounted_by_its_directory(tmp_path: Path) -> None:
    """A file that an editor or git puts in the place of a mounted one is not seen in the container."""
    make_secrets(tmp_path, default_config(), {})
    kong = SERVICES["kong"]
    mounts = {volume.split(":")[-2]: source_of(volume) for volume in kong["volumes"] if volume.endswith(":ro")}
    environment = {name: re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", value) for name, value in kong["environment"].items()}
    config, keys = (Path(environment[f"TOKEN_QUOTA_{name}"]) for name in ("CONFIG", "KEYS_FILE"))
    assert (ROOT / mounts[str(config.parent)] / config.name).is_file()
    secrets = tmp_path / mounts[str(keys.parent)].removeprefix("./secrets/")
    assert secrets.is_dir()
    assert [file.name for file in secrets.iterdir()] == [keys.name]  # and nothing that Kong need not know


def test_all_but_the_gpus_engine_start_on_two_cores() -> None:
    """Docker refuses a limit of more cores than there are."""
    limits = {name: float(each["deploy"]["resources"]["limits"]["cpus"]) for name, each in SERVICES.items()}
    assert {name for name, cores in limits.items() if cores > 2} == {"vllm-gpu"}


def test_engines_have_shared_memory_for_their_processes() -> None:
    """vLLM's ask for 160 MiB, and end where there is less; Docker's default is 64."""
    assert {SERVICES[name]["shm_size"] for name in ("vllm-gpu", "vllm-cpu")} == {"8g", "1g"}


def test_each_engine_answers_under_the_name_that_kong_yaml_calls() -> None:
    """One of them runs; .env chooses the stand-in where nothing is said."""
    deck = yaml.safe_load(default_config().read_text())
    host = re.match(r"http://([^:/]+):8000/v1", deck["services"][0]["url"])
    assert host is not None
    for profile, name in ENGINES.items():
        assert SERVICES[name]["profiles"] == [profile]
        assert SERVICES[name]["networks"]["engine"]["aliases"] == [host[1]]
        assert SERVICES["kong"]["depends_on"][name] == {"condition": "service_healthy", "required": False}
    assert "COMPOSE_PROFILES=sim" in (ROOT / ".env").read_text().splitlines()


def test_the_collectors_run_with_options_and_sinks_that_exist(tmp_path: Path) -> None:
    """A sink's URL, with its options, is one that the collector opens; options are spelled as the command has them."""
    (tmp_path / "clickhouse_password").write_text("s3cret")
    options = {"--sink", "--listen", "--token-file", "--engine"}
    assert {f"--{name.replace('_', '-')}" for name in run.__annotations__} >= options
    for name in ("collector", "collector-analytics"):
        command = SERVICES[name]["command"]
        assert command[:2] == ["collector", "run"]
        assert {word for word in command if word.startswith("--")} <= options
        sinks = [url for option, url in itertools.pairwise(command) if option == "--sink"]
        assert sinks
        for sink in sinks:
            open_sink(name_and_url(sink)[1].replace("/run/secrets", str(tmp_path))).close()


def test_made_up_secrets_are_what_compose_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every file is there and stays as it is; keys that are given are taken, in a directory closed to others."""
    monkeypatch.setenv("DECK_TENANT_A_KEY", "given-by-me")
    monkeypatch.delenv("DECK_TENANT_B_KEY", raising=False)  # a stack of this session may have set it
    keys, generated = keys_for(default_config())
    assert generated == ["DECK_TENANT_B_KEY"]
    directory = tmp_path / "secrets"
    make_secrets(directory, default_config(), keys)
    assert directory.stat().st_mode & 0o777 == 0o700
    wanted = {secret["file"].rpartition("/")[2] for secret in COMPOSE["secrets"].values()}
    assert {file.name for file in directory.iterdir()} == {*wanted, "kong"}
    lines = dict(line.split("=", 1) for line in (directory / "kong" / "tenant_keys").read_text().splitlines())
    assert {name: lines[name] for name in keys} == keys
    assert lines["DECK_COLLECTOR_TOKEN"] == (directory / "collector_token").read_text()
    before = {file: file.read_text() for file in directory.rglob("*") if file.is_file()}
    monkeypatch.delenv("DECK_TENANT_A_KEY")
    make_secrets(directory, default_config(), {})
    assert {file: file.read_text() for file in directory.rglob("*") if file.is_file()} == before


def test_dashboard_and_alerts_ask_for_metrics_that_we_have() -> None:
    """A renamed metric would leave a panel empty and an alert silent."""
    progress = Progress()
    collector = Metrics({"a": progress}, lambda: [SinkStatus("a")])
    collector.observe_write("a", 1, 0.1)
    page = collector.page()[0].decode()
    have = {sample.name for family in text_string_to_metric_families(page) for sample in family.samples}
    have |= {
        f"{family.name}_total" if family.type == "counter" else family.name for family in PostingMetrics(list).collect()
    }
    have |= {
        f"token_quota_collector_{name}" for name in ("posted_total", "job_failures_total")
    }  # made at the first one
    dashboard = json.loads((ROOT / "deploy" / "grafana" / "dashboards" / "token-quota.json").read_text())
    asked = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ())]
    alerts = yaml.safe_load((ROOT / "deploy" / "prometheus" / "alerts.yml").read_text())
    asked += [rule["expr"] for group in alerts["groups"] for rule in group["rules"]]
    named = {name for expression in asked for name in re.findall(r"\btoken_quota_\w+", expression)}
    assert len(named) > 10
    assert named <= have


def test_grafana_reads_the_prometheus_that_it_is_given() -> None:
    provisioning = ROOT / "deploy" / "grafana" / "provisioning"
    (source,) = yaml.safe_load((provisioning / "datasources" / "prometheus.yaml").read_text())["datasources"]
    dashboard = json.loads((ROOT / "deploy" / "grafana" / "dashboards" / "token-quota.json").read_text())
    assert {panel["datasource"]["uid"] for panel in dashboard["panels"] if "datasource" in panel} == {source["uid"]}
    assert SERVICES["prometheus"]["network_mode"] == "service:kong"
    assert source["url"] == "http://kong:9090"
    assert "metrics" in SERVICES["kong"]["networks"]
    (provider,) = yaml.safe_load((provisioning / "dashboards" / "token-quota.yaml").read_text())["providers"]
    assert any(volume.split(":")[1] == provider["options"]["path"] for volume in SERVICES["grafana"]["volumes"])


def test_compose_itself_takes_every_combination_of_profiles() -> None:
    if not shutil.which("docker"):
        pytest.skip("docker is not installed")
    if subprocess.run(["docker", "compose", "version"], capture_output=True, check=False).returncode:
        pytest.skip("docker compose is not installed")
    for engine, analytics in itertools.product([*ENGINES, None], [False, True]):
        chosen = [*([engine] if engine else []), *(["analytics"] if analytics else [])]
        flags = [word for profile in chosen for word in ("--profile", profile)]
        done = subprocess.run(
            ["docker", "compose", *flags, "config", "--services"], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        # A flag replaces what .env says; without any, the stand-in runs.
        expected = {
            name for name, service in SERVICES.items() if set(service.get("profiles", ())) & set(chosen or ["sim"])
        }
        assert set(done.stdout.split()) == {"kong", "ledger", "collector"} | expected

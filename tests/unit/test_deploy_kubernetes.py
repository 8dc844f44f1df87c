"""deploy/kubernetes: resources against their schemas, budgets against our own, and names that have to meet."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from kong_plugins.adapters.kong_schema import complete
from kong_plugins.billing_events.schema import SCHEMA as BILLING_EVENTS
from kong_plugins.cli.stack import default_config
from kong_plugins.local_gateway.lua_host.host import LuaHost
from kong_plugins.token_quota.config import parse_config

ROOT = Path(__file__).parents[2] / "deploy" / "kubernetes"
KUBERNETES = "1.33"
LUA_PLUGINS = ("usage-gate", "usage-tap")

# The fields that we use of Kong Ingress Controller's kinds (configuration.konghq.com/v1), and those it requires.
KONG_KINDS = {
    "KongPlugin": (
        {"plugin", "config", "configFrom", "configPatches", "disabled", "instance_name", "protocols"},
        {"plugin"},
    ),
    "KongClusterPlugin": ({"plugin", "config", "configFrom", "disabled", "instance_name", "protocols"}, {"plugin"}),
    "KongConsumer": ({"username", "custom_id", "credentials", "consumerGroups"}, {"username"}),
}


def resources(directory: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    for file in sorted(directory.rglob("*.yaml")):
        if file.name not in {"kustomization.yaml", "values.yaml"}:
            for resource in yaml.safe_load_all(file.read_text()):
                yield file, resource


ALL = [
    pytest.param(each, id=f"{file.stem}-{each['kind']}-{each['metadata']['name']}") for file, each in resources(ROOT)
]
KONG = [each for _, each in resources(ROOT / "kong")]
BASE = [each for _, each in resources(ROOT / "base")]


def named(kind: str, among: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {each["metadata"]["name"]: each for each in among if each["kind"] == kind}


def lua_fields(plugin: str) -> list[Any]:
    root = default_config().parent / "plugins"
    return list(LuaHost(root).fields(plugin))


@pytest.mark.parametrize("resource", ALL)
def test_resources_are_what_kubernetes_knows(resource: dict[str, Any]) -> None:
    """Strictly: an unknown field is an error. Kinds of Kong's and of the Prometheus operator have no schema there."""
    kubernetes_validate = pytest.importorskip("kubernetes_validate", reason="pip install kubernetes-validate")
    if "konghq.com" in resource["apiVersion"] or "coreos.com" in resource["apiVersion"]:
        pytest.skip("a custom resource")
    kubernetes_validate.validate(resource, KUBERNETES, strict=True)


@pytest.mark.parametrize(
    "resource", [each for each in KONG if each["kind"].startswith("Kong")], ids=lambda r: r["kind"]
)
def test_kongs_resources_have_only_fields_that_its_controller_reads(resource: dict[str, Any]) -> None:
    known, required = KONG_KINDS[resource["kind"]]
    fields = resource.keys() - {"apiVersion", "kind", "metadata"}
    assert fields <= known
    assert required <= fields
    assert resource["apiVersion"] == "configuration.konghq.com/v1"
    if resource["kind"] != "KongPlugin":  # these are nobody's without their class
        assert resource["metadata"]["annotations"]["kubernetes.io/ingress.class"] == "kong"


def test_every_plugins_config_is_one_that_kong_takes() -> None:
    """By the schemas that Kong itself checks, and for budgets by the checks across fields."""
    rows = [each for each in KONG if each["kind"] in {"KongPlugin", "KongClusterPlugin"}]
    seen = set()
    for row in rows:
        plugin, config = row["plugin"], row["config"]
        seen.add(plugin)
        if plugin == "token-quota":
            parse_config({**config, "ledger_url": "redis://127.0.0.1:6379/0"}, {})
        elif plugin == "billing-events":
            assert complete(BILLING_EVENTS, config, "config")[1] == []
        elif plugin in LUA_PLUGINS:
            assert complete(lua_fields(plugin), config, "config")[1] == []
    assert seen == {"pre-function", "key-auth", "token-quota", "billing-events", *LUA_PLUGINS}


def test_the_route_has_all_five_plugins_and_every_name_leads_somewhere() -> None:
    """Without usage-gate a 503, without usage-tap a 404: an annotation that names nobody is such a gap."""
    plugins = {**named("KongPlugin", KONG), **named("KongClusterPlugin", KONG)}
    (route,) = named("Ingress", KONG).values()
    on_route = route["metadata"]["annotations"]["konghq.com/plugins"].split(",")
    assert {plugins[name]["plugin"] for name in on_route} >= {"key-auth", "token-quota", "billing-events", *LUA_PLUGINS}
    assert route["metadata"]["annotations"]["konghq.com/response-buffering"] == "false"
    for consumer in named("KongConsumer", KONG).values():
        for name in consumer["metadata"]["annotations"]["konghq.com/plugins"].split(","):
            assert plugins[name]["plugin"] == "token-quota"
        for credential in consumer["credentials"]:
            assert named("Secret", KONG)[credential]["metadata"]["labels"]["konghq.com/credential"] == "key-auth"


def test_pods_have_probes_limits_and_no_privilege() -> None:
    pods = [each["spec"]["template"]["spec"] for each in BASE if each["kind"] in {"Deployment", "StatefulSet"}]
    assert len(pods) == 2
    for pod in pods:
        assert pod["securityContext"]["runAsNonRoot"]
        assert pod["automountServiceAccountToken"] is False
        for container in pod["containers"]:
            assert {"readinessProbe", "livenessProbe"} <= container.keys()
            assert {"cpu", "memory"} <= container["resources"]["limits"].keys()
            assert container["securityContext"]["readOnlyRootFilesystem"]
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
            assert container["image"].rpartition(":")[2][0].isdigit()


def test_pods_find_their_claims_secrets_and_one_another() -> None:
    """What a pod mounts is made here or shown in secrets.example.yaml; the ledger's nodes have the names they go by."""
    (ledger,) = named("StatefulSet", BASE).values()
    (collector,) = named("Deployment", BASE).values()
    example = yaml.safe_load((ROOT / "secrets.example.yaml").read_text())
    for workload in (ledger, collector):
        for volume in workload["spec"]["template"]["spec"]["volumes"]:
            if "secret" in volume:
                assert volume["secret"]["secretName"] == example["metadata"]["name"]
                assert {item["key"] for item in volume["secret"]["items"]} <= example["stringData"].keys()
            if "persistentVolumeClaim" in volume:
                assert volume["persistentVolumeClaim"]["claimName"] in named("PersistentVolumeClaim", BASE)
    env = {each["name"]: each.get("value") for each in ledger["spec"]["template"]["spec"]["containers"][0]["env"]}
    service = ledger["spec"]["serviceName"]
    nodes = [f"{ledger['metadata']['name']}-{n}.{service}" for n in range(ledger["spec"]["replicas"])]
    assert env["LEDGER_NODES"].split() == [f"{node}:6379:26379" for node in nodes]
    assert env["LEDGER_SELF"] == f"$(POD_NAME).{service}:6379:26379"
    assert named("Service", BASE)[service]["spec"]["publishNotReadyAddresses"]
    url = collector["spec"]["template"]["spec"]["containers"][0]["env"][0]["value"]
    assert url == f"redis+sentinel://{','.join(f'{node}:26379' for node in nodes)}/ledger/0"


def test_the_chart_runs_what_the_image_runs() -> None:
    """The chart's own defaults would win over the image's kong.conf where they differ."""
    values = yaml.safe_load((ROOT / "kong" / "values.yaml").read_text())
    conf = (default_config().parent / "kong.conf").read_text()
    lines = dict(line.split(" = ", 1) for line in conf.splitlines() if " = " in line and not line.startswith("#"))
    for name in ("plugins", "lua_package_path"):
        assert values["env"][name] == lines[name]
    mount = values["deployment"]["userDefinedVolumeMounts"][0]["mountPath"]
    assert values["customEnv"]["token_quota_spool_dir"].startswith(mount)
    assert values["customEnv"]["token_quota_ledger_password_file"].split("/")[3] in values["secretVolumes"]


@pytest.mark.parametrize(
    "overlay", ["overlays/sentinel", "overlays/cluster", "overlays/managed", "overlays/monitoring", "kong"]
)
def test_kustomize_builds_it(overlay: str) -> None:
    program = shutil.which("kustomize")
    if program is None:
        pytest.skip("kustomize is not installed")
    built = subprocess.run([program, "build", str(ROOT / overlay)], capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    assert "CHANGE-ME" not in built.stdout

"""deploy/kubernetes: valid, confined as the Pod Security Standards demand, and consistent."""

import copy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

import nullsmtpd

FOLDER = Path(__file__).parents[2] / "deploy" / "kubernetes"
DAEMONSET, DEPLOYMENT = FOLDER / "daemonset.yaml", FOLDER / "deployment.yaml"

#: The first with preStop's sleep enabled by default, and the newest of which there are schemas.
VERSIONS = ("1.30", "1.37")

Object = dict[str, Any]

each_file = pytest.mark.parametrize("path", [DAEMONSET, DEPLOYMENT], ids=lambda path: path.stem)


def validate(path: Path, version: str) -> subprocess.CompletedProcess[str]:
    """Check every document of a file against the schemas of a version, in which unknown keys are errors."""
    command = (sys.executable, "-m", "kubernetes_validate", "--strict", "-k", version, str(path))
    return subprocess.run(command, capture_output=True, text=True, check=False)


def objects(path: Path) -> dict[str, Object]:
    """Return the documents of a file by their kind."""
    return {document["kind"]: document for document in yaml.safe_load_all(path.read_text())}


def pod_template(path: Path) -> Object:
    """Return the pod template of a file."""
    found = objects(path)
    template = (found.get("DaemonSet") or found["Deployment"])["spec"]["template"]
    assert isinstance(template, dict)
    return template


@each_file
@pytest.mark.parametrize("version", VERSIONS)
def test_every_document_is_valid(path: Path, version: str) -> None:
    """All of them, strictly, by the schemas of the oldest supported version and of the newest."""
    checked = validate(path, version)
    assert checked.returncode == 0, checked.stdout
    assert checked.stdout.count(" passed for resource ") == len(list(yaml.safe_load_all(path.read_text())))


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("readOnlyRootFilesystem:", "readOnlyRootFileSystem:"),
        ("runAsUser: 65532", 'runAsUser: "65532"'),
        ("maxUnavailable: 1", "maxUnavailible: 1"),
        ("policyTypes:", "policyType:"),
        ("targetPort: smtp", "targetport: smtp"),
    ],
)
def test_mistake_is_found_by_the_schemas(right: str, wrong: str, tmp_path: Path) -> None:
    """The check above notices a misspelt key or a value of the wrong type, in every document."""
    text = DEPLOYMENT.read_text()
    assert right in text
    (path := tmp_path / "deployment.yaml").write_text(text.replace(right, wrong))
    assert validate(path, VERSIONS[-1]).returncode == 1


def violations(pod: Object) -> set[str]:
    """Return which rules of the Pod Security Standard "restricted", "baseline" included, a pod's spec breaks.

    https://kubernetes.io/docs/concepts/security/pod-security-standards/, without the rules for sysctls, AppArmor and
    SELinux, which these specs do not set. No volumes are allowed here.
    """
    context = pod.get("securityContext", {})
    broken = {name for name in ("hostNetwork", "hostPID", "hostIPC", "volumes") if pod.get(name)}
    for container in [*pod["containers"], *pod.get("initContainers", [])]:
        merged = context | container.get("securityContext", {})
        capabilities = merged.get("capabilities", {})
        broken |= {"hostPort" for port in container.get("ports", []) if port.get("hostPort")}
        rules = {
            "privileged": not merged.get("privileged"),
            "allowPrivilegeEscalation": merged.get("allowPrivilegeEscalation") is False,
            "runAsNonRoot": merged.get("runAsNonRoot") is True,
            "runAsUser": merged.get("runAsUser") != 0,
            "seccompProfile": merged.get("seccompProfile", {}).get("type") in {"RuntimeDefault", "Localhost"},
            "capabilities": capabilities.get("drop") == ["ALL"] and not capabilities.get("add"),
        }
        broken |= {name for name, kept in rules.items() if not kept}
    return broken


def test_pods_meet_the_restricted_standard_except_for_the_host_port() -> None:
    """The label of each namespace says so: one that enforces "restricted" gets no pod that breaks it."""
    assert violations(pod_template(DEPLOYMENT)["spec"]) == set()
    assert violations(pod_template(DAEMONSET)["spec"]) == {"hostPort"}
    for path, level in ((DEPLOYMENT, "restricted"), (DAEMONSET, "privileged")):
        assert objects(path)["Namespace"]["metadata"]["labels"] == {"pod-security.kubernetes.io/enforce": level}


BREAKING: dict[str, Callable[[Object], object]] = {
    "hostNetwork": lambda pod: pod.update(hostNetwork=True),
    "hostPort": lambda pod: pod["containers"][0]["ports"][0].update(hostPort=25),
    "privileged": lambda pod: pod["containers"][0]["securityContext"].update(privileged=True),
    "allowPrivilegeEscalation": lambda pod: pod["containers"][0]["securityContext"].pop("allowPrivilegeEscalation"),
    "runAsNonRoot": lambda pod: pod["securityContext"].pop("runAsNonRoot"),
    "runAsUser": lambda pod: pod["securityContext"].update(runAsUser=0),
    "seccompProfile": lambda pod: pod["securityContext"].pop("seccompProfile"),
    "capabilities": lambda pod: pod["containers"][0]["securityContext"]["capabilities"].pop("drop"),
}


@pytest.mark.parametrize("rule", BREAKING)
def test_each_breach_of_the_standard_is_noticed(rule: str) -> None:
    """The check above finds the rule that a spec breaks."""
    pod = copy.deepcopy(pod_template(DEPLOYMENT)["spec"])
    BREAKING[rule](pod)
    assert violations(pod) == {rule}


@each_file
def test_pods_have_limits_and_probes_and_no_more_than_they_need(path: Path) -> None:
    """No token, no variables of services, nothing to write; liveness is the line, readiness the port."""
    spec = pod_template(path)["spec"]
    (container,) = spec["containers"]
    assert spec["automountServiceAccountToken"] is False
    assert spec["enableServiceLinks"] is False
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert container["resources"]["limits"] == {"memory": "640Mi"}
    assert container["livenessProbe"]["exec"]["command"] == ["nullsmtpd", "check"]
    assert container["readinessProbe"]["tcpSocket"]["port"] == container["ports"][0]["name"]
    sleep = container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
    assert spec["terminationGracePeriodSeconds"] > sleep + 2  # --linger


@each_file
def test_everything_selects_these_pods_and_this_port(path: Path) -> None:
    """Selectors, spread, policy and service use the labels and ports of the pods."""
    template = pod_template(path)
    labels = template["metadata"]["labels"]
    (container,) = template["spec"]["containers"]
    port, metrics = container["ports"]
    found = objects(path)
    namespace = found.pop("Namespace")["metadata"]["name"]
    assert {each["metadata"]["namespace"] for each in found.values()} == {namespace}
    for each in (found.get("DaemonSet"), found.get("Deployment"), found.get("PodDisruptionBudget")):
        assert each is None or each["spec"]["selector"] == {"matchLabels": labels}
    for spread in template["spec"].get("topologySpreadConstraints", []):
        assert spread["labelSelector"] == {"matchLabels": labels}
    policy = found["NetworkPolicy"]["spec"]
    assert policy["podSelector"] == {"matchLabels": labels}
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    assert policy["ingress"] == [
        {"ports": [{"protocol": "TCP", "port": port["name"]}]},
        {"from": [MONITORING], "ports": [{"protocol": "TCP", "port": metrics["name"]}]},
    ]
    assert "egress" not in policy
    if service := found.get("Service"):
        assert service["spec"]["selector"] == labels
        assert service["spec"]["ports"] == [{"name": "smtp", "port": 25, "targetPort": port["name"]}]
    else:
        assert port["hostPort"] == 25
    assert port["containerPort"] == 2525
    assert template["metadata"]["annotations"]["prometheus.io/port"] == str(metrics["containerPort"])
    assert container["env"] == [{"name": "NULLSMTPD_METRICS", "value": f"0.0.0.0:{metrics['containerPort']}"}]


#: Where Prometheus is.
MONITORING = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}


@each_file
def test_image_is_this_version(path: Path) -> None:
    """A tag identifies the code that runs; "latest" would be whatever the node happened to pull."""
    (container,) = pod_template(path)["spec"]["containers"]
    assert container["image"].endswith(f"/nullsmtpd:{nullsmtpd.__version__}")

"""deploy/compose.yaml: valid by the Compose specification, and without privileges."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

COMPOSE = Path(__file__).parents[2] / "deploy" / "compose.yaml"


def validate(path: Path) -> subprocess.CompletedProcess[str]:
    """Check a file against the published schema, of which check-jsonschema has a copy."""
    command = (sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(path))
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture
def service() -> dict[str, Any]:
    (only,) = yaml.safe_load(COMPOSE.read_text())["services"].values()
    assert isinstance(only, dict)
    return only


def test_file_is_valid_by_the_compose_specification() -> None:
    """Unknown keys are errors."""
    checked = validate(COMPOSE)
    assert checked.returncode == 0, checked.stdout


def test_mistake_is_found_by_the_schema(tmp_path: Path) -> None:
    """The check above notices a misspelt key and a value of the wrong type."""
    for right, wrong in (("cap_drop:", "cap_dorp:"), ('user: "65532:65532"', "user: 65532")):
        path = tmp_path / "compose.yaml"
        path.write_text(COMPOSE.read_text().replace(right, wrong))
        assert validate(path).returncode == 1


def test_service_has_no_privileges(service: dict[str, Any]) -> None:
    """No root, no capability, nothing to write, limited memory and processes; the health check is the image's."""
    assert service["user"] == "65532:65532"
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert (service["mem_limit"], service["pids_limit"]) == ("640m", 16)
    assert service["ports"] == ["25:2525"]
    assert service.keys().isdisjoint({"cap_add", "privileged", "volumes", "network_mode", "healthcheck"})

"""Services of docker-compose.yml with the variables in them filled in, as Compose does it."""

import re
from pathlib import Path
from typing import Any

import yaml

COMPOSE = Path(__file__).parents[2] / "docker-compose.yml"
SECRETS = {"RAY_AUTH_TOKEN_PATH": "/home/me/.ray/auth_token", "GRAFANA_PASSWORD_PATH": "/home/me/grafana_password"}
_VARIABLE = re.compile(r"\$\{(\w+):([-?])([^}]*)\}")


def service(name: str, environment: dict[str, str]) -> dict[str, Any]:
    """The content of a service, given the environment that Compose runs in.

    Raises:
        ValueError: a variable is missing that has no default.
    """

    def fill(found: re.Match[str]) -> str:
        variable, kind, text = found.groups()
        if variable in environment:
            return environment[variable]
        if kind == "?":
            raise ValueError(f"{variable}: {text}")
        return text

    return yaml.safe_load(_VARIABLE.sub(fill, COMPOSE.read_text()))["services"][name]

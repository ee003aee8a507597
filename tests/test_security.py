"""Who gets in, who may read what, and what is never read: tokens, listening ports, pickles, secrets in files."""

import ast
import json
import re
import socket
import ssl
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from .own_cluster import BIN, Cluster, own_cluster, own_user

ROOT = Path(__file__).parents[1]

# What an embedded session of a new user shows of itself.
EMBEDDED = """
import json, os, pathlib
import psutil, ray, requests
from optimag_dist.ray_session import ensure_ray

os.umask(0o022)
ensure_ray(num_cpus=1)
where = ray._private.worker.global_worker.node.address_info
url = f"http://{where['webui_url']}/api/jobs/"
token = pathlib.Path.home() / ".ray/auth_token"
known = os.environ.get("RAY_AUTH_TOKEN") or token.read_text()
ask = lambda **headers: requests.get(url, headers=headers, timeout=30).status_code
listening = {}
for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
    for connection in process.net_connections("tcp"):
        if connection.status == psutil.CONN_LISTEN:
            listening.setdefault(connection.laddr.port, []).append(connection.laddr.ip)
print(json.dumps({
    "mode": oct(token.stat().st_mode & 0o777) if token.exists() else None,
    "without": ask(),
    "wrong": ask(Authorization="Bearer " + "0" * 64),
    "with": ask(Authorization=f"Bearer {known}"),
    "dashboard": listening[int(where["webui_url"].rpartition(":")[2])],
    "listening": listening,
}))
"""


def _embedded(home: Path) -> dict[str, Any]:
    with own_user(home) as environment:
        done = subprocess.run(
            [sys.executable, "-c", EMBEDDED], env=environment, capture_output=True, text=True, check=False, timeout=240
        )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_an_embedded_session_asks_for_a_token_only_its_user_can_read(tmp_path: Path) -> None:
    seen = _embedded(tmp_path)
    assert (seen["without"], seen["wrong"], seen["with"]) == (401, 403, 200)
    assert seen["mode"] == "0o600"
    assert seen["dashboard"] == ["127.0.0.1"]
    assert "10001" not in seen["listening"]  # Ray Client's


def test_a_home_that_cannot_be_written_to_has_a_token_all_the_same(tmp_path: Path) -> None:
    (tmp_path / ".ray").write_text("a file where the folder would be")
    seen = _embedded(tmp_path)
    assert (seen["without"], seen["with"], seen["mode"]) == (401, 200, None)


def test_a_token_that_others_can_read_is_made_private(tmp_path: Path) -> None:
    token = tmp_path / ".ray/auth_token"
    token.parent.mkdir()
    token.write_text("a" * 64)
    token.chmod(0o644)
    with own_user(tmp_path) as environment:
        use = "from optimag_dist.ray_session import use_token; use_token()"
        subprocess.run([sys.executable, "-c", use], env=environment, check=True)
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    assert token.read_text() == "a" * 64


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Encrypts with certificates of our own script, and asks for a token."""
    home = tmp_path_factory.mktemp("home")
    with own_cluster(home, **_certificates(home / "tls", _own_addresses())) as made:
        yield made


def _own_addresses() -> list[str]:
    return subprocess.run(["hostname", "-I"], capture_output=True, text=True, check=True).stdout.split()


def _certificates(folder: Path, hosts: list[str]) -> dict[str, str]:
    subprocess.run([ROOT / "cluster/tls/make_certificates.sh", folder, *hosts], check=True, capture_output=True)
    files = {"CA_CERT": "ca.crt", "SERVER_CERT": "node.crt", "SERVER_KEY": "node.key"}
    return {"RAY_USE_TLS": "1", **{f"RAY_TLS_{name}": str(folder / file) for name, file in files.items()}}


JOIN = """
import sys
from optimag_dist.ray_session import ensure_ray
import ray
ensure_ray(sys.argv[1])
print("in", ray.get(ray.remote(lambda: 42).remote()))
"""


def _join(cluster: Cluster, environment: dict[str, str]) -> str:
    command = [sys.executable, "-c", JOIN, cluster.gcs]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)
    return done.stdout + done.stderr


@pytest.mark.cluster
def test_with_certificates_and_token_one_gets_in_and_without_the_token_not(cluster: Cluster, tmp_path: Path) -> None:
    known = dict(cluster.environment)
    assert "in 42" in _join(cluster, known)
    tokenless = {**known, "HOME": str(tmp_path)}
    tokenless.pop("RAY_AUTH_MODE")
    said = _join(cluster, tokenless)
    assert "in 42" not in said
    assert "no Ray cluster accepts this process" in said


@pytest.mark.cluster
def test_only_who_has_a_certificate_of_the_authority_can_speak_to_the_cluster(cluster: Cluster, tmp_path: Path) -> None:
    own = {name: cluster.environment[name] for name in ("RAY_TLS_CA_CERT", "RAY_TLS_SERVER_CERT", "RAY_TLS_SERVER_KEY")}
    stranger = {**own, **_certificates(tmp_path, []), "RAY_TLS_CA_CERT": own["RAY_TLS_CA_CERT"]}
    assert _greet(cluster, own)
    assert not _greet(cluster, stranger)
    assert not _greet(cluster, None)


def _greet(cluster: Cluster, certificates: dict[str, str] | None) -> bytes:
    """What the cluster answers to the first words of HTTP/2, which gRPC speaks; nothing where it hangs up."""
    host, _, port = cluster.gcs.partition(":")
    with socket.create_connection((host, int(port)), timeout=30) as line:
        try:
            if certificates is not None:
                context = ssl.create_default_context(cafile=certificates["RAY_TLS_CA_CERT"])
                context.load_cert_chain(certificates["RAY_TLS_SERVER_CERT"], certificates["RAY_TLS_SERVER_KEY"])
                context.set_alpn_protocols(["h2"])
                line = context.wrap_socket(line, server_hostname=host)
            line.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + b"\x04" + bytes(5))
            return line.recv(9)
        except (ssl.SSLError, ConnectionError):
            return b""


@pytest.mark.cluster
def test_a_node_without_the_token_cannot_join(cluster: Cluster, tmp_path: Path) -> None:
    environment = {**cluster.environment, "HOME": str(tmp_path)}
    environment.pop("RAY_AUTH_MODE")
    done = subprocess.run(
        [BIN / "ray", "start", f"--address={cluster.gcs}", "--num-cpus=1"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode != 0
    assert "AuthenticationError" in done.stderr


def test_certificates_are_private_name_the_hosts_and_are_not_replaced(tmp_path: Path) -> None:
    script = ROOT / "cluster/tls/make_certificates.sh"
    _certificates(tmp_path, ["10.1.2.3", "head.example"])
    assert {p.name: stat.S_IMODE(p.stat().st_mode) for p in tmp_path.iterdir()} == {
        "ca.crt": 0o644,
        "ca.key": 0o600,
        "node.crt": 0o644,
        "node.key": 0o600,
    }
    show = ["openssl", "x509", "-in", tmp_path / "node.crt", "-noout", "-ext", "subjectAltName"]
    names = subprocess.run(show, capture_output=True, text=True, check=True).stdout
    for name in ("DNS:localhost", "127.0.0.1", "10.1.2.3", "DNS:head.example"):
        assert name in names
    before = (tmp_path / "node.key").read_bytes()
    again = subprocess.run([script, tmp_path], capture_output=True, text=True, check=False)
    assert again.returncode == 1
    assert "is there already" in again.stderr
    assert (tmp_path / "node.key").read_bytes() == before
    (tmp_path / "ca.key").unlink()
    assert subprocess.run([script, tmp_path], capture_output=True, check=False).returncode == 1


def _calls(path: Path) -> Iterator[tuple[str, dict[str, ast.expr], int]]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), {k.arg: k.value for k in node.keywords if k.arg}, node.lineno


def _unsafe(name: str, keywords: dict[str, ast.expr]) -> bool:
    def is_true(key: str) -> bool:
        return key in keywords and ast.unparse(keywords[key]) == "True"

    last = name.rpartition(".")[2]
    if name.split(".")[0] in {"pickle", "cloudpickle", "dill", "marshal", "shelve", "joblib"}:
        return last in {"load", "loads", "Unpickler", "open"}
    if name in {"torch.load", "th.load"}:
        return not is_true("weights_only")
    if name in {"yaml.load", "yaml.unsafe_load", "yaml.full_load", "eval", "exec", "os.system"}:
        return True
    return is_true("allow_pickle") or is_true("shell")


@pytest.mark.parametrize(
    ("code", "unsafe"),
    [
        ("pickle.load(f)", True),
        ("torch.load(f)", True),
        ("torch.load(f, weights_only=False)", True),
        ("torch.load(f, weights_only=True)", False),
        ("np.load(f, allow_pickle=True)", True),
        ("np.load(f)", False),
        ("yaml.load(f, Loader=L)", True),
        ("yaml.safe_load(f)", False),
        ("subprocess.run(c, shell=True)", True),
    ],
)
def test_the_scan_knows_what_runs_code_from_a_file(tmp_path: Path, code: str, unsafe: bool) -> None:
    (tmp_path / "a.py").write_text(code)
    assert [_unsafe(name, keywords) for name, keywords, _ in _calls(tmp_path / "a.py")] == [unsafe]


def test_nothing_that_is_read_can_run_code() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{line} {name}"
        for path in sorted((ROOT / "optimag_dist").rglob("*.py"))
        for name, keywords, line in _calls(path)
        if _unsafe(name, keywords)
    ]
    assert not found


_SECRETS = {
    "a private key": re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY"),
    "a long random value": re.compile(r"(?<![\w/.:@-])(?=[A-Za-z+]*\d)[A-Fa-f0-9]{40,}(?![\w.-])"),
    "an AWS key": re.compile(r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b"),
    "a Google key": re.compile(r"\bAIza[\w-]{35}\b"),
    "a GitHub or Slack token": re.compile(r"\b(?:gh[pousr]_\w{36}|xox[abp]-[\w-]{10,})"),
    "a password in an address": re.compile(r"://[^/\s:@{$]+:[^/\s@{$]+@"),
    "a value for a secret": re.compile(
        r"""(?im)^\s*-?\s*["']?\w*(?:password|passwd|secret|auth_token|api_key)["']?\s*[:=]\s*["']?[\w+/=-]{6,}["']?\s*$"""
    ),
}


def _secrets_in(text: str) -> list[str]:
    return [what for what, pattern in _SECRETS.items() if pattern.search(text)]


@pytest.mark.parametrize(
    "text",
    [
        "-----BEGIN EC PRIVATE KEY-----",
        "token: " + "ab12" * 16,
        "a: AKIA" + "ABCD1234" * 2,
        "url: http://me:pw@host/",
        "admin_password: hunter22",
        "RAY_AUTH_TOKEN=abcdef123",
    ],
)
def test_the_scan_knows_a_secret(text: str) -> None:
    assert _secrets_in(text)


def test_no_file_of_a_deployment_or_a_job_holds_a_secret() -> None:
    files = [p for folder in ("cluster", "jobs") for p in (ROOT / folder).rglob("*") if p.is_file()]
    files += [path for path in (ROOT / "docker-compose.yml",) if path.exists()]
    assert len(files) > 5
    found = {}
    for path in files:
        try:
            found[str(path.relative_to(ROOT))] = _secrets_in(path.read_text(encoding="utf-8"))
        except UnicodeDecodeError:
            continue  # compiled or a picture
    assert not {path: what for path, what in found.items() if what}

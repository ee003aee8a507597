"""Hosts on one machine: Linux namespaces for network, processes, mounts and host name, joined by a bridge.

The namespaces have no names. Each is held up by a process that waits for the end of its standard input, so that all of
them, with everything that runs in them, vanish with the process that made them, however that one ends.

The file system is shared but for ``/tmp/ray`` and ``/dev/shm``, as it is where stores and runs lie on NFS.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

BIN = Path(sys.executable).parent
_TOOLS = ("ip", "mount", "nsenter", "unshare")
_NAMESPACES = ("--net", "--pid", "--mount", "--uts")
_OBJECT_STORE_BYTES = 100_000_000
# A loaded machine takes minutes for what takes seconds.
_PATIENCE_S = 240
_STARTS = 3


def obstacle() -> str | None:
    """Why no hosts can be made here; None where they can."""
    missing = [tool for tool in _TOOLS if shutil.which(tool) is None]
    if missing:
        return f"hosts need {', '.join(missing)} (Debian: util-linux, iproute2)"
    links = "ip link add name bridge0 type bridge && ip link add name v0 type veth peer name v1"
    tried = subprocess.run(
        ["unshare", *_NAMESPACES, "--fork", "--mount-proc", "sh", "-c", f"{links} && mount -t tmpfs tmpfs /mnt"],
        capture_output=True,
        text=True,
    )
    return f"no privilege to make hosts: {tried.stderr.strip()}" if tried.returncode else None


def wait_until(true: Callable[[], bool], what: str, seconds: float = _PATIENCE_S) -> None:
    """Poll until ``true()``; ``what`` is told when that takes more than ``seconds``."""
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {seconds:.0f} s")
        time.sleep(0.1)


class Host:
    """One host's namespaces: address 10.77.0.``index``, name ``host-<index>``, Ray with token authentication.

    Args:
        index: 1 is the Ray head.
        folder: for the token, which hosts share, and logs: ``host-<index>/ray-*.log`` and ``host-<index>/ray``.
        environment: further variables of all commands on it.
    """

    def __init__(self, index: int, folder: Path, environment: dict[str, str]) -> None:
        self.ip = f"10.77.0.{index}"
        self._folder = folder / f"host-{index}"
        (self._folder / "ray").mkdir(parents=True, exist_ok=True)
        token = folder / "token"
        if not token.exists():
            token.write_text(os.urandom(32).hex())
        self._environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith("RAY_")},
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            "OMP_NUM_THREADS": "1",
            **environment,
        }
        self.ray: subprocess.Popen[bytes] | None = None
        self._hold(f"host-{index}")

    def _hold(self, name: str) -> None:
        hosts = self._folder / "hosts"
        # Gloo listens on the address that the host's own name has.
        hosts.write_text(f"127.0.0.1 localhost\n{self.ip} {name}\n")
        set_up = (
            f"hostname {name} && mkdir -p /tmp/ray && mount --bind {self._folder}/ray /tmp/ray && "
            f"mount -t tmpfs tmpfs /dev/shm && mount --bind {hosts} /etc/hosts && ip link set lo up && "
            "echo ready && exec cat"
        )
        self._holder = subprocess.Popen(
            ["unshare", *_NAMESPACES, "--fork", "--kill-child", "--mount-proc", "sh", "-c", set_up],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        if self._holder.stdout.readline() != "ready\n":
            raise RuntimeError(f"{name} could not be set up")
        # The first process within: when it dies, the kernel kills all others of its process namespace.
        children = Path(f"/proc/{self._holder.pid}/task/{self._holder.pid}/children")
        self.init = int(children.read_text())

    def popen(self, *command: str | Path, env: dict[str, str] | None = None, **options: Any) -> subprocess.Popen:
        """Start ``command`` on this host, with ``env`` beside its own variables."""
        return subprocess.Popen(
            ["nsenter", f"--target={self.init}", *_NAMESPACES, "--", *map(str, command)],
            env={**self._environment, **(env or {})},
            stdin=subprocess.DEVNULL,
            **options,
        )

    def run(self, *command: str | Path) -> str:
        """Run ``command`` on this host; what it prints."""
        process = self.popen(*command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        said, errors = process.communicate(timeout=300)
        assert process.returncode == 0, f"{' '.join(map(str, command))}: {said}{errors}"
        return said

    def start_ray(self, *arguments: str, env: dict[str, str] | None = None) -> None:
        """``ray start --block`` with ``arguments``, until it has started."""
        # On a loaded machine Ray gives up its own start after 30 s.
        if not any(self._try_to_start_ray(arguments, env) for _ in range(_STARTS)):
            raise RuntimeError(f"ray start ended {_STARTS} times, see {self._folder}/ray-*.log")

    def _try_to_start_ray(self, arguments: tuple[str, ...], env: dict[str, str] | None) -> bool:
        log = self._folder / f"ray-{time.time_ns()}.log"
        with log.open("wb") as stream:
            self.ray = self.popen(
                BIN / "ray",
                "start",
                "--block",
                "--disable-usage-stats",
                f"--node-ip-address={self.ip}",
                f"--object-store-memory={_OBJECT_STORE_BYTES}",
                *arguments,
                env=env,
                stdout=stream,
                stderr=stream,
            )
        wait_until(lambda: self.ray.poll() is not None or "Ray runtime started" in log.read_text(), "ray start")
        return self.ray.poll() is None

    def start_head(self, *arguments: str, env: dict[str, str] | None = None) -> None:
        """Start a Ray head without CPUs, and wait for it."""
        # Ray Train's cleaners, on any host, ask the dashboard.
        self.start_ray("--head", "--port=6379", f"--dashboard-host={self.ip}", "--num-cpus=0", *arguments, env=env)
        knock = f"import socket; socket.create_connection(({self.ip!r}, 8265), 1)"
        wait_until(
            lambda: self.popen(sys.executable, "-c", knock, stderr=subprocess.DEVNULL).wait() == 0, "the dashboard"
        )

    def alive(self) -> int:
        """Nodes that the Ray head on this host holds for alive, itself among them."""
        program = (
            "from ray._raylet import GcsClient\n"
            f"nodes = GcsClient(address='{self.ip}:6379').get_all_node_info(timeout=10)\n"
            "print(sum(node.state == 0 for node in nodes.values()))"
        )
        return int(self.run(sys.executable, "-c", program))

    def end(self) -> None:
        """End all processes at once, as a loss of power does."""
        self._holder.kill()
        self._holder.wait()
        self._holder.stdin.close()
        self._holder.stdout.close()
        if self.ray is not None:
            self.ray.wait()


class Network:
    """Hosts on one switch; Ray is not started on them.

    Args:
        folder, environment: as of :class:`Host`.
    """

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self._folder, self._environment = folder, environment
        self.hosts: dict[int, Host] = {}

    def __enter__(self) -> "Network":
        self._switch = subprocess.Popen(["unshare", "--net", "cat"], stdin=subprocess.PIPE)
        wait_until(self._switch_is_apart, "the switch's namespace")
        self._in_switch("ip", "link", "add", "name", "bridge0", "type", "bridge")
        self._in_switch("ip", "link", "set", "bridge0", "up")
        return self

    def __exit__(self, *_: object) -> None:
        for index in list(self.hosts):
            self.kill(index)
        self._switch.kill()
        self._switch.wait()
        self._switch.stdin.close()

    def add(self, index: int) -> Host:
        """Make host ``index``."""
        host = self.hosts[index] = Host(index, self._folder, self._environment)
        link, end = ("name", f"port{index}"), ("name", "eth0", "netns", str(host.init))
        self._in_switch("ip", "link", "add", *link, "type", "veth", "peer", *end)
        self._in_switch("ip", "link", "set", f"port{index}", "master", "bridge0", "up")
        host.run("ip", "address", "add", f"{host.ip}/24", "dev", "eth0")
        host.run("ip", "link", "set", "eth0", "up")
        return host

    def cut(self, index: int) -> None:
        """Take the link of host ``index`` down; its processes go on."""
        self._in_switch("ip", "link", "set", f"port{index}", "down")

    def mend(self, index: int) -> None:
        """Bring the link of host ``index`` up again."""
        self._in_switch("ip", "link", "set", f"port{index}", "up")

    def kill(self, index: int) -> None:
        """End host ``index`` with all its processes at once."""
        self.hosts.pop(index).end()

    def _in_switch(self, *command: str) -> None:
        subprocess.run(["nsenter", f"--target={self._switch.pid}", "--net", "--", *command], check=True)

    def _switch_is_apart(self) -> bool:
        return os.readlink(f"/proc/{self._switch.pid}/ns/net") != os.readlink("/proc/self/ns/net")


class Cluster(Network):
    """A Ray cluster over ``workers`` + 1 hosts: host 1 is the head without CPUs, each other one has one CPU."""

    address = "10.77.0.1:6379"

    def __init__(self, workers: int, folder: Path, environment: dict[str, str]) -> None:
        super().__init__(folder, environment)
        self._workers = range(2, workers + 2)

    def __enter__(self) -> "Cluster":
        with ExitStack() as stack:
            stack.callback(self.__exit__)
            super().__enter__()
            self.add(1).start_head()
            for index in self._workers:
                self.start(index)
            self.wait_for(1 + len(self._workers))
            stack.pop_all()
        return self

    @property
    def head(self) -> Host:
        return self.hosts[1]

    def start(self, index: int) -> None:
        """Start Ray on host ``index``, and first the host itself where it is not there, as its supervisor would."""
        host = self.hosts.get(index) or self.add(index)
        host.start_ray(f"--address={self.address}", "--num-cpus=1")

    def wait_for_ray_to_end(self, index: int) -> None:
        """Wait until ``ray start --block`` of host ``index`` has ended by itself."""
        self.hosts[index].ray.wait(_PATIENCE_S)

    def wait_for(self, alive: int) -> None:
        """Wait until the head counts ``alive`` nodes, itself among them."""
        wait_until(lambda: self.head.alive() == alive, f"{alive} nodes alive")

    def tasks(self) -> dict[str, str]:
        """Task id → id of the node it ran on, of all finished tasks and calls of actors."""
        program = (
            "import json\nfrom ray.util.state import list_tasks\n"
            "tasks = list_tasks('http://10.77.0.1:8265', filters=[('state', '=', 'FINISHED')], limit=10000)\n"
            "print(json.dumps({task.task_id: task.node_id for task in tasks if task.node_id}))"
        )
        return json.loads(self.head.run(sys.executable, "-c", program))

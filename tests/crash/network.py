"""Hosts as network namespaces on two bridges: `back` (database, broker, workers) and `clinic` (senders and listener).

Nothing of it is in the network of the machine itself. Needs root with CAP_NET_ADMIN and `ip` (iproute2).
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

NETS = {"back": "10.213.7", "clinic": "10.213.8"}
_CLONE_NEWNET = 0x40000000


def forbidden() -> str:
    """Say why there can be no network here; empty where there can."""
    if shutil.which("ip") is None:
        return "iproute2 is absent (no ip)"
    name = f"wt{os.getpid()}-try"
    tries = [
        ["netns", "add", name],
        ["netns", "exec", name, "true"],
        ["-n", name, "link", "add", "x", "type", "bridge"],
    ]
    tries.append(["-n", name, "link", "add", "y", "type", "veth", "peer", "name", "z"])
    made = [subprocess.run(["ip", *words], capture_output=True, text=True, check=False) for words in tries]
    subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)
    wrong = next((one.stderr.strip() for one in made if one.returncode), "")
    return f"network namespaces are not allowed ({wrong})" if wrong else ""


class Network:
    """`hosts` with the nets that each has a leg in; a context manager."""

    def __init__(self, hosts: Mapping[str, tuple[str, ...]]) -> None:
        self._hosts, self._hub = hosts, f"wt{os.getpid()}-hub"

    def __enter__(self) -> Network:
        _clear_up()
        try:
            self._make()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for name in [*map(self.namespace, self._hosts), self._hub]:
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)

    def namespace(self, host: str) -> str:
        """The namespace that is `host`."""
        return f"wt{os.getpid()}-{host}"

    def address(self, host: str, net: str = "back") -> str:
        """Where a host is in a net."""
        return f"{NETS[net]}.{list(self._hosts).index(host) + 1}"

    def command(self, host: str) -> list[str]:
        """What a command begins with that shall run on `host`."""
        return ["ip", "netns", "exec", self.namespace(host)]

    def cut(self, host: str, net: str = "back") -> None:
        """Pull the plug: nobody is told anything, packets just get lost."""
        _ip("-n", self._hub, "link", "set", f"{host}-{net}", "down")

    def heal(self, host: str, net: str = "back") -> None:
        """Put the plug in again."""
        _ip("-n", self._hub, "link", "set", f"{host}-{net}", "up")

    @contextmanager
    def on(self, host: str) -> Iterator[None]:
        """Let this thread, and those that it starts, be on `host` while the block runs."""
        home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        there = os.open(Path("/run/netns") / self.namespace(host), os.O_RDONLY)
        try:
            _enter(there)
            yield
        finally:
            _enter(home)
            os.close(there)
            os.close(home)

    def _make(self) -> None:
        _ip("netns", "add", self._hub)
        for net in NETS:
            _ip("-n", self._hub, "link", "add", net, "type", "bridge")
            _ip("-n", self._hub, "link", "set", net, "up")
        for host, legs in self._hosts.items():
            there = self.namespace(host)
            _ip("netns", "add", there)
            _ip("-n", there, "link", "set", "lo", "up")
            for net in legs:
                port = f"{host}-{net}"
                _ip("-n", self._hub, "link", "add", port, "type", "veth", "peer", "name", net, "netns", there)
                _ip("-n", self._hub, "link", "set", port, "master", net, "up")
                _ip("-n", there, "addr", "add", f"{self.address(host, net)}/24", "dev", net)
                _ip("-n", there, "link", "set", net, "up")


def _clear_up() -> None:
    """Remove what a run left behind that was killed."""
    for entry in Path("/run/netns").iterdir():
        pid = entry.name.partition("-")[0].removeprefix("wt")
        if pid.isdigit() and not Path(f"/proc/{pid}").exists():
            subprocess.run(["ip", "netns", "del", entry.name], capture_output=True, check=False)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


def _enter(namespace: int) -> None:
    """setns(2), which Python has from 3.12 on."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(namespace, _CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")

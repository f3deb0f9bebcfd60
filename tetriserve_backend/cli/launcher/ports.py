"""Addresses that the server listens on."""

import socket
from dataclasses import dataclass
from ipaddress import ip_address

from tetriserve_backend.domain import ConfigurationError


@dataclass(frozen=True, slots=True)
class Endpoints:
    """Where Triton listens: one host, three ports."""

    host: str
    http_port: int
    grpc_port: int
    metrics_port: int

    @property
    def local_host(self) -> str:
        """How this machine reaches it."""
        return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine reaches it."""
        try:
            return ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    @property
    def http_url(self) -> str:
        """Base address of HTTP."""
        return f"http://{_bracketed(self.local_host)}:{self.http_port}"

    @property
    def grpc_url(self) -> str:
        """`host:port` of gRPC."""
        return f"{_bracketed(self.local_host)}:{self.grpc_port}"

    @property
    def metrics_url(self) -> str:
        """Address of the Prometheus metrics."""
        return f"http://{_bracketed(self.local_host)}:{self.metrics_port}/metrics"


def claim_endpoints(host: str, http_port: int, grpc_port: int, metrics_port: int) -> Endpoints:
    """Endpoints on ports that are free now; port 0 means any.

    Raises:
        ConfigurationError: a port is taken or the host is not ours; names the option.
    """
    held: list[socket.socket] = []
    try:
        ports = []
        for option, port in (("http-port", http_port), ("grpc-port", grpc_port), ("metrics-port", metrics_port)):
            holder = _bind(option, host, port)
            held.append(holder)
            ports.append(int(holder.getsockname()[1]))
    finally:
        for holder in held:
            holder.close()
    return Endpoints(host, *ports)


def _bind(option: str, host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        holder = socket.socket(family, socket.SOCK_STREAM)
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind((host, port))
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigurationError(
            f"--{option} {port} on --host {host}: {reason}; allowed: a free port, or 0 for any"
        ) from error
    return holder


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host

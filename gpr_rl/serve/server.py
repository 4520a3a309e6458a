"""A uvicorn server that stops without losing what it accepted."""

import signal
import socket

import uvicorn
from fastapi import FastAPI

from gpr_rl.decoding import Recommender

_MAX_CONNECTIONS = 2_048


class DrainingServer(uvicorn.Server):
    """Tells the recommender first: from then on it takes nothing and waits for no batch to fill."""

    def __init__(self, config: uvicorn.Config, recommender: Recommender) -> None:
        super().__init__(config)
        self._recommender = recommender

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop listening, finish what was accepted, close."""
        self._recommender.close(wait=False)
        await super().shutdown(sockets)


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens; port 0 is any free one.

    Raises:
        OSError: The address can't be had.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=_MAX_CONNECTIONS)
    except OSError as error:
        raise OSError(f"can't listen on {host}, port {port}: {error.strerror}") from error


def run(app: FastAPI, recommender: Recommender, listener: socket.socket, grace_s: float) -> None:
    """Serve until SIGTERM or SIGINT, then finish what was accepted; `SystemExit(0)` ends it.

    Connections that are still open `grace_s` seconds after the signal are cut.
    """
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        limit_concurrency=_MAX_CONNECTIONS,
        timeout_graceful_shutdown=max(1, round(grace_s)),
    )
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _leave)  # uvicorn raises the signal again once it has stopped
    DrainingServer(config, recommender).run(sockets=[listener])


def _leave(number: int, frame: object) -> None:
    raise SystemExit(0)

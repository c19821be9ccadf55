"""Postgres servers of our own for `dev`, `demo` and the tests: real, durable, and gone with their owner.

    with Servers(2) as servers:
        for server in servers:
            print(server.name, server.dsn)

Only 127.0.0.1 gets in, with a random password. A server never outlives the process that started it,
whatever ends that process: a watchdog holds the other end of a pipe.
"""

from shardflow.embedded.binaries import Binaries, find_binaries
from shardflow.embedded.server import Server
from shardflow.embedded.servers import Servers

__all__ = ["Binaries", "Server", "Servers", "find_binaries"]

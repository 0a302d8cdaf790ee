"""What the harnesses in Python share: the exception that means "this cannot go on", the end of a log, ports that must be told."""

import os
import socket

# Ports given out but perhaps not bound yet.
GIVEN = set()


class Failure(Exception):
    """Says what was tried; a harness prints it without a traceback."""


def tail(path, lines=25):
    """The end of a log, indented."""
    try:
        text = path.read_text(errors="replace")
    except OSError as error:
        return f"  (no log: {error})"
    return "\n".join("  " + line[:400] for line in text.splitlines()[-lines:])


def free_ports(count=1):
    """The first of `count` neighbouring free ports on loopback, below the range that the kernel gives to clients."""
    for base in range(20000 + os.getpid() % 3000 * 4, 32000, count):
        held = []
        try:
            for port in range(base, base + count):
                held.append(socket.create_server(("127.0.0.1", port)))
            if not GIVEN.intersection(range(base, base + count)):
                GIVEN.update(range(base, base + count))
                return base
        except OSError:
            continue
        finally:
            for server in held:
                server.close()
    raise Failure(f"no {count} neighbouring free ports on 127.0.0.1")

"""HTTP/1.1 towards the processes, a connection for each request; what came is there also when the rest does not come."""

import asyncio
import json
import urllib.parse

PAGE_WITHIN = 5


class Said:
    """What a server has said so far."""

    def __init__(self):
        self.status, self.headers, self.body, self.whole = None, {}, b"", False

    async def read(self, reader):
        """To its end; raises when the connection ends before."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        self.status = int(head[0].split()[1])
        for line in head[1:]:
            name, _, value = line.partition(":")
            self.headers[name.lower()] = value.strip()
        if self.headers.get("transfer-encoding", "").lower() == "chunked":
            while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
                self.body += (await reader.readexactly(size + 2))[:-2]
            await reader.readuntil(b"\r\n")
        else:
            self.body = await reader.readexactly(int(self.headers.get("content-length", 0)))
        self.whole = True


async def send(said, method, url, path, body=None):
    """Fills `said`; raises OSError or EOFError (asyncio.IncompleteReadError is one) when there is no whole answer."""
    parts = urllib.parse.urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port, limit=1 << 20)
    try:
        data = b"" if body is None else json.dumps(body).encode()
        head = f"{method} {path} HTTP/1.1\r\nhost: chaos\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: {len(data)}\r\n\r\n"
        writer.write(head.encode() + data)
        await said.read(reader)
    finally:
        writer.close()


async def page(url, path):
    """The text of a page, or None."""
    said = Said()
    try:
        async with asyncio.timeout(PAGE_WITHIN):
            await send(said, "GET", url, path)
    except (OSError, EOFError, TimeoutError, ValueError):
        return None
    return said.body.decode(errors="replace") if said.whole else None


async def get(url, path):
    """A page of JSON, or None."""
    try:
        return json.loads(await page(url, path) or "null")
    except ValueError:
        return None


async def gauges(url):
    """Prometheus figures of an engine, summed over their labels."""
    found = {}
    for line in (await page(url, "/metrics") or "").splitlines():
        if line and not line.startswith("#"):
            series, _, value = line.rpartition(" ")
            name = series.partition("{")[0]
            found[name] = found.get(name, 0.0) + float(value)
    return found

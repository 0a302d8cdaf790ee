"""An HTTP proxy before D that holds every completion for a while: a decode engine with a queue, on demand."""

import http.client
import http.server
import threading
import time
import urllib.parse


class Handler(http.server.BaseHTTPRequestHandler):
    """One request on, one answer back; the connection is closed after it."""

    def do_GET(self):
        self.forward(None)

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        time.sleep(self.server.seconds)
        self.forward(body)

    def forward(self, body):
        target = self.server.target
        upstream = http.client.HTTPConnection(target.hostname, target.port, timeout=120)
        try:
            headers = {k: v for k, v in self.headers.items() if k.lower() not in ("host", "connection", "content-length")}
            upstream.request(self.command, self.path, body, headers)
            reply = upstream.getresponse()
            self.send_response_only(reply.status)
            for name, value in reply.getheaders():
                if name.lower() not in ("connection", "transfer-encoding", "content-length"):
                    self.send_header(name, value)
            self.send_header("Connection", "close")
            self.end_headers()
            while chunk := reply.read1(65536):
                self.wfile.write(chunk)
                self.wfile.flush()
        except OSError:
            pass  # Either side has gone; closing tells the other.
        finally:
            upstream.close()
            self.close_connection = True

    def log_message(self, format, *args):
        pass


class DelayProxy(http.server.ThreadingHTTPServer):
    """Listens on a free loopback port until closed."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, url, seconds):
        super().__init__(("127.0.0.1", 0), Handler)
        self.target, self.seconds = urllib.parse.urlsplit(url), seconds
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True).start()

    def close(self):
        self.shutdown()
        self.server_close()

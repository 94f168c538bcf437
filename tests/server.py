"""An HTTP server for tests of what asks servers."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from time import monotonic, sleep


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests.append((self.path, dict(self.headers), body, monotonic()))
        status, headers, content = self.server.reply(len(self.server.requests), body)
        data = content.encode() if isinstance(content, str) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in (headers | {"Transfer-Encoding": "chunked"}).items():
            self.send_header(name, value)
        self.trickle_head()
        for piece in (*filter(None, (data[:10], data[10:20], data[20:])), b""):  # replies come in any pieces
            self.wfile.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
            sleep(self.server.pause)

    def do_HEAD(self):
        self.server.probes += 1
        self.send_response(405)
        self.end_headers()

    def trickle_head(self):
        """Writes the head; on a server that pauses in it, line by line, and for ever."""
        while self.server.pause_head:
            self.flush_headers()
            self.send_header("X", "y")
            sleep(self.server.pause)
        self.end_headers()

    def log_message(self, *_):
        pass


class Server(ThreadingHTTPServer):
    """Answers `reply(number of the request, body)`: status, headers and content; notes what it was asked."""

    request_queue_size = 128

    def __init__(self, reply, pause=0.0):
        super().__init__(("127.0.0.1", 0), Handler)
        self.reply, self.pause, self.pause_head, self.requests = reply, pause, False, []
        self.probes = 0
        self.url = f"http://127.0.0.1:{self.server_port}/v1"
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    def __exit__(self, *_):
        self.shutdown()
        self.server_close()

    def handle_error(self, *_):  # the client has given up
        pass


def completion(text, reason="stop"):
    return 200, {}, {"choices": [{"message": {"content": text}, "finish_reason": reason}]}

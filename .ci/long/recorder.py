"""A proxy on loopback that writes down what is asked of the server behind it. It changes nothing on the way."""

import http.client
import json
import threading
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

# Of the connection, not of the request.
OF_THE_WAY = {"host", "connection", "content-length", "transfer-encoding", "keep-alive"}


class Recorder:
    """Listens at `url` and passes on to `target`; `requests` are those so far, in order, each with what was being done."""

    def __init__(self, target, kind):
        self.target, self.kind = urllib.parse.urlsplit(target), kind
        self.requests = []
        self.doing = ""
        self.lock = threading.Lock()  # one thread for each connection writes into the list
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"recorder": self}))
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def note(self, request):
        with self.lock:
            self.requests.append(request)

    def stop(self):
        self.http.shutdown()
        self.http.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    recorder = None

    def answer(self):
        recorder = self.recorder
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        headers = {name.lower(): value for name, value in self.headers.items() if name.lower() not in OF_THE_WAY}
        request = {"connection": recorder.kind, "method": self.command, "path": self.path, "headers": headers}
        request["doing"] = recorder.doing
        if body:
            request["body"] = json.loads(body)
        recorder.note(request)
        upstream = http.client.HTTPConnection(recorder.target.hostname, recorder.target.port)
        upstream.request(self.command, self.path, body or None, {**headers, "host": recorder.target.netloc})
        reply = upstream.getresponse()
        request["status"], request["said"] = reply.status, ""
        self.send_response(reply.status)
        for name, value in reply.getheaders():
            if name.lower() not in OF_THE_WAY:
                self.send_header(name, value)
        self.send_header("connection", "close")
        self.end_headers()
        self.close_connection = True
        try:
            while piece := reply.read1(65536):
                request["said"] += piece.decode(errors="replace")
                self.wfile.write(piece)
            request["end"] = "whole"
        except ConnectionError:
            # Who stops an answer closes its connection; the one to the server is closed in turn.
            request["end"] = "cut"
        upstream.close()

    do_GET = do_POST = do_HEAD = do_DELETE = do_PUT = answer

    def log_message(self, *_):
        pass

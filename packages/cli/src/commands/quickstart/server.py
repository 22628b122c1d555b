"""A small HTTP server that keeps its content in memory: GET answers it, PUT replaces it. Prints its port when it listens."""

import json
import os
import socketserver
import sys
from http.server import BaseHTTPRequestHandler

state = {"pid": os.getpid(), "token": os.urandom(4).hex(), "note": sys.argv[1]}


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        body = json.dumps(state).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_PUT(self):
        state["note"] = self.rfile.read(int(self.headers["Content-Length"])).decode()
        self.do_GET()

    def log_message(self, *args):
        pass


# Not http.server.HTTPServer: that looks up its own name, which a sandbox without network cannot.
with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
    print(server.server_address[1], flush=True)
    server.serve_forever()

"""Stands in for vLLM's program where only processes matter: answers /health after a while, starts a
process beside itself, a node as the connector does, and ends as it is told to by its arguments."""

import http.server
import os
import signal
import subprocess
import sys
import threading
import time


def option(name, default=None):
    return sys.argv[sys.argv.index(name) + 1] if name in sys.argv else default


def start_node():
    """Once a host, detached, with a file in the runtime folder on its command line."""
    name = os.environ.get("FLEXKV_NODE_NAME", "shared")
    stem = os.path.join(os.environ["FLEXKV_RUNTIME_DIR"], name)
    try:
        os.close(os.open(stem + ".toml", os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return
    with open(stem + ".log", "w") as log:
        code = "import sys, time; print('node log of', sys.argv[1], flush=True); time.sleep(600)"
        command = [sys.executable, "-c", code, stem + ".toml"]
        node = subprocess.Popen(command, start_new_session=True, stdout=log)
    print(f"pid {node.pid}", flush=True)


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/health" else 404)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


def end(*_):
    print("ending", flush=True)
    os._exit(0)


def main():
    number = int(option("--port")) - int(option("--first-port"))
    print(f"pid {os.getpid()}", flush=True)
    print("arguments", *sys.argv[1:], flush=True)
    for name in sorted(os.environ):
        if name.startswith("FLEXKV_"):
            print(f"variable {name}", file=sys.stderr, flush=True)
    if option("--fail") == str(number):
        print("no such model", file=sys.stderr, flush=True)
        sys.exit(3)
    signal.signal(signal.SIGTERM, signal.SIG_IGN if "--stubborn" in sys.argv else end)
    worker = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    print(f"pid {worker.pid}", flush=True)
    if "FLEXKV_RUNTIME_DIR" in os.environ:
        start_node()
    time.sleep(float(option("--healthy-after", "0")))
    address = (option("--host"), int(option("--port")))
    server = http.server.ThreadingHTTPServer(address, Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    while True:
        signal.pause()


main()

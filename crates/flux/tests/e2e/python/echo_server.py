"""A gRPC service that somebody else wrote: demo.v1.Echo, without generated code of ours.

Usage: echo_server.py PORT_FILE EXIT_CODE. Listens on a free port of 127.0.0.1 unless the variable
ECHO_PORT names one, writes it to PORT_FILE, answers until SIGTERM, says so and exits with EXIT_CODE.
"""

import os
import signal
import sys
import threading
from concurrent import futures

import grpc


def say(request: bytes, context) -> bytes:
    # A message with one string, field 1, is answered as it came.
    return request


class Handler(grpc.GenericRpcHandler):
    def service(self, details):
        if details.method == "/demo.v1.Echo/Say":
            return grpc.unary_unary_rpc_method_handler(say)
        return None


def main() -> None:
    port_file, exit_code = sys.argv[1], int(sys.argv[2])
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=4))
    server.add_generic_rpc_handlers((Handler(),))
    port = server.add_insecure_port("127.0.0.1:" + os.environ.get("ECHO_PORT", "0"))
    server.start()
    with open(port_file + ".tmp", "w") as file:
        file.write(str(port))
    os.rename(port_file + ".tmp", port_file)
    stop.wait()
    print("told to stop", flush=True)
    server.stop(1).wait()
    sys.exit(exit_code)


main()

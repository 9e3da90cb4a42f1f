"""The key-value service from Python, over gRPC: client.py [HOST:PORT]

Generates the client from the project's .proto files when it starts; a program of yours would do
that once, with the same command.
"""

import pathlib
import sys
import tempfile

import grpc
import grpc_tools
from grpc_tools import protoc

PROTO = pathlib.Path(__file__).resolve().parents[3] / "crates/proto/proto"
FILES = ["flux/kv/v1/kv.proto", "flux/options/v1/options.proto"]


def generate(out):
    well_known = pathlib.Path(grpc_tools.__file__).parent / "_proto"
    arguments = ["protoc", f"-I{PROTO}", f"-I{well_known}", f"--python_out={out}", f"--grpc_python_out={out}"]
    if protoc.main([*arguments, *FILES]) != 0:
        sys.exit("the .proto files do not compile")
    sys.path.insert(0, out)


def main():
    address = sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:50052"
    with tempfile.TemporaryDirectory() as out:
        generate(out)
        import google.api.annotations_pb2  # noqa: F401  Registers what kv.proto imports,
        import google.rpc.status_pb2  # noqa: F401  from googleapis-common-protos.
        from flux.kv.v1 import kv_pb2, kv_pb2_grpc

    with grpc.insecure_channel(address) as channel:
        kv = kv_pb2_grpc.KvStub(channel)
        # Every call has a deadline: without one it may wait for ever.
        kv.Set(kv_pb2.SetRequest(key=b"python", value=b"hello", ttl_ms=60_000), timeout=10)
        answer = kv.Get(kv_pb2.GetRequest(key=b"python"), timeout=10)
        print(f"python = {answer.value.decode()}")
        for _ in range(3):
            count = kv.Increment(kv_pb2.IncrementRequest(key=b"python:count", by=1), timeout=10)
        print(f"python:count = {count.value}")
        batches = kv.Scan(kv_pb2.ScanRequest(prefix=b"python", keys_only=True), timeout=10)
        for key in sorted(entry.key.decode() for batch in batches for entry in batch.entries):
            print(f"found {key}")
        kv.Delete(kv_pb2.DeleteRequest(key=b"python:count"), timeout=10)
        try:
            kv.Get(kv_pb2.GetRequest(), timeout=10)
        except grpc.RpcError as error:
            print(f"without a key: {error.code().name}")


main()

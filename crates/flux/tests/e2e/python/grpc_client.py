"""A Python client generated from the project's IDL: grpc_client.py PROTO_FOLDER ADDRESS"""

import pathlib
import sys
import tempfile

import grpc
from grpc_tools import protoc
import grpc_tools

PROTO, ADDRESS = pathlib.Path(sys.argv[1]), sys.argv[2]

with tempfile.TemporaryDirectory() as out:
    well_known = pathlib.Path(grpc_tools.__file__).parent / "_proto"
    files = [str(path.relative_to(PROTO)) for path in PROTO.rglob("*.proto")]
    arguments = ["protoc", f"-I{PROTO}", f"-I{well_known}", f"--python_out={out}", f"--grpc_python_out={out}"]
    assert protoc.main(arguments + files) == 0
    # Only our own packages: generated google packages would hide the installed protobuf.
    google = pathlib.Path(out) / "google"
    if google.exists():
        import google as installed

        installed.__path__.append(str(google))
    sys.path.insert(0, out)
    import importlib

    def module(suffix):
        found = [path for path in pathlib.Path(out).rglob(f"*{suffix}.py")]
        return [importlib.import_module(".".join(path.relative_to(out).with_suffix("").parts)) for path in found]

    def find(modules, name):
        for candidate in modules:
            if hasattr(candidate, name):
                return getattr(candidate, name)
        raise AssertionError(f"no {name} in {modules}")

    messages = [m for m in module("_pb2") if "google" not in m.__name__]
    stubs = [m for m in module("_pb2_grpc") if "google" not in m.__name__]
    service = [m for m in messages if m.DESCRIPTOR.package == "service"]
    kv = [m for m in messages if m.DESCRIPTOR.package == "flux.kv.v1"]

    with grpc.insecure_channel(ADDRESS) as channel:
        # The original's service, as its clients call it.
        original = find(stubs, "KVServiceStub")(channel)
        requests = {name: find(service, name) for name in ("SetRequest", "GetRequest", "DelRequest")}
        assert original.Set(requests["SetRequest"](key="hello", value="world"), timeout=10).success
        answer = original.Get(requests["GetRequest"](key="hello"), timeout=10)
        assert (answer.value, answer.found) == ("world", True), answer
        assert original.Del(requests["DelRequest"](key="hello"), timeout=10).success
        answer = original.Get(requests["GetRequest"](key="hello"), timeout=10)
        assert (answer.value, answer.found) == ("", False), answer

        # Our own.
        stub = find(stubs, "KvStub")(channel)
        assert stub.Set(find(kv, "SetRequest")(key=b"k\xff", value=b"\x00v"), timeout=10).success
        answer = stub.Get(find(kv, "GetRequest")(key=b"k\xff"), timeout=10)
        assert (answer.value, answer.found) == (b"\x00v", True), answer
        try:
            stub.Get(find(kv, "GetRequest")(), timeout=10)
        except grpc.RpcError as error:
            assert error.code() == grpc.StatusCode.INVALID_ARGUMENT, error
            assert "key" in error.details(), error
        else:
            raise AssertionError("a request without a key was answered")
        for number in range(1, 6):
            answer = stub.Increment(find(kv, "IncrementRequest")(key=b"n", by=2), timeout=10)
            assert answer.value == 2 * number, answer
        assert stub.Delete(find(kv, "DeleteRequest")(key=b"k\xff"), timeout=10).success
print("passed")

"""redis-py (or valkey-py), unmodified, against a node: redis_py.py MODULE PORT SHARDS"""

import importlib
import sys
import time

library = importlib.import_module(sys.argv[1])
PORT, SHARDS = int(sys.argv[2]), int(sys.argv[3])


def raises(kind, call, text):
    try:
        call()
    except kind as error:
        assert text in str(error), error
    else:
        raise AssertionError(f"no {kind.__name__}")


def strings(r):
    assert r.ping() is True
    assert r.set("a", "1") is True
    assert r.get("a") == "1"
    assert r.set("a", "2", nx=True) is None
    assert r.set("a", "2", xx=True, get=True) == "1"
    assert r.incr("a") == 3 and r.incrby("a", 4) == 7 and r.decr("a", 2) == 5
    assert r.incrbyfloat("a", 0.5) == 5.5
    assert r.append("b", "xy") == 2 and r.strlen("b") == 2
    assert r.getrange("b", 0, 0) == "x" and r.setrange("b", 1, "z") == 2 and r.get("b") == "xz"
    assert r.getdel("b") == "xz" and r.get("b") is None
    assert r.mset({"m1": "1", "m2": "2"}) is True
    assert r.mget("m1", "absent", "m2") == ["1", None, "2"]
    assert r.exists("m1", "m2", "absent") == 2
    assert r.type("m1") == "string"
    assert r.delete("m1", "m2", "a") == 3
    raises(library.ResponseError, lambda: r.execute_command("NONSENSE"), "unknown command")
    r.set("text", "not a number")
    raises(library.ResponseError, lambda: r.incr("text"), "not an integer")
    r.delete("text")


def binary(address):
    r = library.Redis(**address)
    value = bytes(range(256)) * 100
    assert r.set(b"\x00\xff\r\n", value) and r.get(b"\x00\xff\r\n") == value
    r.delete(b"\x00\xff\r\n")
    r.close()


def expiry(r):
    now = time.time()
    assert r.set("t", "v", ex=100) and r.ttl("t") == 100
    assert 99_000 < r.pttl("t") <= 100_000
    deadline = int(now) + 1000
    assert r.expireat("t", deadline) and r.expiretime("t") == deadline
    assert r.pexpiretime("t") == deadline * 1000
    assert r.persist("t") and r.ttl("t") == -1
    assert r.getex("t", px=50_000) == "v" and 49_000 < r.pttl("t") <= 50_000
    assert r.expire("t", 10, gt=True) in (0, False)
    assert r.pexpire("t", 1)
    give_up = now + 60
    while r.exists("t"):
        assert time.time() < give_up
    assert r.ttl("t") == -2 and r.set("t", "v", keepttl=True) and r.ttl("t") == -1
    r.delete("t")


def pipelines(r):
    with r.pipeline() as pipe:  # MULTI … EXEC
        pipe.set("{p}a", 1).incr("{p}a").get("{p}a").mset({"{p}b": 2})
        assert pipe.execute() == [True, 2, "2", True]
    with r.pipeline(transaction=False) as pipe:
        for number in range(5000):
            pipe.incr("{p}n")
        assert pipe.execute() == list(range(1, 5001))
    with r.pipeline(transaction=False) as pipe:
        pipe.set("{p}once", 1, nx=True).set("{p}once", 2, nx=True)
        assert pipe.execute() == [True, None]
    with r.pipeline() as pipe:
        pipe.watch("{p}a")
        value = int(pipe.get("{p}a"))
        r.set("{p}a", "changed")
        pipe.multi()
        pipe.set("{p}a", value + 1)
        raises(library.WatchError, pipe.execute, "")
    assert r.get("{p}a") == "changed"
    assert r.transaction(lambda pipe: pipe.multi() or pipe.set("{p}a", "done"), "{p}a") == [True]
    if SHARDS > 1:
        with r.pipeline() as pipe:
            pipe.set("a", 1).set("b", 1)
            # redis-py keeps the word CROSSSLOT to itself.
            raises(library.ResponseError, pipe.execute, "different shards")


def iteration(r):
    r.flushall()
    keys = {f"scan:{number}" for number in range(500)}
    r.mset({key: "v" for key in keys})
    assert r.dbsize() == 500
    assert set(r.scan_iter(match="scan:*", count=37)) == keys
    assert set(r.keys("scan:?")) == {f"scan:{number}" for number in range(10)}
    assert r.randomkey() in keys
    assert r.flushdb() is True and r.dbsize() == 0


def introspection(r):
    info = r.info()
    assert info["redis_version"] == "7.2.4" and info["role"] == "master", info
    assert r.config_get("appendonly")["appendonly"] == "yes"
    assert r.client_setname("tester") and r.client_getname() == "tester"
    assert r.client_id() > 0 and r.echo("x") == "x" and abs(r.time()[0] - time.time()) < 60
    assert r.command_count() > 60
    assert "get" in {str(name).lower() for name in r.command()}


for protocol in (2, 3):
    address = {"host": "127.0.0.1", "port": PORT, "protocol": protocol}
    client = library.Redis(decode_responses=True, **address)
    for test in (strings, expiry, pipelines, iteration, introspection):
        test(client)
    binary(address)
    client.close()
print("passed")

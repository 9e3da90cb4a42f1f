"""Cluster clients that others wrote: LIBRARY PORT [PORT ...]. Each is given the first port only."""

import asyncio
import sys

KEYS = [f"key:{number}" for number in range(40)]


def redis_like(library, ports):
    module = __import__(library)
    cluster_module = __import__(f"{library}.cluster", fromlist=["x"])
    kind = getattr(cluster_module, {"redis": "RedisCluster", "valkey": "ValkeyCluster"}[library])
    for protocol in (2, 3):
        client = kind(host="127.0.0.1", port=ports[0], decode_responses=True, protocol=protocol)
        nodes = sorted(node.port for node in client.get_nodes())
        assert nodes == sorted(ports), (nodes, ports)
        for key in KEYS:
            assert client.set(key, key.upper())
        for key in KEYS:
            assert client.get(key) == key.upper()
        assert client.mget_nonatomic(KEYS) == [key.upper() for key in KEYS]
        assert client.mset_nonatomic({key: "new" for key in KEYS})
        assert client.exists(*KEYS) == len(KEYS)
        assert client.delete("{tag}n") in (0, 1)
        assert client.incrby("{tag}n", 41) == 41 and client.incr("{tag}n") == 42
        with client.pipeline() as pipeline:
            for key in KEYS:
                pipeline.get(key)
            assert pipeline.execute() == ["new"] * len(KEYS)
        slot = client.keyslot("foo")
        assert slot == client.cluster_keyslot("foo") == 12182
        client.set("foo", "1")
        assert client.cluster_countkeysinslot(slot) == 1
        assert client.cluster_get_keys_in_slot(slot, 10) == ["foo"]
        assert client.delete(*KEYS) == len(KEYS)
        client.delete("foo")
        readers = kind(host="127.0.0.1", port=ports[0], read_from_replicas=True)
        assert readers.get("absent") is None
        readers.close()
        client.close()
    assert module.__version__


async def glide(ports):
    from glide import GlideClusterClient, GlideClusterClientConfiguration, NodeAddress, SlotKeyRoute, SlotType

    configuration = GlideClusterClientConfiguration([NodeAddress("127.0.0.1", ports[0])])
    client = await GlideClusterClient.create(configuration)
    for key in KEYS:
        assert await client.set(key, key.upper()) == "OK"
    for key in KEYS:
        assert await client.get(key) == key.upper().encode()
    assert await client.mset({key: "new" for key in KEYS}) == "OK"
    assert await client.mget(KEYS) == [b"new"] * len(KEYS)
    assert await client.exists(KEYS) == len(KEYS)
    assert await client.incrby("{tag}m", 41) == 41
    route = SlotKeyRoute(SlotType.PRIMARY, "foo")
    assert await client.custom_command(["CLUSTER", "KEYSLOT", "foo"], route) == 12182
    assert await client.delete(KEYS + ["{tag}m"]) == len(KEYS) + 1
    await client.close()


def main():
    library, *ports = sys.argv[1:]
    ports = [int(port) for port in ports]
    if library == "glide":
        asyncio.run(glide(ports))
    else:
        redis_like(library, ports)
    print("passed")


main()

"""What users of redis-py's RedisCluster write, unchanged, while leaders move. Arguments: the ports, separated by commas.

Says `counting` when every command is answered; ends, and checks its counts, when it reads a line.
"""

import sys
import threading
import time

import redis
from redis.cluster import ClusterNode, RedisCluster

ports = [int(port) for port in sys.argv[1].split(",")]


def connect():
    nodes = [ClusterNode("127.0.0.1", port) for port in ports]
    return RedisCluster(startup_nodes=nodes, decode_responses=True)


def tutorial(r):
    assert r.ping()
    assert r.set("foo", "bar") is True and r.get("foo") == "bar"
    assert r.keyslot("foo") == r.cluster_keyslot("foo") == 12182
    assert r.cluster_keyslot("a{foo}b") == 12182
    assert r.mset_nonatomic({"a": 1, "b": 2, "c": 3}) is not None
    assert r.mget_nonatomic("a", "b", "c", "none") == ["1", "2", "3", None]
    assert r.mset({"{t}a": 1, "{t}b": 2}) is True and r.mget("{t}a", "{t}b") == ["1", "2"]
    assert r.hset("hash", mapping={"x": "1", "y": "2"}) == 2 and r.hgetall("hash") == {"x": "1", "y": "2"}
    assert r.set("lock", "me", nx=True, ex=10) is True and r.set("lock", "you", nx=True, ex=10) is None
    assert r.delete("lock") == 1
    with r.pipeline() as pipe:
        for number in range(50):
            pipe.set(f"key:{number}", number)
            pipe.get(f"key:{number}")
        assert pipe.execute()[1::2] == [str(number) for number in range(50)]
    primaries = {node.port for node in r.get_primaries()}
    assert primaries == set(ports), primaries
    for number in range(100):
        key = f"key:{number}"
        leader = r.get_node_from_key(key)
        assert leader.port in ports
    nodes = r.cluster_nodes()
    assert len(nodes) == len(ports), nodes
    assert r.cluster_info(target_nodes=RedisCluster.RANDOM)["cluster_state"] == "ok"


def replicas():
    nodes = [ClusterNode("127.0.0.1", port) for port in ports]
    reader = RedisCluster(startup_nodes=nodes, decode_responses=True, read_from_replicas=True)
    assert reader.set("replicated", "1") is True and reader.hset("replicated:hash", "field", "1") in (0, 1)
    slot = reader.nodes_manager.slots_cache[reader.keyslot("replicated")]
    assert {node.port for node in slot} == set(ports), slot
    # By and by every one of them has it; none sends the reader elsewhere.
    until = time.monotonic() + 30
    while [reader.get("replicated") for _ in range(12)] != ["1"] * 12:
        assert time.monotonic() < until, "a replica does not come to it"
    assert reader.incr("replicated") == 2
    while [reader.get("replicated") for _ in range(12)] != ["2"] * 12:
        assert time.monotonic() < until, "a replica does not come to it"
    reader.close()


r = connect()
tutorial(r)
replicas()

WORKERS = 3
counts = [0] * WORKERS
slowest = [0.0] * WORKERS
failures = []
stop = threading.Event()


def count(worker):
    own = connect()
    while not stop.is_set():
        key = f"count:{worker}:{counts[worker] % 16}"
        began = time.monotonic()
        while True:
            try:
                own.incr(key)
                break
            except redis.exceptions.ConnectionError as error:
                # A node was killed. The library asks the others at once, again and again, and gives up before anybody
                # can have been elected; with Redis an application has to repeat it, too.
                if time.monotonic() - began > 10:
                    failures.append(f"{key}: {error!r}")
                    return
                time.sleep(0.05)
            except Exception as error:
                failures.append(f"{key}: {error!r}")
                return
        counts[worker] += 1
        slowest[worker] = max(slowest[worker], time.monotonic() - began)


def total(r, worker):
    return sum(int(r.get(f"count:{worker}:{part}") or 0) for part in range(16))


threads = [threading.Thread(target=count, args=(worker,)) for worker in range(WORKERS)]
for thread in threads:
    thread.start()
while min(counts) < 50 and not failures:
    time.sleep(0.01)
print("counting", flush=True)
sys.stdin.readline()
stop.set()
for thread in threads:
    thread.join()
assert not failures, failures
for worker in range(WORKERS):
    found = total(r, worker)
    # A client that repeats what it did not hear of may count twice, never less.
    assert counts[worker] <= found <= counts[worker] + 10, (worker, counts[worker], found)
print("done", redis.__version__, sum(counts), f"slowest {max(slowest):.1f} s", flush=True)

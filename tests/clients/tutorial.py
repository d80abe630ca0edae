"""What tutorials write with redis-py, unchanged. Arguments: the port, and the password or nothing."""

import sys
import threading
import time
import uuid

import redis


def strings_and_keys(r):
    r.flushdb()
    assert r.ping()
    assert r.set("foo", "bar") is True
    assert r.get("foo") == "bar"
    assert r.get("nothing") is None
    assert r.incr("hits") == 1 and r.incrby("hits", 10) == 11 and r.decr("hits") == 10
    assert r.incrbyfloat("temperature", 36.6) == 36.6

    # A lock, as tutorials have it.
    assert r.set("lock:job", "me", nx=True, ex=10) is True
    assert r.set("lock:job", "you", nx=True, ex=10) is None
    assert 0 < r.ttl("lock:job") <= 10
    assert r.delete("lock:job") == 1
    assert r.setnx("lock:job", "you") is True
    assert r.setnx("lock:job", "me") is False
    assert r.expire("lock:job", 100) is True and r.persist("lock:job") is True

    assert r.mset({"a": 1, "b": 2, "c": 3}) is True
    assert r.mget("a", "none", "c") == ["1", None, "3"]
    assert r.exists("a", "b", "none") == 2
    assert sorted(r.keys("[abc]")) == ["a", "b", "c"]
    assert sorted(r.scan_iter(match="?", count=2)) == ["a", "b", "c"]
    assert r.type("a") == "string" and r.dbsize() == 7
    assert r.rename("a", "z") and r.getdel("z") == "1"
    try:
        r.incr("foo")
        raise AssertionError("no error")
    except redis.ResponseError as error:
        assert "not an integer" in str(error), error
    assert r.info()["redis_version"].startswith("7.")
    assert r.client_id() > 0


def hashes(r):
    assert r.hset("bike:1", mapping={"model": "Deimos", "brand": "Ergonom", "price": 4972}) == 3
    assert r.hget("bike:1", "model") == "Deimos"
    assert r.hgetall("bike:1") == {"model": "Deimos", "brand": "Ergonom", "price": "4972"}
    assert r.hmget("bike:1", ["model", "none"]) == ["Deimos", None]
    assert r.hincrby("bike:1", "price", 100) == 5072
    assert r.hexists("bike:1", "brand") is True and r.hdel("bike:1", "brand") == 1
    assert sorted(r.hkeys("bike:1")) == ["model", "price"] and r.hlen("bike:1") == 2
    assert dict(r.hscan_iter("bike:1")) == {"model": "Deimos", "price": "5072"}


def pipelines(r):
    with r.pipeline(transaction=True) as pipe:
        assert pipe.set("x", "1").incr("x").get("x").execute() == [True, 2, "2"]
    # Of several partitions, with a hash and a time to live.
    with r.pipeline() as pipe:
        pipe.hset("cart:1", "apples", 3)
        pipe.set("seen:1", "now", ex=60)
        pipe.incr("carts")
        pipe.expire("cart:1", 600)
        assert pipe.execute() == [1, True, 1, True]
    assert 0 < r.ttl("cart:1") <= 600 and r.ttl("carts") == -1
    with r.pipeline(transaction=False) as pipe:
        for number in range(200):
            pipe.set(f"key:{number}", number)
            pipe.get(f"key:{number}")
        replies = pipe.execute()
        assert replies[1::2] == [str(number) for number in range(200)]


def watching(r):
    r.set("hits", 10)

    def add(pipe):
        before = int(pipe.get("hits"))
        pipe.multi()
        pipe.set("hits", before + 1)

    assert r.transaction(add, "hits") == [True]
    assert r.get("hits") == "11"
    with r.pipeline() as pipe:
        pipe.watch("hits")
        r.set("hits", 100)
        pipe.multi()
        pipe.set("hits", 0)
        try:
            pipe.execute()
            raise AssertionError("a change was not seen")
        except redis.WatchError:
            pass
    assert r.get("hits") == "100"


def acquire(r, name, lease):
    """The recipe with a token of one's own: taken by SET NX EX, ..."""
    token = str(uuid.uuid4())
    return token if r.set(name, token, nx=True, ex=lease) else None


def release(r, name, token):
    """... and given back only if it is still one's own: compared and deleted, by WATCH instead of a script."""
    with r.pipeline() as pipe:
        while True:
            try:
                pipe.watch(name)
                if pipe.get(name) != token:
                    return False
                pipe.multi()
                pipe.delete(name)
                pipe.execute()
                return True
            except redis.WatchError:
                continue


def recipes_for_locks(r, port, password):
    mine = acquire(r, "lock:recipe", 10)
    assert mine and acquire(r, "lock:recipe", 10) is None
    assert release(r, "lock:recipe", "somebody else's") is False
    assert release(r, "lock:recipe", mine) is True
    assert release(r, "lock:recipe", mine) is False

    # Many at once: nobody loses what another did between reading and writing.
    r.set("stock", 0)

    def work():
        own = redis.Redis(port=port, password=password, decode_responses=True)
        for _ in range(5):
            while (token := acquire(own, "lock:stock", 30)) is None:
                time.sleep(0.002)
            own.set("stock", int(own.get("stock")) + 1)
            assert release(own, "lock:stock", token)

    workers = [threading.Thread(target=work) for _ in range(6)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert r.get("stock") == "30", r.get("stock")


def locks_of_the_library(r):
    """`r.lock()`, which gives back and prolongs with scripts."""
    with r.lock("library", timeout=10) as lock:
        assert lock.owned() and r.lock("library", timeout=10).acquire(blocking=False) is False
        assert lock.extend(20) and 25 < r.ttl("library") <= 30
        assert lock.extend(15, replace_ttl=True) and 10 < r.ttl("library") <= 15
        assert lock.reacquire() and 5 < r.ttl("library") <= 10
    assert r.exists("library") == 0
    lost = r.lock("library", timeout=10)
    assert lost.acquire()
    r.set("library", "somebody else's")
    for lose in (lost.reacquire, lambda: lost.extend(10), lost.release):
        try:
            lose()
            raise AssertionError("it has what is somebody else's")
        except redis.exceptions.LockNotOwnedError:
            pass
    assert r.get("library") == "somebody else's" and r.ttl("library") == -1
    assert r.delete("library") == 1


def fencing(r):
    """What Redis has not: a number that every later holder's is larger than."""
    token = r.execute_command("DOGSLED.LOCK", "{job}", 10_000)
    assert r.execute_command("DOGSLED.LOCK", "{job}", 10_000) is None
    assert r.execute_command("DOGSLED.FENCED", "{job}", token, "SET", "{job}:state", "1") in ("OK", True)
    assert r.execute_command("DOGSLED.LOCK", "{job}", 20_000, "RENEW", token) == token
    assert r.execute_command("DOGSLED.UNLOCK", "{job}", token) == 1
    assert r.execute_command("DOGSLED.UNLOCK", "{job}", token) == 0
    try:
        r.execute_command("DOGSLED.FENCED", "{job}", token, "SET", "{job}:state", "2")
        raise AssertionError("it is carried out without the lock")
    except redis.ResponseError as error:
        assert str(error).startswith("LOCKNOTHELD"), error
    assert r.get("{job}:state") == "1"
    assert r.execute_command("DOGSLED.LOCK", "{job}", 10, "WAIT", 1_000) > token


def messages(r):
    """Every message that was published since, in order, also by pattern."""
    with r.pubsub(ignore_subscribe_messages=True) as listener:
        listener.subscribe("news")
        listener.psubscribe("ne?s*")
        # The first two are what is ignored.
        assert listener.get_message(timeout=5) is None and listener.get_message(timeout=5) is None
        for number in range(10):
            assert r.publish("news", number) == 2
        heard = []
        while len(heard) < 20:
            message = listener.get_message(timeout=5)
            if message is not None:
                assert message["channel"] == "news", message
                heard.append((message["type"], message["data"]))
        for kind in ("message", "pmessage"):
            assert [data for found, data in heard if found == kind] == [str(n) for n in range(10)], heard
        assert r.pubsub_numsub("news") == [("news", 1)] and r.pubsub_channels() == ["news"]
    assert r.publish("nobody", "x") == 0


port, password = int(sys.argv[1]), sys.argv[2] or None
for protocol in (2, 3):
    r = redis.Redis(port=port, password=password, protocol=protocol, decode_responses=True)
    strings_and_keys(r)
    hashes(r)
    pipelines(r)
    watching(r)
    recipes_for_locks(r, port, password)
    locks_of_the_library(r)
    fencing(r)
    messages(r)
print("done", redis.__version__)

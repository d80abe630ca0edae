"""Publish and subscribe with redis-py, as its documentation has it, at several nodes. Arguments: their ports."""

import sys
import time

import redis


def heard(listener, count):
    """The next messages that are no confirmations."""
    found, until = [], time.time() + 30
    while len(found) < count:
        assert time.time() < until, found
        message = listener.get_message(ignore_subscribe_messages=True, timeout=1)
        if message is not None:
            found.append(message)
    return found


ports = [int(port) for port in sys.argv[1:]]
for protocol in (2, 3):
    nodes = [redis.Redis(port=port, protocol=protocol, decode_responses=True) for port in ports]
    here, there = nodes[0], nodes[-1]
    with there.pubsub() as listener, here.pubsub() as other:
        listener.subscribe("news")
        listener.psubscribe("ne?s*")
        other.subscribe("news")
        # Once it is confirmed nothing is missed.
        for which, count in ((listener, 2), (other, 1)):
            for _ in range(count):
                assert which.get_message(timeout=30)["type"] in ("subscribe", "psubscribe")
        with here.pipeline(transaction=False) as pipe:
            for number in range(1_000):
                pipe.publish("news", number)
            assert pipe.execute() == [1] * 1_000
        expected = [str(number) for number in range(1_000)]
        messages = heard(listener, 2_000)
        for kind in ("message", "pmessage"):
            assert [m["data"] for m in messages if m["type"] == kind] == expected
        assert [m["data"] for m in heard(other, 1_000)] == expected
        assert there.pubsub_numsub("news") == [("news", 1)] and there.pubsub_channels() == ["news"]
        assert there.pubsub_numpat() == 1

    # Messages that a thread hands to a function.
    told = []
    with there.pubsub() as listener:
        listener.subscribe(**{"to-handler": lambda message: told.append(message["data"])})
        thread = listener.run_in_thread(sleep_time=0.01)
        until = time.time() + 30
        while not told:
            assert time.time() < until
            here.publish("to-handler", "hello")
            time.sleep(0.05)
        thread.stop()
        thread.join()
    assert told[0] == "hello"

    # What is told of keys, set at one node and heard at the other.
    here.config_set("notify-keyspace-events", "KEA")
    assert there.config_get("notify-keyspace-events") == {"notify-keyspace-events": "AKE"}
    with there.pubsub() as listener:
        listener.psubscribe("__keyspace@0__:*")
        assert listener.get_message(timeout=30)["type"] == "psubscribe"
        here.set("greeting", "hello", px=200)
        found = [(m["channel"], m["data"]) for m in heard(listener, 3)]
        assert found == [("__keyspace@0__:greeting", event) for event in ("set", "expire", "expired")], found
    here.config_set("notify-keyspace-events", "")
print("done", redis.__version__)

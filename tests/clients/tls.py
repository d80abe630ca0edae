"""A client from elsewhere: within TLS, with a password. Arguments: the port, and the authority's certificate."""

import sys

import redis

port, authority = int(sys.argv[1]), sys.argv[2]
r = redis.Redis(
    "127.0.0.1",
    port,
    password="secret",
    ssl=True,
    ssl_ca_certs=authority,
    ssl_check_hostname=True,
    decode_responses=True,
)
with r.pubsub(ignore_subscribe_messages=True) as listener:
    listener.subscribe("news")
    assert listener.get_message(timeout=30) is None
    for number in range(100):
        assert r.publish("news", number) == 1
    told = [listener.get_message(timeout=30)["data"] for _ in range(100)]
    assert told == [str(number) for number in range(100)], told
assert r.strlen("large") == 3 << 20
assert len(r.get("large")) == 3 << 20
print("done", redis.__version__)

"""A client from elsewhere: within TLS, with a password. Arguments: the port, and the authority's certificate."""

import socket
import ssl
import sys
import time

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

# Whoever waits for a lock and says goodbye, as TLS has it, is not granted the lock.
token = r.execute_command("DOGSLED.LOCK", "l", 600_000)
context = ssl.create_default_context(cafile=authority)
gone = context.wrap_socket(socket.create_connection(("127.0.0.1", port)), server_hostname="127.0.0.1")
gone.sendall(b"AUTH secret\r\n")
assert gone.recv(100) == b"+OK\r\n"
gone.sendall(b"DOGSLED.LOCK l 600000 WAIT 600000\r\nPING\r\n")
time.sleep(0.5)
gone.setblocking(False)
try:
    gone.unwrap()
except (ssl.SSLError, OSError):
    pass
gone.close()
time.sleep(0.5)
assert r.execute_command("DOGSLED.UNLOCK", "l", token) == 1
assert r.execute_command("DOGSLED.LOCK", "l", 1_000, "WAIT", 20_000) > token
print("done", redis.__version__)

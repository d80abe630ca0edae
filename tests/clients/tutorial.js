// What tutorials write with ioredis, unchanged. Arguments: the port, and the password or nothing.
"use strict";

const assert = require("node:assert/strict");
const { randomUUID } = require("node:crypto");
const Redis = require("ioredis");

const [port, password] = process.argv.slice(2);

async function main() {
    const redis = new Redis({ port: Number(port), password: password || undefined });
    await redis.flushdb();
    assert.equal(await redis.set("mykey", "value"), "OK");
    assert.equal(await redis.get("mykey"), "value");
    assert.equal(await redis.get("none"), null);
    assert.deepEqual(await redis.getBuffer("mykey"), Buffer.from("value"));
    assert.equal(await redis.incr("visits"), 1);
    assert.equal(await redis.set("session", "x", "EX", 100), "OK");
    assert.ok((await redis.ttl("session")) > 90);
    assert.equal(await redis.mset(new Map([["a", "1"], ["b", "2"]])), "OK");
    assert.deepEqual(await redis.mget("a", "none", "b"), ["1", null, "2"]);

    // A lock.
    const token = randomUUID();
    assert.equal(await redis.set("lock", token, "PX", 30000, "NX"), "OK");
    assert.equal(await redis.set("lock", "other", "PX", 30000, "NX"), null);
    await redis.watch("lock");
    assert.equal(await redis.get("lock"), token);
    assert.deepEqual(await redis.multi().del("lock").exec(), [[null, 1]]);

    // Hashes, and objects for them.
    assert.equal(await redis.hset("user:1", { name: "Ann", age: 41 }), 2);
    assert.deepEqual(await redis.hgetall("user:1"), { name: "Ann", age: "41" });
    assert.equal(await redis.hincrby("user:1", "age", 1), 42);

    // Pipelines and transactions.
    const piped = await redis.pipeline().set("foo", "bar").get("foo").incr("foo").exec();
    assert.deepEqual(piped.slice(0, 2), [[null, "OK"], [null, "bar"]]);
    assert.match(piped[2][0].message, /not an integer/);
    const done = await redis.multi().set("m", 1).incr("visits").hset("user:1", "seen", 1).expire("user:1", 60).exec();
    assert.deepEqual(done, [[null, "OK"], [null, 2], [null, 1], [null, 1]]);
    const other = redis.duplicate();
    await redis.watch("m");
    await other.set("m", 2);
    assert.equal(await redis.multi().set("m", 3).exec(), null);
    other.disconnect();

    // Commands without waiting are one pipeline, too.
    const counts = await Promise.all(Array.from({ length: 100 }, () => redis.incr("many")));
    assert.deepEqual(counts, Array.from({ length: 100 }, (_, number) => number + 1));

    const found = [];
    for await (const keys of redis.scanStream({ match: "user:*" })) found.push(...keys);
    assert.deepEqual(found, ["user:1"]);
    await assert.rejects(redis.call("nonsense"), /unknown command/);

    const listener = new Redis({ port: Number(port), password: password || undefined });
    const heard = [];
    const all = new Promise((resolve) => {
        listener.on("message", (channel, message) => {
            heard.push([channel, message]);
            if (heard.length === 3) resolve();
        });
    });
    assert.equal(await listener.subscribe("news", "music"), 2);
    for (const [channel, message] of [["news", "1"], ["news", "2"], ["music", "3"]]) {
        assert.equal(await redis.publish(channel, message), 1);
    }
    await all;
    assert.deepEqual(heard.filter(([channel]) => channel === "news"), [["news", "1"], ["news", "2"]]);
    listener.disconnect();

    const held = await redis.call("DOGSLED.LOCK", "{job}", 10000);
    assert.equal(await redis.call("DOGSLED.LOCK", "{job}", 10000), null);
    assert.equal(await redis.call("DOGSLED.FENCED", "{job}", held, "SET", "{job}:state", "1"), "OK");
    assert.equal(await redis.call("DOGSLED.UNLOCK", "{job}", held), 1);
    await assert.rejects(redis.call("DOGSLED.FENCED", "{job}", held, "GET", "{job}:state"), /LOCKNOTHELD/);
    await redis.quit();
    console.log("done");
}

main().catch((error) => {
    console.error(error);
    process.exit(1);
});

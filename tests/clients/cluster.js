// What users of ioredis's Cluster write, unchanged, while leaders move. Arguments: the ports, separated by commas.
// Says `counting` when every command is answered; ends, and checks its counts, when it reads a line.
"use strict";

const assert = require("node:assert/strict");
const Redis = require("ioredis");

const ports = process.argv[2].split(",").map(Number);

async function tutorial(cluster) {
    assert.equal(await cluster.set("foo", "bar"), "OK");
    assert.equal(await cluster.get("foo"), "bar");
    assert.equal(await cluster.cluster("KEYSLOT", "a{foo}b"), 12182);
    assert.equal(await cluster.mset("{t}a", 1, "{t}b", 2), "OK");
    assert.deepEqual(await cluster.mget("{t}a", "{t}b"), ["1", "2"]);
    assert.equal(await cluster.hset("hash", { x: 1, y: 2 }), 2);
    assert.deepEqual(await cluster.multi().set("{t}a", 5).incr("{t}a").exec(), [[null, "OK"], [null, 6]]);
    const piped = await cluster.pipeline().set("{t}c", 1).get("{t}c").exec();
    assert.deepEqual(piped, [[null, "OK"], [null, "1"]]);
    assert.deepEqual(cluster.nodes("master").map((node) => node.options.port).sort(), [...ports].sort());
}

async function main() {
    const cluster = new Redis.Cluster(ports.map((port) => ({ host: "127.0.0.1", port })));
    await cluster.del("hash");
    await tutorial(cluster);
    let stopped = false;
    process.stdin.once("data", () => (stopped = true));
    const counts = [0, 0, 0];
    const count = async (worker) => {
        while (!stopped) {
            await cluster.incr(`many:${worker}:${counts[worker] % 16}`);
            counts[worker] += 1;
            if (counts[worker] === 50 && worker === 0) console.log("counting");
        }
    };
    await Promise.all(counts.map((_, worker) => count(worker)));
    for (const worker of counts.keys()) {
        let found = 0;
        for (let part = 0; part < 16; part++) found += Number(await cluster.get(`many:${worker}:${part}`));
        // What was not heard of may have been done, and is repeated.
        assert.ok(counts[worker] <= found && found <= counts[worker] + 10, `${worker}: ${counts[worker]} ${found}`);
    }
    cluster.disconnect();
    console.log("done", counts.reduce((sum, count) => sum + count));
    process.exit(0);
}

main().catch((error) => {
    console.error(error);
    process.exit(1);
});

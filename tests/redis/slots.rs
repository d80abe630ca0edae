//! Clients of clusters: where slots are, who is sent elsewhere and who never is.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use dogsled::cluster::NodeId;
use dogsled::cluster::redis::{Redirects, RedisOptions, RedisServer};
use dogsled::cluster::ring::slots::{SLOTS, group_of_slot, slot_of};

use crate::support::{Connection, Served, escaped, eventually, request, words};

const PARTITIONS: u32 = 6;

/// What a reply is made of, in order.
fn pieces(reply: &str) -> Vec<&str> {
    reply.split("\\r\\n").filter(|piece| !piece.is_empty() && !piece.starts_with(['*', '$'])).collect()
}

/// The ports of all slots, as `CLUSTER SLOTS` tells.
fn slots_of(connection: &mut Connection) -> Vec<u16> {
    let reply = connection.ask("CLUSTER SLOTS");
    let mut ports = vec![0; usize::from(SLOTS)];
    for row in pieces(&reply).chunks(5) {
        let [first, last, host, port, name] = row else { panic!("{reply}") };
        let number = |text: &str| text.trim_start_matches(':').parse::<u16>().unwrap();
        assert_eq!((*host, name.len()), ("127.0.0.1", 40), "{reply}");
        for slot in number(first)..=number(last) {
            assert_eq!(ports[usize::from(slot)], 0, "slot {slot} twice: {reply}");
            ports[usize::from(slot)] = number(port);
        }
    }
    assert!(!ports.contains(&0), "not all slots: {reply}");
    ports
}

impl Served {
    fn node(&self, index: usize) -> &dogsled::cluster::Node {
        &self.cluster.as_ref().unwrap().nodes[&(index as u64 + 1)]
    }

    fn port(&self, node: NodeId) -> u16 {
        self.servers[node.0 as usize - 1].local_address().port()
    }

    /// Who leads each partition, when all say the same.
    fn leaders(&self) -> BTreeMap<u32, NodeId> {
        let said = |index: usize| -> Option<BTreeMap<u32, NodeId>> {
            let node = self.node(index).replication();
            (1..=PARTITIONS).map(|group| Some((group, node.leader(group)?))).collect()
        };
        let mut found = None;
        eventually("all know the same leaders", || {
            found = said(0);
            found.is_some() && (1..self.servers.len()).all(|index| said(index) == found)
        });
        found.unwrap()
    }

    /// The leaders, when every node leads some partition: it takes a moment until leadership is spread.
    fn each_leads_some(&self) -> BTreeMap<u32, NodeId> {
        let mut leaders = self.leaders();
        eventually("each leads some partition", || {
            leaders = self.leaders();
            (1..=self.servers.len() as u64).all(|node| leaders.values().any(|leader| leader.0 == node))
        });
        leaders
    }

    /// Carries out `check`; some times more if it failed, as another leader may come at any time, or the nodes may not
    /// agree for a while who it is.
    fn while_they_lead(&self, check: impl Fn(&BTreeMap<u32, NodeId>)) {
        for left in (0..5).rev() {
            assert_eq!(self.connect(0).ask("FLUSHALL"), "+OK\\r\\n");
            let leaders = self.each_leads_some();
            match std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| check(&leaders))) {
                Ok(()) => return,
                Err(failed) if left == 0 => std::panic::resume_unwind(failed),
                Err(_) => eprintln!("the leaders were {leaders:?}, and are {:?}", self.leaders()),
            }
        }
    }

    fn forwarded(&self) -> u64 {
        (0..self.servers.len()).map(|index| self.node(index).replication().forwarded()).sum()
    }

    fn transfer(&self, group: u32, to: NodeId) {
        eventually("another leads", || {
            // Which may be another one by now.
            let leader = self.leaders()[&group];
            let from = self.node(leader.0 as usize - 1).replication().clone();
            let _ = self.runtime.block_on(from.transfer_leader(group, to));
            std::thread::sleep(Duration::from_millis(20));
            self.leaders()[&group] == to
        });
    }
}

/// A key whose partition this node leads.
fn key_of(leaders: &BTreeMap<u32, NodeId>, node: NodeId) -> String {
    let key = |number: u32| format!("key:{number}");
    let leads = |key: &String| leaders[&group_of_slot(slot_of(key.as_bytes()), PARTITIONS)] == node;
    (0..10_000).map(key).find(leads).expect("it leads some partition")
}

#[test]
fn the_map_names_the_leader_of_every_slot_also_when_it_has_just_moved() {
    let served = Served::new(3, PARTITIONS);
    for round in 0..3 {
        let (leaders, maps) = loop {
            let leaders = served.leaders();
            let maps: Vec<_> = (0..3).map(|index| slots_of(&mut served.connect(index))).collect();
            // They go back to where they are wanted by themselves.
            if served.leaders() == leaders {
                break (leaders, maps);
            }
        };
        for (index, ports) in maps.iter().enumerate() {
            for slot in 0..SLOTS {
                let leader = leaders[&group_of_slot(slot, PARTITIONS)];
                assert_eq!(ports[usize::from(slot)], served.port(leader), "slot {slot}, node {index}");
            }
        }
        let group = round + 1;
        let to = NodeId(leaders[&group].0 % 3 + 1);
        served.transfer(group, to);
    }
    // All ways to ask say the same.
    let mut connection = served.connect(1);
    let nodes = connection.ask("CLUSTER NODES");
    assert_eq!(nodes.matches(" connected").count(), 3, "{nodes}");
    assert_eq!(nodes.matches("myself,master").count(), 1, "{nodes}");
    let own = connection.says("CLUSTER MYID");
    let own = own.rsplit("\\r\\n").next().unwrap();
    assert!(nodes.contains(&format!("{own} 127.0.0.1:{}@", served.port(NodeId(2)))), "{nodes}");
    let shards = connection.ask("CLUSTER SHARDS");
    assert_eq!(shards.matches("endpoint").count(), 3, "{shards}");
    assert!(connection.ask("CLUSTER INFO").contains("cluster_state:ok"));
    for server in &served.servers {
        assert!(nodes.contains(&server.local_address().to_string()), "{nodes}");
        assert!(shards.contains(&server.local_address().port().to_string()), "{shards}");
    }
}

#[test]
fn who_has_asked_for_the_map_is_sent_to_the_leader_and_nobody_else_is() {
    let served = Served::new(3, PARTITIONS);
    served.while_they_lead(|leaders| who_has_asked_is_sent(&served, leaders));
}

fn who_has_asked_is_sent(served: &Served, leaders: &BTreeMap<u32, NodeId>) {
    let mut plain = served.connect(0);
    let mut aware = served.connect(0);
    aware.ask("CLUSTER SLOTS");
    let key = key_of(leaders, NodeId(2));
    let slot = slot_of(key.as_bytes());
    let moved = format!("-MOVED {slot} 127.0.0.1:{}", served.port(NodeId(2)));
    assert_eq!(plain.says(&format!("SET {key} 1")), "+OK");
    assert_eq!(aware.says(&format!("GET {key}")), moved);
    // Never again and again: two nodes may take each other for the leader. What comes at once may have been sent before.
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(aware.says(&format!("GET {key}")), "$1\\r\\n1");
    eventually("it is sent there again", || aware.says(&format!("INCR {key}")) == moved);
    // By the tag, as every client computes it.
    let tagged = format!("a{{{key}}}b");
    eventually("a tag", || aware.says(&format!("GET {tagged}")) == moved);
    assert_eq!(aware.says("CLUSTER KEYSLOT a{foo}b"), ":12182");
    assert_eq!(aware.says("CLUSTER KEYSLOT foo{}{bar}"), ":8363");
    // What is of several slots, or within MULTI, or under a lock, is served where it comes.
    std::thread::sleep(Duration::from_millis(1100));
    let other = key_of(leaders, NodeId(3));
    assert_eq!(aware.says(&format!("MSET {key} 2 {other} 3")), "+OK");
    assert_eq!(aware.says("MULTI"), "+OK");
    assert_eq!(aware.says(&format!("INCR {key}")), "+QUEUED");
    assert_eq!(aware.says("EXEC"), "*1\\r\\n:3");
    // Its own are its own.
    let own = key_of(leaders, NodeId(1));
    assert_eq!(aware.says(&format!("SET {own} 1")), "+OK");
    // Who is reset knows nothing more. READWRITE says that somebody knows.
    assert_eq!(aware.says("RESET"), "+RESET");
    assert_eq!(aware.says(&format!("GET {key}")), "$1\\r\\n3");
    assert_eq!(plain.says(&format!("GET {key}")), "$1\\r\\n3");
    assert_eq!(plain.says("READWRITE"), "+OK");
    assert_eq!(plain.says(&format!("GET {key}")), moved);
}

#[test]
fn who_has_said_readonly_reads_where_it_is_and_never_is_sent_elsewhere() {
    let served = Served::new(3, PARTITIONS);
    served.while_they_lead(|leaders| who_has_said_readonly_reads_here(&served, leaders));
}

fn who_has_said_readonly_reads_here(served: &Served, leaders: &BTreeMap<u32, NodeId>) {
    let mut aware = served.connect(0);
    aware.ask("CLUSTER SLOTS");
    let (key, other) = (key_of(leaders, NodeId(2)), key_of(leaders, NodeId(3)));
    let moved = format!("-MOVED {} 127.0.0.1:{}", slot_of(key.as_bytes()), served.port(NodeId(2)));
    assert_eq!(served.connect(1).says(&format!("MSET {key} 1 {other} 2")), "+OK");
    assert_eq!(served.connect(1).says("HSET {hash} field 3"), ":1");
    assert_eq!(aware.says("READONLY"), "+OK");
    let reads = [
        (format!("GET {key}"), "$1\\r\\n1"),
        (format!("MGET {key} {other} none"), "*3\\r\\n$1\\r\\n1\\r\\n$1\\r\\n2\\r\\n$-1"),
        (format!("EXISTS {key} {other} none"), ":2"),
        (format!("STRLEN {other}"), ":1"),
        (format!("TTL {key}"), ":-1"),
        (format!("TYPE {key}"), "+string"),
        ("HGETALL {hash}".to_owned(), "*2\\r\\n$5\\r\\nfield\\r\\n$1\\r\\n3"),
    ];
    // By and by it is there.
    for (read, expected) in &reads {
        eventually(read, || {
            let found = aware.says(read);
            assert!(!found.starts_with("-"), "{found}");
            found == *expected
        });
    }
    // Renewals of sessions are passed on, reads are not.
    let forwarded = served.forwarded();
    for _ in 0..100 {
        assert_eq!(aware.says(&format!("MGET {key} {other}")), "*2\\r\\n$1\\r\\n1\\r\\n$1\\r\\n2");
    }
    let forwarded = served.forwarded() - forwarded;
    assert!(forwarded < 50, "{forwarded} requests were passed on for 100 reads");
    // What writes is sent elsewhere as ever, and so is what is read behind READWRITE.
    assert_eq!(aware.says(&format!("INCR {key}")), moved);
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(aware.says(&format!("INCR {key}")), ":2");
    assert_eq!(aware.says("READWRITE"), "+OK");
    eventually("it is sent there again", || aware.says(&format!("GET {key}")) == moved);
    // Who reads replicas is told of them, of each partition apart.
    let mut reader = served.connect(0);
    assert_eq!(reader.says("READONLY"), "+OK");
    let reply = reader.ask("CLUSTER SLOTS");
    assert!(reply.starts_with(&format!("*{PARTITIONS}\\r\\n*5\\r\\n:0\\r\\n")), "{reply}");
    for server in &served.servers {
        let port = format!(":{}\\r\\n", server.local_address().port());
        assert_eq!(reply.matches(&port).count(), PARTITIONS as usize, "{reply}");
    }
    assert_eq!(slots_of(&mut served.connect(0)).len(), usize::from(SLOTS));
}

/// Node 3 was not there when the key was written for the second time, and is alone when it comes back.
#[test]
fn who_has_said_readonly_is_told_what_is_old_and_nobody_else_is() {
    let mut served = Served::new(3, 2);
    let lines = ["READONLY", "GET key", "HGET {hash} field", "MGET key other", "TTL key"];
    let old = ["+OK", "$3\\r\\nold", "$3\\r\\nold", "*2\\r\\n$3\\r\\nold\\r\\n$3\\r\\nold", ":-1"];
    let mut writer = served.connect(0);
    assert_eq!(writer.says("MSET key old other old"), "+OK");
    assert_eq!(writer.says("HSET {hash} field old"), ":1");
    let mut follower = served.connect(2);
    eventually("node 3 has it", || lines.map(|line| follower.says(line)) == old);
    drop(follower);
    let server = served.servers.remove(2);
    served.runtime.block_on(async {
        server.close().await;
        served.cluster.as_mut().unwrap().shutdown(3).await;
    });
    eventually("the others go on", || writer.says("MSET key new other new") == "+OK");
    assert_eq!(writer.says("HSET {hash} field new"), ":0");
    drop(writer);
    let servers = std::mem::take(&mut served.servers);
    let alone = served.runtime.block_on(async {
        for server in servers {
            server.close().await;
        }
        let cluster = served.cluster.as_mut().unwrap();
        cluster.halt(1).await;
        cluster.halt(2).await;
        let client = cluster.start(3).await.client();
        RedisServer::start(client, RedisOptions::new(([127, 0, 0, 1], 0).into())).await.unwrap()
    });
    let mut redis = Connection::new(alone.local_address());
    // It says so only when nothing can come of it any more.
    redis.stream.set_read_timeout(Some(Duration::from_secs(120))).unwrap();
    eventually("node 3 has what it had", || lines.map(|line| redis.says(line)) == old);
    for line in ["SET key newer", "MULTI"] {
        let said = redis.says(line);
        assert!(said.starts_with("-CLUSTERDOWN ") || said == "+OK" && line == "MULTI", "{line}: {said}");
    }
    assert_eq!(redis.says("GET key"), "+QUEUED");
    let said = redis.says("EXEC");
    assert!(said.starts_with("-CLUSTERDOWN ") || said.starts_with("-UNKNOWN "), "{said}");
    assert_eq!(redis.says("READWRITE"), "+OK");
    let said = redis.says("GET key");
    assert!(said.starts_with("-CLUSTERDOWN "), "{said}");
    served.servers.push(alone);
}

#[test]
fn what_is_sent_before_the_first_answer_goes_the_same_way() {
    let served = Served::new(3, PARTITIONS);
    served.while_they_lead(|leaders| what_is_sent_at_once_goes_the_same_way(&served, leaders));
}

fn what_is_sent_at_once_goes_the_same_way(served: &Served, leaders: &BTreeMap<u32, NodeId>) {
    let mut aware = served.connect(0);
    aware.ask("CLUSTER SLOTS");
    let key = key_of(leaders, NodeId(2));
    let moved = format!("-MOVED {} 127.0.0.1:{}\r\n", slot_of(key.as_bytes()), served.port(NodeId(2)));
    eventually("it is sent there", || {
        // Not for a second time within a second.
        std::thread::sleep(Duration::from_millis(1100));
        format!("{}\r\n", aware.says(&format!("GET {key}"))) == moved
    });
    std::thread::sleep(Duration::from_millis(1100));
    // The last of them come when the first are answered: a read brings less than all.
    let long = "x".repeat(40_000);
    let lines = [
        format!("DEL {key}"),
        format!("SET {key} 1"),
        format!("SET {key} {long}"),
        format!("SET {key} 2"),
        "SELECT 1".to_owned(),
        format!("GET {key}"),
    ];
    let pipeline: Vec<u8> = lines.iter().flat_map(|line| request(&words(line))).collect();
    aware.send(&pipeline);
    for command in &lines[..4] {
        assert_eq!(String::from_utf8(aware.reply()).unwrap(), moved, "{:.20}", command);
    }
    assert_eq!(aware.reply(), b"+OK\r\n");
    assert_eq!(aware.reply(), b"$-1\r\n", "other databases are no cluster");
    // What is within MULTI, or of several partitions, goes the same way, and a transaction with it is none.
    assert_eq!(aware.says("SELECT 0"), "+OK");
    std::thread::sleep(Duration::from_millis(1100));
    let other = key_of(leaders, NodeId(1));
    let lines = [
        format!("SET {key} 3"),
        format!("MSET {other} 3 {key} 4"),
        "MULTI".to_owned(),
        format!("SET {other} 4"),
        format!("SET {key} 5"),
        "EXEC".to_owned(),
        format!("SET {other} 6"),
    ];
    aware.send(&lines.iter().flat_map(|line| request(&words(line))).collect::<Vec<u8>>());
    let abort = "-EXECABORT Transaction discarded because of previous errors.\r\n";
    for expected in [&moved, &moved, "+OK\r\n", "+QUEUED\r\n", &moved, abort, "+OK\r\n"] {
        assert_eq!(String::from_utf8(aware.reply()).unwrap(), *expected);
    }
    let mut plain = served.connect(0);
    assert_eq!(plain.ask(&format!("GET {key}")), "$-1\\r\\n");
    assert_eq!(plain.ask(&format!("GET {other}")), "$1\\r\\n6\\r\\n");
}

#[test]
fn what_goes_to_the_leaders_is_never_passed_on_and_in_a_pipeline_each_is_told_its_own() {
    let served = Served::new(3, PARTITIONS);
    served.while_they_lead(|leaders| what_goes_to_the_leaders_is_never_passed_on(&served, leaders));
}

fn what_goes_to_the_leaders_is_never_passed_on(served: &Served, leaders: &BTreeMap<u32, NodeId>) {
    let ports = slots_of(&mut served.connect(0));
    let mut connections: BTreeMap<u16, Connection> =
        (0..3).map(|index| (served.port(NodeId(index as u64 + 1)), served.connect(index))).collect();
    let straight = |connections: &mut BTreeMap<u16, Connection>| {
        for number in 0..300 {
            let key = format!("{{t{number}}}:x");
            let port = ports[usize::from(slot_of(key.as_bytes()))];
            let connection = connections.get_mut(&port).unwrap();
            assert_eq!(connection.says(&format!("SET {key} {number}")), "+OK");
            assert!(connection.says(&format!("GET {key}")).ends_with(&format!("\\n{number}")));
        }
    };
    // Sessions with the partitions are opened by what comes first.
    straight(&mut connections);
    let before = served.forwarded();
    straight(&mut connections);
    // But for renewals of sessions and the like.
    let passed_on = served.forwarded() - before;
    assert!(passed_on < 10, "{passed_on} of what came to the leaders were passed on");
    // Anywhere: nothing but that changes. (Reads are not passed on: a follower asks the leader how far it is, and reads.)
    let mut plain = served.connect(0);
    for number in 0..300 {
        assert_eq!(plain.says(&format!("SET {{t{number}}}:x {number}")), "+OK");
        assert!(plain.says(&format!("GET {{t{number}}}:x")).ends_with(&format!("\\n{number}")));
    }
    assert!(served.forwarded() > before + 100);
    let mut aware = served.connect(0);
    aware.ask("CLUSTER NODES");
    let keys = [key_of(leaders, NodeId(1)), key_of(leaders, NodeId(2)), key_of(leaders, NodeId(3))];
    let mut bytes = Vec::new();
    for key in &keys {
        bytes.extend(request(&words(&format!("INCR {key}"))));
    }
    aware.send(&bytes);
    let replies: Vec<String> = keys.iter().map(|_| escaped(&aware.reply())).collect();
    assert_eq!(replies[0], ":1\\r\\n");
    for (reply, node) in replies[1..].iter().zip([2, 3]) {
        let place = format!(" 127.0.0.1:{}\\r\\n", served.port(NodeId(node)));
        assert!(reply.starts_with("-MOVED ") && reply.ends_with(&place), "{reply}");
    }
}

#[test]
fn one_is_never_sent_to_a_node_that_is_gone() {
    let mut served = Served::with(3, PARTITIONS, |options| options.redirects = Redirects::Always);
    let leaders = served.each_leads_some();
    let key = key_of(&leaders, NodeId(3));
    let mut connection = served.connect(0);
    let all = [1, 2, 3].map(|node| served.port(NodeId(node)));
    let moved = format!("-MOVED {} 127.0.0.1:{}", slot_of(key.as_bytes()), all[2]);
    // Without having asked for anything.
    eventually("it is sent there", || connection.says(&format!("INCR {key}")) == moved);
    let gone = served.servers.remove(2);
    let runtime = &served.runtime;
    runtime.block_on(gone.close());
    let told = Instant::now();
    // The node leads as before, only Redis clients do not reach it; if another leads instead, one may be sent there.
    let elsewhere = format!(" 127.0.0.1:{}", all[2]);
    let is_reached =
        |said: &str| said.starts_with(':') || said.starts_with("-MOVED ") && !said.ends_with(&elsewhere);
    eventually("it is served here", || {
        std::thread::sleep(Duration::from_millis(200));
        (0..2).all(|_| is_reached(&connection.says(&format!("INCR {key}"))))
            && told.elapsed() > Duration::from_millis(1500)
    });
    let until = Instant::now() + Duration::from_millis(1500);
    while Instant::now() < until {
        let said = connection.says(&format!("INCR {key}"));
        assert!(is_reached(&said), "{said}");
    }
    // And the map has it here, or where the leadership has gone meanwhile.
    eventually("the map does not have the node", || {
        slots_of(&mut connection)[usize::from(slot_of(key.as_bytes()))] != all[2]
    });
}

#[test]
fn what_changes_a_redis_cluster_names_what_does_that_here_and_off_is_off() {
    let served = Served::new(1, PARTITIONS);
    let mut connection = served.connect(0);
    for (asked, named) in [
        ("MEET 127.0.0.1 7000", "`dogsled serve --join`"),
        ("FORGET x", "`dogsled member remove`"),
        ("FAILOVER", "`dogsled drain`"),
        ("ADDSLOTS 1 2", "`dogsled member weight`"),
        ("REPLICATE x", "`dogsled replicas`"),
    ] {
        let said = connection.says(&format!("CLUSTER {asked}"));
        assert!(said.starts_with("-ERR CLUSTER ") && said.contains(named), "{said}");
    }
    assert_eq!(connection.says("CLUSTER NONSENSE"), "-ERR unknown subcommand 'NONSENSE'. Try CLUSTER HELP.");
    assert_eq!(
        connection.says("CLUSTER KEYSLOT"),
        "-ERR wrong number of arguments for 'cluster|keyslot' command"
    );
    assert!(connection.ask("INFO cluster").contains("cluster_enabled:1"));
    assert!(connection.ask("HELLO").contains("cluster"));
    assert_eq!(slots_of(&mut connection), vec![served.port(NodeId(1)); usize::from(SLOTS)]);
    drop(connection);
    let off = Served::with(1, PARTITIONS, |options| options.redirects = Redirects::Off);
    let mut connection = off.connect(0);
    for asked in ["CLUSTER SLOTS", "READONLY", "CLUSTER MYID", "CLUSTER FORGET x"] {
        assert_eq!(connection.says(asked), "-ERR This instance has cluster support disabled");
    }
    assert_eq!(connection.says("CLUSTER NONSENSE"), "-ERR unknown subcommand 'NONSENSE'. Try CLUSTER HELP.");
    assert!(connection.ask("INFO").contains("cluster_enabled:0"));
    assert!(connection.ask("HELLO").contains("standalone"));
    // An announced address is told as it is.
    let tunnelled =
        Served::with(1, PARTITIONS, |options| options.announce = Some("cache.example:7000".into()));
    let nodes = tunnelled.connect(0).ask("CLUSTER NODES");
    assert!(nodes.contains(" cache.example:7000@7000 myself,master"), "{nodes}");
}

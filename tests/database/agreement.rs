//! Sessions, elections and the registry of the embedded database, as an application sees them.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use dogsled::{Config, Db, Error, Instance, Owned, Pick};
use dogsled_storage::lock::{LockCommand, LockRequest};
use dogsled_storage::lock_wait::SessionEnded;
use dogsled_storage::{Command, Reply};

const LEASE: Duration = Duration::from_secs(30);

fn open() -> Db {
    Config::new().temporary(true).open().unwrap()
}

#[track_caller]
fn eventually(what: &str, done: impl Fn() -> bool) {
    let until = Instant::now() + Duration::from_secs(20);
    while !done() {
        assert!(Instant::now() < until, "never: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn what_a_session_owns_lives_while_it_does() {
    let db = open();
    // Renewed at a third of it, so that a machine may stand still for some seconds.
    let (tree, short) = (db.open_tree("workers").unwrap(), Duration::from_secs(7));
    let (session, other) = (db.session(short).unwrap(), db.session(LEASE).unwrap());
    session.insert(&tree, "a", "1").unwrap();
    session.insert(&tree, "b", "1").unwrap();
    other.insert(&tree, "b", "2").unwrap();
    assert_eq!(session.insert_next(&tree, "job-", "x").unwrap(), "job-00000000000000000000");
    assert_eq!(tree.insert_next("job-", "y").unwrap(), "job-00000000000000000001");
    let guard = db.lock("door").of_session(&session).try_acquire().unwrap().unwrap();
    let reader = db.read_lock("book").of_session(&session).acquire().unwrap();
    assert!(db.write_lock("book").try_acquire(LEASE).unwrap().is_none());
    let listed = db.sessions().unwrap();
    assert_eq!(listed.len(), 2);
    let of = |id| listed.iter().find(|status| status.id == id).unwrap();
    assert_eq!(of(other.id()).owned, [Owned::Key { tree: "workers".into(), key: "b".into() }]);
    let found = of(session.id());
    assert!(found.lease == short && found.left <= short && !found.owns_more && found.answers == 0);
    let key = |key: &str| Owned::Key { tree: "workers".into(), key: key.into() };
    let lock = |name: &str, token| Owned::Lock { name: name.into(), token };
    // Not "b", which the other has written since.
    let mut owned = vec![key("a"), key("job-00000000000000000000")];
    owned.extend([lock("door", guard.token()), lock("book", reader.token())]);
    assert!(owned.iter().all(|owned| found.owned.contains(owned)), "{found:?}");
    assert_eq!(found.owned.len(), owned.len(), "{found:?}");

    // It is renewed.
    assert!(!session.wait_until_lost_for(short * 3 / 2));
    assert_eq!(tree.len(), 4);
    guard.renew(LEASE).unwrap().unwrap();
    db.under(&guard).insert("k", "v").unwrap();
    assert!(db.session(Duration::ZERO).is_err());

    // Whoever waits has the lock when the session ends, and its guards are told.
    let waiter = std::thread::spawn({
        let db = db.clone();
        move || db.lock("door").acquire_timeout(LEASE, LEASE).unwrap().is_some()
    });
    std::thread::sleep(Duration::from_millis(50));
    let clone = session.clone();
    session.close().unwrap();
    assert!(waiter.join().unwrap());
    assert!(clone.is_lost() && guard.wait_until_lost_for(Duration::ZERO) && !guard.is_valid());
    assert!(matches!(db.under(&guard).insert("k", "v"), Err(Error::LockNotHeld { .. })));
    assert_eq!(guard.renew(LEASE).unwrap(), Err(dogsled::NotHeld));
    let left: Vec<_> = tree.iter().keys().map(Result::unwrap).collect();
    assert_eq!(left, ["b", "job-00000000000000000001"]);
    assert!(matches!(clone.insert(&tree, "c", "1"), Err(Error::Unsupported(_))));
    assert!(matches!(db.lock("door").of_session(&clone).try_acquire(), Err(Error::Unsupported(_))));
    assert!(matches!(other.insert(&open(), "c", "1"), Err(Error::Unsupported(_))), "another database's tree");
    drop(reader);
    drop(other);
    assert_eq!(tree.len(), 1);
    assert!(db.tree_names().iter().all(|name| !name.starts_with(b"__dogsled__sess")));
}

#[test]
fn a_lock_is_taken_up_only_as_what_it_lives_with() {
    let db = open();
    let (session, other) = (db.session(LEASE).unwrap(), db.session(LEASE).unwrap());
    let lock = || db.lock("door").owner("ann");
    lock().of_session(&session).acquire().unwrap().keep();
    assert!(lock().resume().unwrap().is_none(), "its guard would not hear that the session ends");
    assert!(lock().of_session(&other).resume().unwrap().is_none());
    let taken_up = lock().of_session(&session).resume().unwrap().unwrap();
    session.close().unwrap();
    assert!(!taken_up.is_valid() && taken_up.wait_until_lost_for(Duration::ZERO));

    // And one with a lease of its own is no session's.
    lock().try_acquire(LEASE).unwrap().unwrap().keep();
    assert!(lock().of_session(&other).resume().unwrap().is_none());
    assert!(lock().resume().unwrap().is_some());
}

#[test]
fn a_guard_that_was_given_back_is_not_told_that_its_session_ends() {
    let db = open();
    let session = db.session(LEASE).unwrap();
    let guard = |name: &str| db.lock(name).of_session(&session).acquire().unwrap();
    let told = Arc::new(Mutex::new(Vec::new()));
    let tell = |name: &'static str| {
        let told = Arc::clone(&told);
        move || told.lock().unwrap().push(name)
    };
    let (back, kept, held) = (guard("back"), guard("kept"), guard("held"));
    back.when_lost(tell("back"));
    kept.when_lost(tell("kept"));
    held.when_lost(tell("held"));
    back.release().unwrap().unwrap();
    kept.keep();
    session.close().unwrap();
    assert_eq!(*told.lock().unwrap(), ["held"]);
}

#[test]
fn who_waits_for_a_lock_of_a_session_hears_at_once_that_it_has_ended() {
    let db = open();
    let held = db.lock("door").acquire(LEASE).unwrap();
    // One stands at the head of the queue and has tried, the other behind it.
    let (session, other) = (db.session(LEASE).unwrap(), db.session(LEASE).unwrap());
    let wait = |session: &dogsled::Session| {
        let lock = db.lock("door").of_session(session);
        std::thread::spawn(move || {
            let error = lock.acquire().map(|_| ()).unwrap_err();
            assert!(matches!(&error, Error::Unsupported(what) if what.contains("has ended")), "{error}");
        })
    };
    let waiters = [wait(&session), wait(&session)];
    let beside = std::thread::spawn({
        let lock = db.lock("door").of_session(&other);
        move || lock.acquire().map(|guard| guard.token()).unwrap()
    });
    let waiting = || db.engine().lock_waiters().waiting();
    eventually("all three wait", || waiting() == 3);
    let asked = Instant::now();
    session.close().unwrap();
    for waiter in waiters {
        waiter.join().unwrap();
    }
    // Long before the lease of the holder or of the session.
    assert!(asked.elapsed() < LEASE / 3, "{:?}", asked.elapsed());
    assert_eq!(waiting(), 1, "the other session's waiter goes on");
    assert!(matches!(db.lock("door").of_session(&session).acquire(), Err(Error::Unsupported(_))));
    let token = held.token();
    held.release().unwrap().unwrap();
    assert!(beside.join().unwrap() > token);

    // Ended because nobody renewed it: by the thread that ends sessions.
    let held = db.lock("door").acquire(LEASE).unwrap();
    let (id, lease) = (dogsled::SessionId(7), Duration::from_millis(300));
    db.engine().open_session(id, lease.as_millis() as u64, dogsled::Durability::Buffered).unwrap();
    let waiters = db.engine().lock_waiters();
    let acquire = || {
        let (name, owner, session) = ("door".into(), "ann".into(), id);
        let request = LockRequest::exclusive(1_000);
        Command::Lock(LockCommand::AcquireOwned { name, owner, request, session, waits: false })
    };
    let ended = waiters.acquire_of_session(
        b"door",
        id,
        || Ok(db.engine().session_lease(id)?.is_some()),
        None,
        || db.engine().now_ms(),
        || match db.engine().execute(acquire(), dogsled::Durability::Buffered)? {
            Reply::Lock(reply) => Ok(reply),
            other => panic!("{other:?}"),
        },
    );
    assert_eq!(ended.unwrap(), Err(SessionEnded));
    drop(held);
}

#[test]
fn a_session_that_its_process_has_left_behind_ends_by_itself_after_reopening() {
    let directory = tempfile::tempdir().unwrap();
    let reopen = || dogsled::open(directory.path().join("db")).unwrap();
    let db = reopen();
    let (kept, left) = (db.session(LEASE).unwrap(), db.session(Duration::from_secs(4)).unwrap());
    kept.insert(&db, "kept", "1").unwrap();
    left.insert(&db, "left", "1").unwrap();
    let id = kept.id();
    kept.keep();
    left.keep();
    db.flush().unwrap();
    drop(db);

    let began = Instant::now();
    let db = reopen();
    let kept = db.resume_session(id).unwrap().expect("it lives");
    assert_eq!(db.len(), 2, "a lease begins anew when the database is opened");
    eventually("the lease is over", || db.len() == 1);
    assert!(began.elapsed() >= Duration::from_millis(3_900), "{:?}", began.elapsed());
    assert!(db.contains_key("kept").unwrap());
    kept.close().unwrap();
    assert!(db.is_empty());
    assert!(db.resume_session(id).unwrap().is_none());
}

#[test]
fn candidates_lead_one_at_a_time_with_growing_tokens() {
    let db = open();
    let (leading, spoken) = (Arc::new(AtomicU64::new(0)), Arc::new(Mutex::new(Vec::new())));
    let observer = db.election("cron").observe().unwrap();
    let threads: Vec<_> = (0..8)
        .map(|number| {
            let (db, leading, spoken) = (db.clone(), Arc::clone(&leading), Arc::clone(&spoken));
            std::thread::spawn(move || {
                for round in 0..10 {
                    let word = format!("{number}, {round}");
                    let leadership = db.election("cron").campaign(&word, LEASE).unwrap();
                    assert_eq!(leading.fetch_add(1, Ordering::SeqCst), 0, "two lead at a time");
                    assert_eq!(db.election("cron").leader().unwrap().unwrap().value, word.as_str());
                    spoken.lock().unwrap().push((leadership.guard().token(), word));
                    assert_eq!(leading.fetch_sub(1, Ordering::SeqCst), 1);
                    // Some are gone without a word.
                    if round % 3 == 0 {
                        drop(leadership);
                    } else {
                        leadership.resign().unwrap().unwrap();
                    }
                }
            })
        })
        .collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    let spoken = Arc::into_inner(spoken).unwrap().into_inner().unwrap();
    assert!(spoken.is_sorted_by(|(before, _), (after, _)| before < after));
    assert_eq!(db.election("cron").leader().unwrap(), None);
    let heard = observer.filter_map(Result::unwrap).take(spoken.len());
    let heard: Vec<_> =
        heard.map(|leader| (leader.token, String::from_utf8(leader.value.to_vec()).unwrap())).collect();
    assert_eq!(heard, spoken);

    // One that was replaced cannot speak any more.
    let slow = db.lock("cron").without_renewal().owner("slow").acquire(LEASE).unwrap();
    slow.release().unwrap().unwrap();
    let first = db.election("cron").campaign("first", LEASE).unwrap();
    assert!(db.election("cron").campaign_timeout("second", LEASE, Duration::ZERO).unwrap().is_none());
    let fence = first.guard().fence();
    first.resign().unwrap().unwrap();
    let second = db.election("cron").campaign("second", LEASE).unwrap();
    let late = db.open_tree("dogsled elections").unwrap().under(fence).insert("cron", "late");
    assert!(matches!(late, Err(Error::LockNotHeld { .. })));
    assert_eq!(db.election("cron").leader().unwrap().unwrap().value, "second");
    drop(second);
}

#[test]
fn a_resolver_picks_among_those_whose_sessions_live() {
    let db = open();
    let billing = db.registry("billing").unwrap();
    let resolver = billing.follow().unwrap();
    assert!(resolver.pick(Pick::RoundRobin).is_none());
    let sessions: Vec<_> = (0..3).map(|_| db.session(LEASE).unwrap()).collect();
    for (number, session) in sessions.iter().enumerate() {
        let tag = if number == 0 { "old" } else { "new" };
        let instance = Instance::new(number.to_string(), format!("queue {number}")).tag(tag);
        billing.register(session, &instance).unwrap();
    }
    // Of another service, whose name begins alike.
    let other = db.registry("billing 2").unwrap();
    other.register(&sessions[0], &Instance::new("9", "elsewhere")).unwrap();
    let held: Vec<_> = (0..6).map(|_| resolver.pick(Pick::LeastOutstanding).unwrap()).collect();
    for id in ["0", "1", "2"] {
        assert_eq!(held.iter().filter(|picked| picked.id == id).count(), 2);
    }
    // What it says anew does not change how many use it.
    billing.register(&sessions[1], &Instance::new("1", "moved").tag("new")).unwrap();
    drop(held.into_iter().filter(|picked| picked.id != "1").collect::<Vec<_>>());
    assert_eq!(resolver.pick_tagged(Pick::Random, "old").unwrap().id, "0");
    assert_eq!(resolver.instances()[1].address, "moved");

    sessions[0].close().unwrap();
    assert_eq!(resolver.instances().len(), 2);
    assert!(resolver.pick_tagged(Pick::RoundRobin, "old").is_none());
    assert!(other.instances().unwrap().is_empty());
    assert!(billing.deregister("1").unwrap() && !billing.deregister("1").unwrap());
    assert_eq!(resolver.pick(Pick::Key(b"k")).unwrap().id, "2");

    // So many changes that it cannot have been told of each.
    for round in 0..5_000 {
        billing.register(&sessions[2], &Instance::new("2", round.to_string())).unwrap();
    }
    assert_eq!(resolver.instances(), [Instance::new("2", "4999")]);
    assert!(matches!(db.registry("a}"), Err(Error::Unsupported(_))));
}

#[test]
fn of_all_who_ask_for_what_is_not_there_one_computes() {
    let db = open();
    let computed = Arc::new(AtomicU64::new(0));
    let threads: Vec<_> = (0..8)
        .map(|number| {
            let (db, computed) = (db.clone(), Arc::clone(&computed));
            std::thread::spawn(move || {
                db.get_or_compute("page", LEASE, LEASE, || {
                    computed.fetch_add(1, Ordering::SeqCst);
                    std::thread::sleep(Duration::from_millis(50));
                    // The first fails.
                    match computed.load(Ordering::SeqCst) {
                        1 => Err(Error::Unsupported("no ink".to_owned())),
                        _ => Ok(format!("by {number}")),
                    }
                })
            })
        })
        .collect();
    let results: Vec<_> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
    assert_eq!(computed.load(Ordering::SeqCst), 2);
    assert_eq!(results.iter().filter(|result| result.is_err()).count(), 1);
    let made = db.get("page").unwrap().unwrap();
    assert!(results.into_iter().flatten().all(|page| page == made));
    assert!(matches!(db.ttl("page").unwrap(), dogsled::Ttl::In(_)));
}

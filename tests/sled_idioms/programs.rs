// What programs do with sled 0.34, after its documentation. Compiled twice: with `sled` meaning
// sled, and with `sled` meaning dogsled. Nothing in here may tell which.

fn temporary() -> sled::Db {
    sled::Config::new().temporary(true).open().unwrap()
}

#[test]
fn the_example_of_the_front_page() -> Result<(), Box<dyn std::error::Error>> {
    let directory = tempfile::tempdir()?;
    let tree = sled::open(directory.path().join("welcome"))?;

    tree.insert("KEY1", "VAL1")?;
    assert_eq!(tree.get(&"KEY1")?, Some(sled::IVec::from("VAL1")));
    for kv in tree.range("KEY1".."KEY9") {
        let (key, value): (sled::IVec, sled::IVec) = kv?;
        assert_eq!((&*key, &value[..]), (&b"KEY1"[..], b"VAL1".as_ref()));
    }
    tree.remove(&"KEY1")?;
    let swapped = tree.compare_and_swap("KEY1", Some("VAL1"), Some("VAL2"))?;
    assert!(swapped.is_err());
    let created = tree.compare_and_swap("KEY1", None as Option<&[u8]>, Some("VAL2"));
    assert_eq!(created, Ok(Ok(())));
    tree.flush()?;
    Ok(())
}

#[test]
fn configuration() -> sled::Result<()> {
    let directory = tempfile::tempdir().unwrap();
    let config = sled::Config::default()
        .path(directory.path().join("db"))
        .cache_capacity(10_000_000)
        .mode(sled::Mode::HighThroughput)
        .flush_every_ms(Some(1000))
        .segment_size(1 << 20)
        .use_compression(false)
        .compression_factor(3)
        .print_profile_on_drop(false)
        .idgen_persist_interval(1000)
        .create_new(true);
    let db: sled::Db = config.clone().open()?;
    assert!(!db.was_recovered());
    drop(db);
    assert!(config.open().is_err(), "it exists");
    assert!(config.create_new(false).open()?.was_recovered());
    Ok(())
}

#[test]
fn trees() -> sled::Result<()> {
    let db = temporary();
    assert_eq!(db.tree_names(), vec![sled::IVec::from("__sled__default")]);
    let tree: sled::Tree = db.open_tree(b"my tree")?;
    let same = db.open_tree("my tree".to_string())?;
    tree.insert(b"yo!", b"v1".to_vec())?;
    assert_eq!(same.get(b"yo!"), Ok(Some(sled::IVec::from(b"v1"))));
    assert_eq!(tree.name(), b"my tree");
    assert_eq!(db.name(), b"__sled__default");
    assert!(db.contains_key("yo!").map(|found| !found)?);

    assert!(db.drop_tree("my tree")?);
    assert!(!db.drop_tree("my tree")?);
    match db.drop_tree("__sled__default") {
        Err(sled::Error::Unsupported(reason)) => assert!(!reason.is_empty()),
        other => panic!("{:?}", other),
    }
    match tree.get("yo!") {
        Err(sled::Error::CollectionNotFound(name)) => assert_eq!(name, b"my tree"),
        other => panic!("{:?}", other),
    }
    Ok(())
}

#[test]
fn keys_and_values_of_many_types() -> sled::Result<()> {
    let db = temporary();
    db.insert(1u32.to_be_bytes(), vec![1, 2, 3])?;
    db.insert(String::from("owned"), "str")?;
    db.insert(&[1, 2, 3], &[4, 5, 6])?;
    db.insert(vec![9], sled::IVec::from(vec![8]))?;
    db.insert(&sled::IVec::from("ivec"), b"array")?;
    let boxed: Box<[u8]> = vec![1].into_boxed_slice();
    db.insert("boxed", boxed)?;
    assert_eq!(db.len(), 6);
    let value: Vec<u8> = db.get([1, 2, 3])?.unwrap().to_vec();
    assert_eq!(value, [4, 5, 6]);
    let mut value = db.get("owned")?.unwrap();
    value[0] = b'S';
    assert_eq!(std::str::from_utf8(&value).unwrap(), "Str");
    assert_eq!(db.get("owned")?.unwrap(), b"str");
    assert_eq!(db.get("owned")?.unwrap().subslice(1, 2), b"tr");
    assert_eq!(db.get("owned")?.as_ref().map(|value| value.len()), Some(3));
    Ok(())
}

#[test]
#[allow(deprecated)]
fn methods_of_old() -> sled::Result<()> {
    let db = temporary();
    db.set("k", "v")?;
    assert_eq!(db.del("k")?.unwrap(), b"v");
    assert!(db.is_empty());
    Ok(())
}

#[test]
fn compare_and_swap_in_all_forms() -> sled::Result<()> {
    let tree = temporary();
    // Unique creation.
    assert_eq!(tree.compare_and_swap(&[1], None as Option<&[u8]>, Some(&[10])), Ok(Ok(())));
    // Conditional modification.
    assert_eq!(tree.compare_and_swap(&[1], Some(&[10]), Some(&[20])), Ok(Ok(())));
    // Failed conditional modification, that also tells the current value.
    let refused: Result<(), sled::CompareAndSwapError> =
        tree.compare_and_swap(&[1], Some(&[30]), Some(&[40]))?;
    let refused = refused.unwrap_err();
    assert_eq!(refused.current, Some(sled::IVec::from(&[20])));
    assert_eq!(refused.proposed, Some(sled::IVec::from(&[40])));
    // Conditional deletion.
    assert_eq!(tree.compare_and_swap(&[1], Some(&[20]), None as Option<&[u8]>), Ok(Ok(())));
    assert_eq!(tree.get(&[1]), Ok(None));
    tree.insert("k", "v")?;
    assert!(tree.compare_and_swap::<_, _, &[u8]>("k", Some("v"), None)?.is_ok());
    Ok(())
}

fn u64_to_ivec(number: u64) -> sled::IVec {
    sled::IVec::from(number.to_be_bytes().to_vec())
}

fn increment(old: Option<&[u8]>) -> Option<Vec<u8>> {
    let number = match old {
        Some(bytes) => {
            let array: [u8; 8] = bytes.try_into().unwrap();
            u64::from_be_bytes(array) + 1
        }
        None => 0,
    };
    Some(number.to_be_bytes().to_vec())
}

#[test]
fn updates_and_merges() -> sled::Result<()> {
    let tree = temporary();
    assert_eq!(tree.update_and_fetch("k", increment), Ok(Some(u64_to_ivec(0))));
    assert_eq!(tree.update_and_fetch("k", increment), Ok(Some(u64_to_ivec(1))));
    assert_eq!(tree.fetch_and_update("k", increment), Ok(Some(u64_to_ivec(1))));

    match tree.merge("m", [1]) {
        Err(sled::Error::Unsupported(_)) => {}
        other => panic!("{:?}", other),
    }
    fn concatenate(_key: &[u8], old: Option<&[u8]>, merged: &[u8]) -> Option<Vec<u8>> {
        let mut ret = old.map(|ov| ov.to_vec()).unwrap_or_default();
        ret.extend_from_slice(merged);
        Some(ret)
    }
    tree.set_merge_operator(concatenate);
    tree.insert("m", vec![0])?;
    tree.merge("m", vec![1])?;
    assert_eq!(tree.merge("m", vec![2]), Ok(Some(sled::IVec::from(vec![0, 1, 2]))));
    tree.remove("m")?;
    tree.merge("m", [4])?;
    assert_eq!(tree.get("m"), Ok(Some(sled::IVec::from(vec![4]))));
    tree.set_merge_operator(|_key: &[u8], _old: Option<&[u8]>, _new: &[u8]| None::<Vec<u8>>);
    assert_eq!(tree.merge("m", [5]), Ok(None));
    Ok(())
}

#[test]
fn order() -> sled::Result<()> {
    let db = temporary();
    for number in 0..10u8 {
        db.insert([number], vec![number; 3])?;
    }
    let expected: Vec<u8> = (2..=7).collect();
    let forward: Vec<u8> = db.range([2u8]..=[7u8]).keys().map(|key| key.unwrap()[0]).collect();
    assert_eq!(forward, expected);
    let backward: Vec<u8> = db.range([2u8]..[8u8]).rev().map(|kv| kv.unwrap().0[0]).collect();
    assert_eq!(backward, expected.iter().rev().copied().collect::<Vec<_>>());
    assert_eq!(db.range::<&[u8], _>(..).count(), 10);
    assert_eq!(db.range(vec![5u8]..).values().next().unwrap()?, vec![5; 3]);
    assert_eq!(db.first()?.unwrap().0, [0]);
    assert_eq!(db.last()?.unwrap().0, [9]);
    assert_eq!(db.get_lt([5])?.unwrap().0, [4]);
    assert_eq!(db.get_gt([5])?.unwrap().0, [6]);
    assert_eq!(db.get_lt([0]), Ok(None));
    assert_eq!(db.get_gt([9]), Ok(None));
    assert_eq!(db.pop_min()?.unwrap().0, [0]);
    assert_eq!(db.pop_max()?.unwrap(), (sled::IVec::from(&[9]), sled::IVec::from(vec![9; 3])));

    let mut both = db.iter();
    let mut seen = vec![];
    while let (Some(front), Some(back)) = (both.next(), both.next_back()) {
        seen.push((front?.0[0], back?.0[0]));
    }
    assert_eq!(seen, [(1, 8), (2, 7), (3, 6), (4, 5)]);

    db.clear()?;
    assert!(db.is_empty());
    for key in [&b"a"[..], b"ab", b"ab\xff", b"ab\xff\xff", b"ac", b"\xff", b"\xff\xff"] {
        db.insert(key, key)?;
    }
    assert_eq!(db.scan_prefix("ab").count(), 3);
    assert_eq!(db.scan_prefix(b"ab\xff").count(), 2);
    assert_eq!(db.scan_prefix([0xff]).count(), 2);
    assert_eq!(db.scan_prefix("").count(), 7);
    let mut count = 0;
    for kv in &*db {
        let _: (sled::IVec, sled::IVec) = kv?;
        count += 1;
    }
    assert_eq!(count, 7);
    Ok(())
}

#[test]
fn iterators_travel() {
    fn is_static_send_sync<T: Send + Sync + 'static>(value: T) -> T {
        value
    }
    let db = temporary();
    db.insert("k", "v").unwrap();
    let iter: sled::Iter = is_static_send_sync(db.iter());
    let tree: sled::Tree = is_static_send_sync(db.open_tree("t").unwrap());
    drop((db, tree));
    let count = std::thread::spawn(move || iter.count()).join().unwrap();
    assert_eq!(count, 1);
}

#[test]
fn batches() -> sled::Result<()> {
    let db = temporary();
    db.insert("key_0", "val_0")?;
    let mut batch = sled::Batch::default();
    batch.insert("key_a", "val_a");
    batch.insert("key_b", vec![1]);
    batch.insert(&[1, 2][..], "val_c");
    batch.remove("key_0");
    db.apply_batch(batch.clone())?;
    assert_eq!(db.len(), 3);
    assert_eq!(db.get("key_0")?, None);
    Ok(())
}

#[test]
#[allow(unreachable_patterns)]
fn subscribers() -> sled::Result<()> {
    let tree = temporary();
    let mut subscriber: sled::Subscriber = tree.watch_prefix(vec![]);
    let writer = {
        let tree = tree.clone();
        std::thread::spawn(move || {
            tree.insert(vec![0], vec![1])?;
            tree.remove([0])
        })
    };
    for event in subscriber.by_ref().take(2) {
        match &event {
            sled::Event::Insert { key, value } => assert_eq!((key.as_ref(), value.as_ref()), (&[0][..], &[1][..])),
            sled::Event::Remove { key } => assert_eq!(key.as_ref(), &[0]),
            _ => unreachable!(),
        }
        assert_eq!(event.key().as_ref(), &[0]);
    }
    writer.join().unwrap()?;
    let timeout = subscriber.next_timeout(std::time::Duration::from_millis(1));
    assert_eq!(timeout, Err(std::sync::mpsc::RecvTimeoutError::Timeout));

    tree.insert("later", "v")?;
    let event: Option<sled::Event> = block_on(&mut subscriber);
    assert_eq!(event.unwrap().key(), &sled::IVec::from("later"));
    drop(tree);
    assert_eq!(subscriber.next(), None);
    Ok(())
}

#[test]
fn flushing() -> sled::Result<()> {
    let db = temporary();
    db.insert("k", "v")?;
    let _: usize = db.flush()?;
    async fn save(tree: &sled::Tree) -> sled::Result<usize> {
        tree.insert("k2", "v")?;
        tree.flush_async().await
    }
    let _: usize = block_on(save(&db))?;
    assert!(db.size_on_disk()? > 0);
    Ok(())
}

#[test]
fn transactions() -> sled::transaction::TransactionResult<()> {
    use sled::transaction::Transactional;
    let db = temporary();
    db.transaction(|db| {
        db.insert(b"k1", b"cats")?;
        db.insert(b"k2", b"dogs")?;
        Ok(())
    })?;
    db.transaction(|db| {
        let v1 = db.remove(b"k1")?.unwrap();
        let v2 = db.remove(b"k2")?.unwrap();
        db.insert(b"k1", v2)?;
        db.insert(b"k2", v1)?;
        Ok(())
    })?;
    assert_eq!(&db.get(b"k1")?.unwrap(), b"dogs");

    let unprocessed = db.open_tree(b"unprocessed items")?;
    let processed = db.open_tree(b"processed items")?;
    unprocessed.insert(b"k3", b"ligers")?;
    (&unprocessed, &processed).transaction(|(unprocessed, processed)| {
        let item = unprocessed.remove(b"k3")?.unwrap();
        let mut processed_item = b"yappin' ".to_vec();
        processed_item.extend_from_slice(&item);
        processed.insert(b"k3", processed_item)?;
        Ok(())
    })?;
    assert_eq!(unprocessed.get(b"k3")?, None);
    assert_eq!(&processed.get(b"k3")?.unwrap(), b"yappin' ligers");

    let trees = vec![unprocessed.clone(), processed.clone()];
    trees.transaction(|trees| {
        for tree in trees {
            tree.insert("all", "of them")?;
        }
        Ok(())
    })?;
    let references: &[&sled::Tree] = &[&unprocessed, &processed];
    let found = references.transaction(|trees| Ok(trees[1].get("all")?))?;
    assert_eq!(found.unwrap(), b"of them");
    let mut batch = sled::Batch::default();
    batch.insert("b", "v");
    batch.remove("k1");
    let id = db.transaction(|db| {
        db.apply_batch(&batch)?;
        db.flush();
        Ok(db.generate_id()?)
    })?;
    assert!(db.generate_id()? > id);
    Ok(())
}

#[derive(Debug, PartialEq)]
struct MyBullshitError;

impl std::fmt::Display for MyBullshitError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("my error")
    }
}

impl std::error::Error for MyBullshitError {}

#[test]
fn transactions_with_errors_of_ones_own() -> sled::Result<()> {
    use sled::transaction::{
        ConflictableTransactionError, ConflictableTransactionResult, TransactionError, TransactionResult,
        TransactionalTree, UnabortableTransactionError, abort,
    };
    let db = temporary();
    let refuse = |tx: &TransactionalTree| -> ConflictableTransactionResult<(), MyBullshitError> {
        tx.insert("k1", "cats")?;
        tx.insert("k2", "dogs")?;
        Err(ConflictableTransactionError::Abort(MyBullshitError))
    };
    assert_eq!(db.transaction(refuse), Err(TransactionError::Abort(MyBullshitError)));
    assert_eq!(db.get("k1"), Ok(None));

    let result: TransactionResult<u32, String> = db.transaction(|tx| {
        let old: Result<Option<sled::IVec>, UnabortableTransactionError> = tx.insert("k", "v");
        if old?.is_some() {
            return abort("there already".to_string());
        }
        Ok(7)
    });
    assert_eq!(result, Ok(7));

    // With types that cannot be inferred, by turbofish.
    let result = db.transaction::<_, _, MyBullshitError>(|tx| {
        tx.remove("k")?;
        Ok(())
    });
    assert_eq!(result, Ok(()));
    let result = sled::Transactional::<sled::Error>::transaction(&*db, |tx| Ok(tx.get("k")?));
    match result {
        Ok(found) => assert_eq!(found, None),
        Err(TransactionError::Abort(error)) | Err(TransactionError::Storage(error)) => return Err(error),
    }
    let nothing: TransactionResult<()> = db.transaction(|_| Ok(()));
    nothing.unwrap();
    Ok(())
}

#[test]
fn errors() {
    let error = sled::Error::Io(std::io::Error::new(std::io::ErrorKind::Other, "oh no"));
    let description = match error.clone() {
        sled::Error::CollectionNotFound(name) => format!("{:?}", name),
        sled::Error::Unsupported(reason) => reason,
        sled::Error::ReportableBug(what) => what,
        sled::Error::Io(error) => error.to_string(),
        sled::Error::Corruption { .. } => "corrupt".to_string(),
        #[allow(unreachable_patterns)]
        _ => unreachable!(),
    };
    assert!(description.contains("oh no"));
    assert_ne!(error, error.clone());
    assert_eq!(sled::Error::Unsupported("x".into()), sled::Error::Unsupported("x".into()));
    let io: std::io::Error = error.into();
    assert_eq!(io.kind(), std::io::ErrorKind::Other);
    let _: Box<dyn std::error::Error + Send + Sync> = sled::Error::from(io).into();
}

#[test]
fn export_and_import() -> sled::Result<()> {
    let (old, new) = (temporary(), temporary());
    old.insert("k", "v")?;
    old.open_tree("t")?.insert("tk", "tv")?;
    let export: Vec<(Vec<u8>, Vec<u8>, _)> = old.export();
    assert_eq!(export.len(), 2);
    new.import(export);
    assert_eq!(old.checksum()?, new.checksum()?);
    assert_eq!(old.open_tree("t")?.checksum()?, new.open_tree("t")?.checksum()?);
    assert!(!format!("{:?}", new).is_empty());
    new.verify_integrity()?;
    Ok(())
}

#[test]
fn a_struct_that_holds_it_all() -> sled::Result<()> {
    #[derive(Clone)]
    struct Store {
        db: sled::Db,
        users: sled::Tree,
    }
    impl Store {
        fn add(&self, name: &str) -> sled::Result<u64> {
            let id = self.db.generate_id()?;
            self.users.insert(id.to_be_bytes(), name)?;
            Ok(id)
        }
    }
    let db = temporary();
    let store = Store { users: db.open_tree("users")?, db };
    let threads: Vec<_> = (0..4)
        .map(|_| {
            let store = store.clone();
            std::thread::spawn(move || (0..100).map(|_| store.add("somebody").unwrap()).collect::<Vec<_>>())
        })
        .collect();
    let mut ids: Vec<u64> = threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), 400);
    assert_eq!(store.users.len(), 400);
    Ok(())
}

//! [`Registry`]: which instances of a service there are, and which of them to ask.
//!
//! An instance is a key that dies with its session: it is there as long as the instance renews its lease, and who
//! follows the keys hears when it comes and when it is gone. All instances of a service are of one partition, so
//! they are followed by one stream, in order.
//!
//! ```text
//! register ─► ephemeral key {service}/id ─► event ─► Resolver's list ─► pick
//! the session ends ─► the key is removed ──► event ─┘
//! ```
//!
//! A resolver answers from its own list and asks nobody. The list is what the partition's log says, a little
//! later: milliseconds, or as long as it takes to find another node if the one that was followed is gone. An
//! instance that dies stays in the list until its session's lease has ended. So whoever picks one must be prepared
//! that it does not answer, and pick another.
//!
//! # Layout
//!
//! In the tree `dogsled services`, key: the service's name in braces, `/`, the instance's id; value:
//!
//! ```text
//! version u8 (1), address: length u32, UTF-8; tags u32, each: length u32, UTF-8      (little-endian)
//! ```

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::task::AbortHandle;

use super::{Client, Error, Event, Result, Session, Subscriber, Tree};
use crate::IVec;

const TREE: &str = "dogsled services";
const VERSION: u8 = 1;

/// One that a service can be had from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instance {
    /// What tells it from the others of its service.
    pub id: String,
    /// Where to reach it.
    pub address: String,
    /// What it says of itself: a zone, a version, a role.
    pub tags: Vec<String>,
}

impl Instance {
    /// Without tags.
    pub fn new(id: impl Into<String>, address: impl Into<String>) -> Instance {
        Instance { id: id.into(), address: address.into(), tags: Vec::new() }
    }

    /// With one tag more.
    #[must_use]
    pub fn tag(mut self, tag: impl Into<String>) -> Instance {
        self.tags.push(tag.into());
        self
    }

    /// Whether it has this tag.
    pub fn has_tag(&self, tag: &str) -> bool {
        self.tags.iter().any(|own| own == tag)
    }

    fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![VERSION];
        let mut put = |text: &str| {
            bytes.extend_from_slice(&(text.len() as u32).to_le_bytes());
            bytes.extend_from_slice(text.as_bytes());
        };
        put(&self.address);
        // As long as a text's length.
        let count = (self.tags.len() as u32).to_le_bytes();
        let mut tags = Vec::new();
        for tag in &self.tags {
            tags.extend_from_slice(&(tag.len() as u32).to_le_bytes());
            tags.extend_from_slice(tag.as_bytes());
        }
        bytes.extend_from_slice(&count);
        bytes.extend_from_slice(&tags);
        bytes
    }

    fn decode(id: &[u8], bytes: &[u8]) -> Option<Instance> {
        let (&VERSION, mut rest) = bytes.split_first()? else { return None };
        let id = String::from_utf8(id.to_vec()).ok()?;
        let address = take_text(&mut rest)?;
        // Not allocated for: it is a claim.
        let count = take_number(&mut rest)?;
        let mut tags = Vec::new();
        for _ in 0..count {
            tags.push(take_text(&mut rest)?);
        }
        rest.is_empty().then_some(Instance { id, address, tags })
    }
}

fn take_number(rest: &mut &[u8]) -> Option<u32> {
    let (number, after) = rest.split_first_chunk()?;
    *rest = after;
    Some(u32::from_le_bytes(*number))
}

fn take_text(rest: &mut &[u8]) -> Option<String> {
    let length = take_number(rest)? as usize;
    let (text, after) = rest.split_at_checked(length)?;
    *rest = after;
    String::from_utf8(text.to_vec()).ok()
}

/// The instances of one service; made by [`Client::registry`].
///
/// ```no_run
/// # async fn serve(client: dogsled::cluster::Client) -> dogsled::cluster::Result<()> {
/// use dogsled::cluster::{Instance, Pick};
/// use std::time::Duration;
///
/// // The instance: there as long as its session.
/// let session = client.session(Duration::from_secs(10));
/// let billing = client.registry("billing")?;
/// billing.register(&session, &Instance::new("7", "10.0.0.7:80").tag("zone=east")).await?;
///
/// // Who wants it.
/// let resolver = client.registry("billing")?.follow().await?;
/// match resolver.pick(Pick::LeastOutstanding) {
///     Some(instance) => println!("ask {}", instance.address), // counted until it is dropped
///     None => println!("there is none"),
/// }
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct Registry {
    client: Client,
    prefix: String,
}

impl Client {
    /// The instances of a service.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a name that is empty or has a brace in it.
    pub fn registry(&self, service: &str) -> Result<Registry> {
        if service.is_empty() || service.contains(['{', '}']) {
            return Err(Error::Invalid(format!("a service cannot be called \"{service}\"")));
        }
        Ok(Registry { client: self.clone(), prefix: format!("{{{service}}}/") })
    }
}

impl Registry {
    fn tree(&self) -> Tree {
        self.client.tree(TREE)
    }

    fn key(&self, id: &str) -> String {
        format!("{}{id}", self.prefix)
    }

    /// Makes an instance known for as long as a session lives, or what it says anew, if the id is known.
    ///
    /// # Errors
    /// As [`Session::insert`].
    pub async fn register(&self, session: &Session, instance: &Instance) -> Result<()> {
        session.insert(&self.tree(), self.key(&instance.id), instance.encode()).await.map(drop)
    }

    /// Takes an instance out, before its session ends; whether it was there.
    ///
    /// # Errors
    /// Those of [writing](super#writes).
    pub async fn deregister(&self, id: &str) -> Result<bool> {
        Ok(self.tree().remove(self.key(id)).await?.is_some())
    }

    /// Those that are known now, in the order of their ids.
    ///
    /// # Errors
    /// Those of [reading](super#reads).
    pub async fn instances(&self) -> Result<Vec<Instance>> {
        let all = self.tree().scan_prefix(&self.prefix).into_vec().await?;
        Ok(all.iter().filter_map(|(key, value)| self.read(key, value)).collect())
    }

    /// What this version does not understand is not there.
    fn read(&self, key: &[u8], value: &[u8]) -> Option<Instance> {
        Instance::decode(key.strip_prefix(self.prefix.as_bytes())?, value)
    }

    /// Begins to follow which there are, and returns when it is known.
    ///
    /// # Errors
    /// Those of [reading](super#reads).
    pub async fn follow(&self) -> Result<Resolver> {
        let mut list = List { registry: self.clone(), instances: BTreeMap::new() };
        let changes = self.tree().watch_prefix(&self.prefix).await?;
        list.read().await?;
        let shared = Arc::new(Shared {
            instances: watch::Sender::new(list.all()),
            turn: AtomicUsize::new(self.client.core().next_turn()),
            random: Mutex::new(self.client.core().next_random()),
        });
        let task = self.client.runtime().spawn(list.follow(changes, Arc::clone(&shared))).abort_handle();
        Ok(Resolver { shared, task })
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registry").field("prefix", &self.prefix).finish_non_exhaustive()
    }
}

/// Which of the instances to ask.
#[derive(Clone, Copy, Debug)]
pub enum Pick<'a> {
    /// One after the other.
    RoundRobin,
    /// Any.
    Random,
    /// The one of which the fewest are in use through this resolver: [`Picked`] counts.
    LeastOutstanding,
    /// The same for the same key, as long as it is there: when an instance comes or goes, only its own share of
    /// the keys moves. All resolvers agree.
    Key(&'a [u8]),
}

/// An instance, and how many use it.
#[derive(Clone)]
struct Known {
    instance: Arc<Instance>,
    outstanding: Arc<AtomicUsize>,
}

type Instances = Arc<Vec<Known>>;

struct Shared {
    instances: watch::Sender<Instances>,
    turn: AtomicUsize,
    random: Mutex<u64>,
}

/// Knows the instances of a service, and picks among them; made by [`Registry::follow`].
///
/// It answers from its own list and asks nobody. The list is what the cluster says, a little later: milliseconds, or as
/// long as it takes to find another node if the one that was followed is gone. An instance that dies stays in the
/// list until its session's lease has ended, so be prepared that one does not answer, and pick another. When the
/// client is closed, it keeps what it knew.
pub struct Resolver {
    shared: Arc<Shared>,
    task: AbortHandle,
}

/// An instance that is in use until this is dropped; from [`Resolver::pick`].
#[derive(Debug)]
pub struct Picked {
    instance: Arc<Instance>,
    outstanding: Arc<AtomicUsize>,
}

impl Deref for Picked {
    type Target = Instance;

    fn deref(&self) -> &Instance {
        &self.instance
    }
}

impl Drop for Picked {
    fn drop(&mut self) {
        self.outstanding.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Resolver {
    /// One of the instances; `None`: there are none.
    pub fn pick(&self, how: Pick<'_>) -> Option<Picked> {
        self.pick_where(how, |_| true)
    }

    /// One of the instances that have this tag.
    pub fn pick_tagged(&self, how: Pick<'_>, tag: &str) -> Option<Picked> {
        self.pick_where(how, |instance| instance.has_tag(tag))
    }

    /// One of the instances that are such.
    pub fn pick_where(&self, how: Pick<'_>, is_fit: impl Fn(&Instance) -> bool) -> Option<Picked> {
        let instances = self.shared.instances.borrow().clone();
        let fit: Vec<&Known> = instances.iter().filter(|known| is_fit(&known.instance)).collect();
        if fit.is_empty() {
            return None;
        }
        let turn = || self.shared.turn.fetch_add(1, Ordering::Relaxed);
        let picked = match how {
            Pick::RoundRobin => fit[turn() % fit.len()],
            Pick::Random => fit[(self.random() % fit.len() as u64) as usize],
            Pick::LeastOutstanding => {
                // Those with equally few take turns.
                let first = turn();
                let in_turn = (0..fit.len()).map(|i| fit[first.wrapping_add(i) % fit.len()]);
                in_turn.min_by_key(|known| known.outstanding.load(Ordering::Relaxed))?
            }
            Pick::Key(key) => fit.into_iter().max_by_key(|known| score(&known.instance.id, key))?,
        };
        picked.outstanding.fetch_add(1, Ordering::Relaxed);
        Some(Picked { instance: Arc::clone(&picked.instance), outstanding: Arc::clone(&picked.outstanding) })
    }

    fn random(&self) -> u64 {
        let mut state = self.shared.random.lock();
        *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(*state)
    }

    /// Those that are known, in the order of their ids.
    pub fn instances(&self) -> Vec<Instance> {
        self.shared.instances.borrow().iter().map(|known| Instance::clone(&known.instance)).collect()
    }

    /// Tells whenever there are others than now.
    pub fn changes(&self) -> InstanceChanges {
        InstanceChanges { instances: self.shared.instances.subscribe() }
    }
}

/// Tells when the instances of a service change; made by [`Resolver::changes`].
#[derive(Debug)]
pub struct InstanceChanges {
    instances: watch::Receiver<Instances>,
}

impl InstanceChanges {
    /// The instances, once they are others than this has told last; `None`: nobody follows them any more.
    pub async fn next(&mut self) -> Option<Vec<Instance>> {
        self.instances.changed().await.ok()?;
        let known = self.instances.borrow_and_update();
        Some(known.iter().map(|known| Instance::clone(&known.instance)).collect())
    }
}

impl fmt::Debug for Known {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.instance.fmt(f)
    }
}

impl Drop for Resolver {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl fmt::Debug for Resolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Resolver")
            .field("instances", &*self.shared.instances.borrow())
            .finish_non_exhaustive()
    }
}

/// The key goes to the instance with the highest score of all: rendezvous hashing (Thaler and Ravishankar,
/// 1998). It needs no ring and no table, and every instance gets its share of a lost one's keys.
fn score(id: &str, key: &[u8]) -> u64 {
    // FNV-1a, with the length between the two, so that no two pairs are one text; then mixed, because the highest
    // bits decide.
    let mut hash = 0xcbf2_9ce4_8422_2325u64;
    for byte in (id.len() as u64).to_le_bytes().iter().chain(id.as_bytes()).chain(key) {
        hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    }
    mix(hash)
}

/// splitmix64's.
fn mix(x: u64) -> u64 {
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// The list that a resolver picks from, and how it is kept.
struct List {
    registry: Registry,
    /// By their keys.
    instances: BTreeMap<IVec, Known>,
}

impl List {
    fn all(&self) -> Instances {
        Arc::new(self.instances.values().cloned().collect())
    }

    /// Whoever is known already stays in use by as many.
    fn put(&mut self, key: IVec, value: &[u8]) {
        match self.registry.read(&key, value) {
            Some(instance) => {
                let outstanding = self.instances.get(&key).map(|known| Arc::clone(&known.outstanding));
                let known =
                    Known { instance: Arc::new(instance), outstanding: outstanding.unwrap_or_default() };
                self.instances.insert(key, known);
            }
            None => drop(self.instances.remove(&key)),
        }
    }

    async fn read(&mut self) -> Result<()> {
        let all = self.registry.tree().scan_prefix(&self.registry.prefix).into_vec().await?;
        self.instances.retain(|known, _| all.iter().any(|(key, _)| key == known));
        for (key, value) in all {
            self.put(key, &value);
        }
        Ok(())
    }

    async fn follow(mut self, mut changes: Subscriber, shared: Arc<Shared>) {
        while let Some(event) = changes.next().await {
            match event {
                Ok(Event::Insert { key, value }) => self.put(key, &value),
                Ok(Event::Remove { key }) => drop(self.instances.remove(&key)),
                Ok(Event::Clear { .. }) => self.instances.clear(),
                // What is true now can be read; if it cannot, later.
                Ok(Event::Lost { .. }) => {
                    let mut attempt = 0;
                    while let Err(error) = self.read().await {
                        if error == Error::Closed {
                            return;
                        }
                        self.registry.client.core().before_next_attempt(attempt).await;
                        attempt += 1;
                    }
                }
                Err(_) => return,
            }
            shared.instances.send_if_modified(|instances| {
                let all = self.all();
                let same = instances.len() == all.len()
                    && instances.iter().zip(&*all).all(|(a, b)| a.instance == b.instance);
                *instances = all;
                !same
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instance_keeps_its_bytes() {
        let instance = Instance::new("7", "a:1").tag("east").tag("");
        let bytes = instance.encode();
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, concat!("01", "03000000613a31", "02000000", "0400000065617374", "00000000"));
        assert_eq!(Instance::decode(b"7", &bytes), Some(instance));
        for cut in 0..bytes.len() {
            assert_eq!(Instance::decode(b"7", &bytes[..cut]), None, "cut at {cut}");
        }
        assert_eq!(Instance::decode(b"7", &[&bytes[..], b"x"].concat()), None);
        assert_eq!(Instance::decode(b"\xff", &bytes), None);
        // A count that is a lie.
        assert_eq!(Instance::decode(b"7", &[1, 0, 0, 0, 0, 255, 255, 255, 255]), None);
    }

    fn resolver(ids: impl IntoIterator<Item = u32>) -> Resolver {
        let known = ids.into_iter().map(|id| Known {
            instance: Arc::new(Instance::new(id.to_string(), "").tag(if id % 2 == 0 {
                "even"
            } else {
                "odd"
            })),
            outstanding: Arc::default(),
        });
        let instances = watch::Sender::new(Arc::new(known.collect()));
        let shared = Arc::new(Shared { instances, turn: AtomicUsize::new(0), random: Mutex::new(1) });
        let task = tokio::spawn(std::future::pending::<()>()).abort_handle();
        Resolver { shared, task }
    }

    fn counts(
        resolver: &Resolver,
        how: impl Fn(u32) -> Vec<u8>,
        pick: fn(&[u8]) -> Pick<'_>,
    ) -> BTreeMap<String, u32> {
        let mut counts = BTreeMap::new();
        for i in 0..10_000 {
            let picked = resolver.pick(pick(&how(i))).unwrap();
            *counts.entry(picked.id.clone()).or_default() += 1;
        }
        counts
    }

    #[tokio::test]
    async fn each_way_of_picking_spreads_over_all() {
        let resolver = resolver(0..10);
        let key = |i: u32| i.to_le_bytes().to_vec();
        assert!(counts(&resolver, key, |_| Pick::RoundRobin).values().all(|count| *count == 1_000));
        for pick in [(|_| Pick::Random) as fn(&[u8]) -> Pick<'_>, |key| Pick::Key(key)] {
            let counts = counts(&resolver, key, pick);
            assert_eq!(counts.len(), 10);
            assert!(counts.values().all(|count| (800..1_200).contains(count)), "{counts:?}");
        }
        assert_eq!(resolver.pick_tagged(Pick::Random, "even").map(|it| it.has_tag("odd")), Some(false));
        assert!(resolver.pick_tagged(Pick::RoundRobin, "neither").is_none());
        assert!(self::resolver(0..0).pick(Pick::Key(b"k")).is_none());
    }

    #[tokio::test]
    async fn the_one_with_the_fewest_in_use_is_picked() {
        let resolver = resolver(0..3);
        let pick = || resolver.pick(Pick::LeastOutstanding).unwrap();
        let held: Vec<Picked> = (0..9).map(|_| pick()).collect();
        let of = |id: &str| held.iter().filter(|picked| picked.id == id).count();
        assert_eq!((of("0"), of("1"), of("2")), (3, 3, 3));
        let (first, rest): (Vec<_>, Vec<_>) = held.into_iter().partition(|picked| picked.id == "1");
        drop(first);
        let again: Vec<Picked> = (0..3).map(|_| pick()).collect();
        assert!(again.iter().all(|picked| picked.id == "1"), "{again:?}");
        drop(rest);
    }

    #[tokio::test]
    async fn when_an_instance_goes_only_its_own_keys_move() {
        let (before, after) = (resolver(0..10), resolver((0..10).filter(|id| *id != 4)));
        let mut moved = 0;
        for i in 0..10_000u32 {
            let key = i.to_le_bytes();
            let (was, is) = (before.pick(Pick::Key(&key)).unwrap(), after.pick(Pick::Key(&key)).unwrap());
            if was.id == "4" {
                moved += 1;
            } else {
                assert_eq!(was.id, is.id, "key {i}");
            }
        }
        assert!((800..1_200).contains(&moved), "{moved}");
        assert_eq!(score("billing", b"k"), 7_300_537_773_650_108_810, "all versions agree");
    }
}

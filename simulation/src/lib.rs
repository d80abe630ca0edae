//! Whole clusters in one process, from one seed.
//!
//! The nodes are the real ones, with their Raft, WAL and B-trees. Below and around them everything
//! is simulated, and misbehaves on purpose:
//!
//! ```text
//! run ──────── one life: make a cluster, work and faults, then peace; the verdict
//!   ├─ cluster ─── machines: a disk, a clock, a process with a node
//!   │    ├─ network    delay, loss, doubling, cuts: `Transport`, promising what it must and no more
//!   │    ├─ clock      skews, drift, jumps
//!   │    └─ (the disk is dogsled-storage's: lost and torn writes, errors, no room)
//!   ├─ workload ── clients, who write down what they asked for and heard: history
//!   │    └─ transactions  over partitions, and who leaves them half done; judged by serializability, and registers
//!   ├─ watchers ── clients who follow keys, and whether they were told all
//!   ├─ holders ─── clients who take locks and wait for them
//!   │    └─ locks    whether these excluded each other, and who came first was first
//!   ├─ owners ──── clients who own what ends by itself, and whether it did, in time and not before
//!   ├─ faults ──── what is done to the cluster, and when
//!   │    ├─ figure8    a schedule that chance does not find
//!   │    └─ members    who joins, who leaves, who has lost a disk
//!   ├─ lost ────── a life in which a quorum is lost for ever, and recovered
//!   ├─ invariants  what must be so at every moment (Raft's promises, replicas that agree)
//!   │    └─ leases   and that nothing outlives its owner
//!   └─ linearizability, of every key, pair of keys and counter
//! trace ────── all that happens, hashed: the same seed is the same life
//! ```
//!
//! `cargo run --release -p dogsled-simulation -- --seeds 1000` lives a thousand of them; what fails is
//! named by its seed, and `--from <seed> --seeds 1 --trace` shows it.
//!
//! # What it was seen to catch
//!
//! A simulation that never fails proves little, so bugs are built in on purpose, one at a time, to see them caught.
//! Where the shipped code has a seam they are [planted] there, and `tests/lives/planted.rs` has each of them caught:
//! `sim --plant DropFences --seeds 10` shows one. Where it has none they are built in by hand:
//!
//! - **An entry of an old term is committed by counting replicas.** In openraft's
//!   `src/engine/handler/replication_handler/mod.rs`, `try_commit_quorum_accepted` without its first `if`, which
//!   returns unless `self.state.vote_ref().is_same_leader(c.committed_leader_id())`. With `--faults figure8` ten of
//!   the seeds 0 to 11 fail, the first being 0. A later leader lacks what a node had applied, which is *leader completeness*
//!   in [`invariants`]. Faults that come by chance had not shown it in some 200 seeds; see [`figure8`].
//! - **Snapshots leave out the sessions.** In `storage/src/replica_snapshot.rs`, `ReplicaSnapshot::entries`, with
//!   `.filter(|id| self.has(*id) && *id != TreeId::SESSIONS)` in its outer loop. One in ten of the usual seeds fails:
//!   replicas that have applied the same differ.
//! - **A vote is given before the new replica has caught up.** In `replication/src/reconcile.rs`, `may_vote` with
//!   `true` for its body, and in `replication/src/group.rs` without the line that awaits `self.wait_until_caught_up(…)`.
//!   With `--faults Join,Leave,Drain,Isolate,Pause,OneWay,Kill`, seeds 1003 and 1009 of 1000 to 1010 fail: the new
//!   voter's own log has nothing of what was committed before.
//!
//! # What is not simulated
//!
//! QUIC, its framing and its certificates are below the line: a request here is what the transport
//! promises to make of them. Threads are too: where a real node waits for its disk in a thread, a
//! simulated one waits in a task for a simulated time, so races between threads have to be looked for
//! elsewhere.

pub mod caller;
pub mod clock;
pub mod cluster;
pub mod faults;
pub mod figure8;
pub mod history;
pub mod holders;
pub mod invariants;
pub mod leases;
pub mod linearizability;
pub mod locks;
mod lost;
pub mod members;
pub mod network;
pub mod owners;
pub mod planted;
pub mod random;
pub mod registers;
pub mod run;
// The checker of the storage engine's own tests; it is written once.
#[path = "../../storage/tests/engine_support/serializability.rs"]
#[allow(missing_docs, reason = "it is a part of another crate's tests")]
pub mod serializability;
pub mod trace;
pub mod watchers;
pub mod workload;

pub use run::{Options, Report, run};

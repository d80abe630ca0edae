//! [`ShardedCounter`]: one hot number, spread over partitions.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::future::{join_all, try_join_all};

use super::session::random_u64;
use super::{Client, Counter, Error, Result};

/// A counter whose additions are spread over several counters in several partitions; made by
/// [`Client::sharded_counter`].
///
/// # What reading means
///
/// [`get`](ShardedCounter::get) reads every part, each linearizably, and sums them. So it counts every
/// addition that had returned when it was called, and none that began after it returned; of those
/// under way in between it counts any, *not* such that the sum need be one that the counter had at some moment:
/// of two additions that follow one another in different parts it may count the second only. While all that is
/// added is positive, sums that are read one after the other do not fall.
///
/// There are no bounds and no `set` for that reason: what depends on the value is for a [`Counter`].
///
/// All who use it must say the same number of shards. It can be raised later: what is counted stays
/// counted. Each part has 64 bits; a sum beyond that is an error.
#[derive(Clone)]
pub struct ShardedCounter {
    shards: Arc<[Counter]>,
    turn: Arc<AtomicUsize>,
}

impl ShardedCounter {
    pub(super) fn new(client: Client, name: &[u8], shards: u16) -> ShardedCounter {
        let shard = |number: u16| {
            // The number stands within the tag, so that the parts spread even if the name has a tag.
            let shard = [format!("{{{number}:").as_bytes(), name, b"}"].concat();
            client.counter(shard)
        };
        let turn = Arc::new(AtomicUsize::new(random_u64() as usize >> 1));
        ShardedCounter { shards: (0..shards.max(1)).map(shard).collect(), turn }
    }

    /// Adds, negative numbers too.
    ///
    /// # Errors
    /// [`Error::Invalid`] if a part does not fit 64 bits, and those of [writing](super#writes).
    pub async fn add(&self, delta: i64) -> Result<()> {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        self.shards[turn % self.shards.len()].add(delta).await.map(drop)
    }

    /// The sum; see [what reading means](ShardedCounter#what-reading-means).
    ///
    /// # Errors
    /// [`Error::Invalid`] if it does not fit 64 bits, and those of [reading](super#reads).
    pub async fn get(&self) -> Result<i64> {
        let parts = try_join_all(self.shards.iter().map(Counter::get)).await?;
        let sum: i128 = parts.into_iter().map(i128::from).sum();
        i64::try_from(sum).map_err(|_| Error::Invalid(format!("the sum {sum} does not fit 64 bits")))
    }

    /// Sets every part to 0, in no order, and forgets them; what they stood at together.
    ///
    /// # Errors
    /// Those of [writing](super#writes), if nothing was done. [`Error::OutcomeUnknown`] if some parts are 0 and others
    /// are not, or may not be, and if the sum does not fit 64 bits: it says what those that are 0 stood at together.
    pub async fn reset(&self) -> Result<i64> {
        let (mut sum, mut failure, mut is_begun) = (0_i128, None, false);
        for part in join_all(self.shards.iter().map(Counter::reset)).await {
            match part {
                Ok(part) => (sum, is_begun) = (sum + i128::from(part), true),
                Err(error) => {
                    is_begun |= !error.is_definite();
                    failure = Some(error);
                }
            }
        }
        let so_far = |why: String| {
            Error::OutcomeUnknown(format!("parts that were set to 0 stood at {sum} together; {why}"))
        };
        match failure {
            None => i64::try_from(sum).map_err(|_| so_far("which does not fit 64 bits".to_owned())),
            Some(error) if is_begun => Err(so_far(error.to_string())),
            Some(error) => Err(error),
        }
    }
}

impl fmt::Debug for ShardedCounter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ShardedCounter").field("shards", &self.shards).finish_non_exhaustive()
    }
}

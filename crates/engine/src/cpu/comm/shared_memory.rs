//! Ranks as threads of one process.
//!
//! An exchange is one meeting: every rank lays down its numbers, waits until all have, and reads the others'. Each rank
//! has two places and uses them in turn, since nobody comes to the meeting after next before all have read this one's.

#[cfg(test)]
mod tests;

use std::{
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use super::{Comm, CommError};

/// How long a rank looks for the others before it sleeps: ranks with a processor each arrive within it.
const SPIN: Duration = Duration::from_micros(40);

/// A rank's end of a [`Group`]. Dropping it ends the group, as its part of every sum is missing from then on.
pub(crate) struct SharedMemory {
    group: Arc<Group>,
    rank: usize,
    /// Meetings so far.
    meetings: usize,
}

struct Group {
    state: Mutex<State>,
    changed: Condvar,
    /// Copy of [`State::held`] to spin on; `u64::MAX` once the group has ended.
    held: AtomicU64,
    places: Vec<[RwLock<Vec<f32>>; 2]>,
    limit: Duration,
    spin: Duration,
}

struct State {
    /// Who is at the meeting that is gathering.
    here: Vec<bool>,
    /// Meetings that all came to.
    held: u64,
    ended: Option<CommError>,
}

impl SharedMemory {
    /// The ends of a group of `world` ranks that wait for each other for at most `limit` at a time.
    pub fn group(world: usize, limit: Duration) -> Vec<Self> {
        let processors = thread::available_parallelism().map_or(1, usize::from);
        let group = Arc::new(Group {
            state: Mutex::new(State { here: vec![false; world], held: 0, ended: None }),
            changed: Condvar::new(),
            held: AtomicU64::new(0),
            places: (0..world).map(|_| Default::default()).collect(),
            limit,
            // With fewer processors than ranks, whoever spins takes the processor of whom it waits for.
            spin: if world <= processors { SPIN } else { Duration::ZERO },
        });
        (0..world).map(|rank| Self { group: Arc::clone(&group), rank, meetings: 0 }).collect()
    }

    /// Lays down `own` and waits for the others; answers which of the places they used.
    fn meet(&mut self, own: &[f32]) -> Result<usize, CommError> {
        let side = self.meetings % 2;
        self.meetings += 1;
        {
            let mut place =
                self.group.places[self.rank][side].write().unwrap_or_else(PoisonError::into_inner);
            place.clear();
            place.extend_from_slice(own);
        }
        self.group.meet(self.rank)?;
        Ok(side)
    }

    fn laid_down(&self, rank: usize, side: usize) -> RwLockReadGuard<'_, Vec<f32>> {
        self.group.places[rank][side].read().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Comm for SharedMemory {
    fn rank(&self) -> usize {
        self.rank
    }

    fn world(&self) -> usize {
        self.group.places.len()
    }

    fn all_reduce(&mut self, numbers: &mut [f32]) -> Result<(), CommError> {
        let side = self.meet(numbers)?;
        for rank in 0..self.world() {
            let part = self.laid_down(rank, side);
            if part.len() != numbers.len() {
                let (brought, expected) = (part.len(), numbers.len());
                return Err(self.group.end(CommError::Lengths { rank, brought, expected }));
            }
            if rank == 0 {
                numbers.copy_from_slice(&part);
            } else {
                numbers.iter_mut().zip(part.iter()).for_each(|(sum, x)| *sum += x);
            }
        }
        Ok(())
    }

    fn all_gather(&mut self, part: &[f32], take: &mut dyn FnMut(usize, &[f32])) -> Result<(), CommError> {
        let side = self.meet(part)?;
        (0..self.world()).for_each(|rank| take(rank, &self.laid_down(rank, side)));
        Ok(())
    }

    fn fail(&mut self, why: &str) {
        let (rank, world) = (self.rank, self.world());
        self.group.end(CommError::Ended { rank, world, why: why.to_owned() });
    }
}

impl Drop for SharedMemory {
    fn drop(&mut self) {
        self.fail(if thread::panicking() { "it panicked" } else { "it was stopped" });
    }
}

impl Group {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends the group for a reason, unless it has ended; answers the reason that stands.
    fn end(&self, reason: CommError) -> CommError {
        self.end_with(&mut self.state(), reason)
    }

    fn end_with(&self, state: &mut State, reason: CommError) -> CommError {
        let reason = state.ended.get_or_insert(reason).clone();
        self.held.store(u64::MAX, Ordering::Release);
        self.changed.notify_all();
        reason
    }

    fn meet(&self, rank: usize) -> Result<(), CommError> {
        let began = Instant::now();
        let meeting = {
            let mut state = self.state();
            if let Some(reason) = &state.ended {
                return Err(reason.clone());
            }
            state.here[rank] = true;
            if state.here.iter().all(|here| *here) {
                state.here.fill(false);
                state.held += 1;
                self.held.store(state.held, Ordering::Release);
                self.changed.notify_all();
                return Ok(());
            }
            state.held
        };
        while self.held.load(Ordering::Acquire) == meeting && began.elapsed() < self.spin {
            (0..32).for_each(|_| std::hint::spin_loop());
        }
        self.wait(meeting, began)
    }

    fn wait(&self, meeting: u64, began: Instant) -> Result<(), CommError> {
        // A meeting that was held counts although the group ended since: what it exchanged is complete.
        if self.held.load(Ordering::Acquire) == meeting + 1 {
            return Ok(());
        }
        let mut state = self.state();
        while state.held == meeting {
            if let Some(reason) = &state.ended {
                return Err(reason.clone());
            }
            let waited = began.elapsed();
            let Some(left) = self.limit.checked_sub(waited) else {
                let missing = (0..state.here.len()).filter(|rank| !state.here[*rank]).collect();
                let world = state.here.len();
                return Err(self.end_with(&mut state, CommError::Late { missing, world, waited: self.limit }));
            };
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        Ok(())
    }
}

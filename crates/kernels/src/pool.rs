//! Threads that wait for work by spinning a little, then sleeping.
//!
//! A decode step is some hundred short parallel loops, so the threads stay between them; but several pods may share
//! the cores, so spinning is bounded. Tasks are claimed one by one and the caller works too: a worker that the
//! kernel has not scheduled yet holds nobody up, and with all cores taken by others the caller simply does everything.

use std::{
    any::Any,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

/// How long an idle worker looks for the next loop before it sleeps: longer than the serial work between two loops
/// of a step, far shorter than a scheduler's time slice.
const SPIN: Duration = Duration::from_micros(40);

/// A parallel loop in progress; lives on the caller's stack.
struct Job<'a> {
    body: &'a (dyn Fn(usize) + Sync),
    tasks: u32,
}

struct Shared {
    /// Number of the loop in the upper half, tasks not yet claimed in the lower. A worker that claims a task of
    /// loop n may use `job` until it has counted the task in `unfinished`, because the caller waits for that.
    ticket: AtomicU64,
    job: AtomicPtr<Job<'static>>,
    unfinished: AtomicU32,
    failure: Mutex<Option<Box<dyn Any + Send>>>,
    stop: AtomicBool,
    asleep: Vec<AtomicBool>,
}

/// A fixed set of threads that run parallel loops.
pub struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    turn: Mutex<()>,
}

impl Pool {
    /// A pool of `threads` (the caller of [`Self::run`] is one of them); `None` takes what the machine offers.
    pub fn new(threads: Option<usize>) -> std::io::Result<Self> {
        let threads =
            threads.unwrap_or_else(|| thread::available_parallelism().map_or(1, usize::from)).max(1);
        let shared = Arc::new(Shared {
            ticket: AtomicU64::new(0),
            job: AtomicPtr::new(std::ptr::null_mut()),
            unfinished: AtomicU32::new(0),
            failure: Mutex::new(None),
            stop: AtomicBool::new(false),
            asleep: (1..threads).map(|_| AtomicBool::new(false)).collect(),
        });
        let workers = (0..threads - 1)
            .map(|index| {
                let shared = Arc::clone(&shared);
                thread::Builder::new().name(format!("kernel-{index}")).spawn(move || shared.work(index))
            })
            .collect::<Result<_, _>>()?;
        Ok(Self { shared, workers, turn: Mutex::new(()) })
    }

    /// Threads that share a loop, the caller included.
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Calls `body` once for every number below `tasks` and returns when all are done. Must not be called from a
    /// task. A task's panic is passed on after all others have ended.
    pub fn run(&self, tasks: usize, body: &(dyn Fn(usize) + Sync)) {
        if tasks <= 1 || self.workers.is_empty() {
            return (0..tasks).for_each(body);
        }
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        assert!(tasks <= u32::MAX as usize, "{tasks} tasks do not fit a ticket");
        let tasks = tasks as u32;
        let job = Job { body, tasks };
        let shared = &*self.shared;
        let number = (shared.ticket.load(Ordering::Relaxed) >> 32).wrapping_add(1);
        shared.unfinished.store(tasks, Ordering::Relaxed);
        shared.job.store((&raw const job).cast_mut().cast(), Ordering::Relaxed);
        shared.ticket.store((number << 32) | u64::from(tasks), Ordering::SeqCst);
        self.wake();
        while shared.try_task() {}
        shared.wait_for_tasks();
        let failure = shared.failure.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(failure) = failure {
            resume_unwind(failure);
        }
    }

    /// What `make` makes of every number below `count`, in their order; as [`Self::run`].
    pub fn map<T: Send>(&self, count: usize, make: impl Fn(usize) -> T + Sync) -> Vec<T> {
        let made: Vec<_> = (0..count).map(|_| Mutex::new(None)).collect();
        let put = |i: usize| *made[i].lock().unwrap_or_else(PoisonError::into_inner) = Some(make(i));
        self.run(count, &put);
        made.into_iter().filter_map(|one| one.into_inner().unwrap_or_else(PoisonError::into_inner)).collect()
    }

    fn wake(&self) {
        for (worker, asleep) in self.workers.iter().zip(&self.shared.asleep) {
            if asleep.load(Ordering::SeqCst) && asleep.swap(false, Ordering::SeqCst) {
                worker.thread().unpark();
            }
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        for worker in self.workers.drain(..) {
            worker.thread().unpark();
            // Tasks catch panics, so a worker ends normally.
            let _ = worker.join();
        }
    }
}

impl Shared {
    fn work(&self, index: usize) {
        let mut idle_since = Instant::now();
        while !self.stop.load(Ordering::Relaxed) {
            if self.try_task() {
                idle_since = Instant::now();
            } else if idle_since.elapsed() < SPIN {
                (0..32).for_each(|_| std::hint::spin_loop());
            } else {
                self.sleep(index);
                idle_since = Instant::now();
            }
        }
    }

    fn sleep(&self, index: usize) {
        let Some(asleep) = self.asleep.get(index) else { return };
        asleep.store(true, Ordering::SeqCst);
        // The caller publishes a ticket before it looks at `asleep`: one of the two sees the other.
        if self.ticket.load(Ordering::SeqCst) as u32 == 0 && !self.stop.load(Ordering::SeqCst) {
            thread::park();
        }
        asleep.store(false, Ordering::SeqCst);
    }

    /// Claims and runs one task; false when there is none.
    fn try_task(&self) -> bool {
        let mut ticket = self.ticket.load(Ordering::Acquire);
        let (job, left) = loop {
            let left = ticket as u32;
            if left == 0 {
                return false;
            }
            let job = self.job.load(Ordering::Relaxed);
            match self.ticket.compare_exchange(ticket, ticket - 1, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => break (job, left),
                Err(now) => ticket = now,
            }
        };
        // SAFETY: the exchange succeeded, so the loop this job belongs to had an unclaimed task and has now one that
        // is claimed and unfinished; its caller keeps the job alive until `unfinished` is zero.
        let job = unsafe { &*job };
        let task = (job.tasks - left) as usize;
        if let Err(failure) = catch_unwind(AssertUnwindSafe(|| (job.body)(task))) {
            self.failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(failure);
        }
        self.unfinished.fetch_sub(1, Ordering::Release);
        true
    }

    /// Claimed tasks run on other cores and are short; when one does not end soon its thread lost its core, so
    /// ours is offered.
    fn wait_for_tasks(&self) {
        let mut rounds = 0u32;
        while self.unfinished.load(Ordering::Acquire) != 0 {
            rounds += 1;
            if rounds < 4096 { std::hint::spin_loop() } else { thread::yield_now() }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    #[test]
    fn every_task_runs_once_however_many_loops_follow_each_other() {
        let pool = Pool::new(Some(4)).unwrap();
        for tasks in (0..200).chain([1000]) {
            let counts: Vec<_> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
            pool.run(tasks, &|i| {
                counts[i].fetch_add(1, Ordering::Relaxed);
            });
            assert!(counts.iter().all(|count| count.load(Ordering::Relaxed) == 1), "{tasks} tasks");
        }
    }

    #[test]
    fn what_is_made_is_in_order() {
        let pool = Pool::new(Some(3)).unwrap();
        assert_eq!(pool.map(100, |i| i * i), (0..100).map(|i| i * i).collect::<Vec<_>>());
        assert!(pool.map(0, |i| i).is_empty());
    }

    #[test]
    fn workers_that_fell_asleep_come_back() {
        let pool = Pool::new(Some(3)).unwrap();
        for _ in 0..5 {
            thread::sleep(Duration::from_millis(2));
            let sum = AtomicUsize::new(0);
            pool.run(64, &|i| {
                sum.fetch_add(i, Ordering::Relaxed);
            });
            assert_eq!(sum.into_inner(), 64 * 63 / 2);
        }
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_goes_on() {
        let pool = Pool::new(Some(2)).unwrap();
        let failed = catch_unwind(AssertUnwindSafe(|| pool.run(16, &|i| assert_ne!(i, 7, "seven"))));
        assert!(failed.is_err());
        let sum = AtomicUsize::new(0);
        pool.run(16, &|_| {
            sum.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(sum.into_inner(), 16);
    }
}

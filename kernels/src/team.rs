//! A few threads that split one op: fork and join in about a microsecond while the work keeps coming.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

/// Turns a worker spins before it sleeps; about 50 µs. Between the ops of one forward pass it never sleeps, between
/// two buffers of a live stream it always does.
const SPINS: u32 = 20_000;

/// A fixed set of threads; the caller of [`Team::split`] is one of them.
pub struct Team {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    /// Taken while a job runs, so that the same team is never entered twice.
    busy: AtomicBool,
}

const OPEN: u64 = 1 << 31;
const INSIDE: u64 = OPEN - 1;
const ONE_TURN: u64 = 1 << 32;

type Job = *const (dyn Fn(usize) + Sync);

struct Shared {
    /// The job of the current turn; written before the turn opens, read by those who have entered it.
    job: std::cell::UnsafeCell<Option<Job>>,
    parts: AtomicUsize,
    next: AtomicUsize,
    /// The turn's number in the upper half, [`OPEN`] while it may be entered, and in the low bits how many workers are in
    /// it. The caller closes the turn when no part is left and waits for those inside only: a worker that the machine did
    /// not let run keeps nobody waiting.
    turn: AtomicU64,
    panicked: AtomicBool,
    stop: AtomicBool,
}

// SAFETY: `job` is written only by the holder of `busy` while the turn is closed with nobody inside, and read only by
// workers inside an open turn; the pointee is Sync and outlives that time (see `split`).
unsafe impl Sync for Shared {}
// SAFETY: as above; the raw pointer is never used by a thread after `split` returned.
unsafe impl Send for Shared {}

impl Team {
    /// A team of `threads` threads in all; 0 counts as 1. One thread means no worker is started.
    pub fn new(threads: usize) -> Self {
        let shared = Arc::new(Shared {
            job: std::cell::UnsafeCell::new(None),
            parts: AtomicUsize::new(0),
            next: AtomicUsize::new(0),
            turn: AtomicU64::new(0),
            panicked: AtomicBool::new(false),
            stop: AtomicBool::new(false),
        });
        let threads = (1..threads)
            .filter_map(|i| {
                let shared = shared.clone();
                std::thread::Builder::new().name(format!("ssm-{i}")).spawn(move || work(&shared)).ok()
            })
            .collect();
        Self { shared, threads, busy: AtomicBool::new(false) }
    }

    /// Number of threads, the caller included.
    pub fn threads(&self) -> usize {
        self.threads.len() + 1
    }

    /// Number of threads that a [`Team::split`] would have now: one inside another split.
    pub fn free(&self) -> usize {
        if self.busy.load(Ordering::Relaxed) { 1 } else { self.threads() }
    }

    /// Calls `f(0)` … `f(parts - 1)`, each once, on the threads of the team, and returns when all are done. A call from
    /// inside `f`, or from a second thread at the same time, runs on the calling thread alone.
    ///
    /// # Panics
    /// If `f` panics in any part.
    pub fn split(&self, parts: usize, f: impl Fn(usize) + Sync) {
        if parts <= 1
            || self.threads.is_empty()
            || self.busy.compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed).is_err()
        {
            (0..parts).for_each(f);
            return;
        }
        let s = &*self.shared;
        let job: &(dyn Fn(usize) + Sync) = &f;
        // SAFETY: only the lifetime is erased. `finish` below waits, also on a panic, until no worker can read the
        // pointer any more, and that is before `f` goes out of scope.
        let job: Job = unsafe { std::mem::transmute::<*const (dyn Fn(usize) + Sync + '_), Job>(job) };
        // SAFETY: `busy` is held and the turn is closed with nobody inside, so no thread reads `job` now.
        unsafe { *s.job.get() = Some(job) };
        s.parts.store(parts, Ordering::Relaxed);
        s.next.store(0, Ordering::Relaxed);
        s.panicked.store(false, Ordering::Relaxed);
        s.turn.fetch_add(ONE_TURN | OPEN, Ordering::Release);
        for t in &self.threads {
            t.thread().unpark();
        }
        let finish = Finish(self);
        loop {
            let part = s.next.fetch_add(1, Ordering::Relaxed);
            if part >= parts {
                break;
            }
            f(part);
        }
        let panicked = finish.end();
        std::mem::forget(finish);
        assert!(!panicked, "a thread of the team panicked");
    }

    /// Runs `a` and `b`, at the same time if the team has a thread to spare; what they split runs on their own thread then.
    ///
    /// # Panics
    /// If one of them panics.
    pub fn both(&self, a: impl FnOnce() + Send, b: impl FnOnce() + Send) {
        let (a, b) = (Mutex::new(Some(a)), Mutex::new(Some(b)));
        self.split(2, |part| {
            if part == 0 {
                a.lock().unwrap_or_else(PoisonError::into_inner).take().into_iter().for_each(|a| a());
            } else {
                b.lock().unwrap_or_else(PoisonError::into_inner).take().into_iter().for_each(|b| b());
            }
        });
    }
}

/// Closes the turn and waits for the workers inside, however the caller's own part ended.
struct Finish<'a>(&'a Team);

impl Finish<'_> {
    /// Whether a worker panicked. Read before the team is free: the next turn forgets it.
    fn end(&self) -> bool {
        let s = &self.0.shared;
        let mut spins = 0;
        s.turn.fetch_and(!OPEN, Ordering::Relaxed);
        while s.turn.load(Ordering::Acquire) & INSIDE != 0 {
            spins += 1;
            if spins < SPINS { std::hint::spin_loop() } else { std::thread::yield_now() }
        }
        let panicked = s.panicked.load(Ordering::Relaxed);
        self.0.busy.store(false, Ordering::Release);
        panicked
    }
}

impl Drop for Finish<'_> {
    fn drop(&mut self) {
        self.end();
    }
}

fn work(s: &Shared) {
    // The turn that this worker was in last, its upper half.
    let mut seen = 0;
    loop {
        let mut spins = 0;
        loop {
            if s.stop.load(Ordering::Relaxed) {
                return;
            }
            let turn = s.turn.load(Ordering::Relaxed);
            let fresh = turn & OPEN != 0 && turn / ONE_TURN != seen;
            if fresh && s.turn.compare_exchange(turn, turn + 1, Ordering::Acquire, Ordering::Relaxed).is_ok() {
                seen = turn / ONE_TURN;
                break;
            }
            spins += 1;
            if spins < SPINS { std::hint::spin_loop() } else { std::thread::park() }
        }
        let parts = s.parts.load(Ordering::Relaxed);
        // SAFETY: the turn was open, so `job` was written before; the caller waits until this thread is no longer inside,
        // so the job is alive and unchanged.
        let job = unsafe { (*s.job.get()).map(|j| &*j) };
        if let Some(job) = job {
            let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                loop {
                    let part = s.next.fetch_add(1, Ordering::Relaxed);
                    if part >= parts {
                        break;
                    }
                    job(part);
                }
            }));
            if done.is_err() {
                s.panicked.store(true, Ordering::Relaxed);
            }
        }
        s.turn.fetch_sub(1, Ordering::Release);
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        for t in self.threads.drain(..) {
            t.thread().unpark();
            let _ = t.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU32;

    #[test]
    fn every_part_runs_once() {
        for threads in [1, 2, 5] {
            let team = Team::new(threads);
            for parts in [0, 1, 2, 7, 1000] {
                let hits: Vec<AtomicU32> = (0..parts).map(|_| AtomicU32::new(0)).collect();
                team.split(parts, |i| {
                    hits[i].fetch_add(1, Ordering::Relaxed);
                });
                assert!(hits.iter().all(|h| h.load(Ordering::Relaxed) == 1), "{threads} threads, {parts} parts");
            }
        }
    }

    #[test]
    fn nested_and_concurrent_calls_still_run_every_part() {
        let team = Team::new(3);
        let count = AtomicU32::new(0);
        std::thread::scope(|s| {
            for _ in 0..4 {
                s.spawn(|| {
                    for _ in 0..200 {
                        team.split(4, |_| {
                            team.split(3, |_| {
                                count.fetch_add(1, Ordering::Relaxed);
                            })
                        });
                    }
                });
            }
        });
        assert_eq!(count.load(Ordering::Relaxed), 4 * 200 * 4 * 3);
        team.split(3, |_| assert_eq!(team.free(), 1));
        assert_eq!((team.free(), Team::new(1).free()), (3, 1));
    }

    #[test]
    fn a_worker_that_does_not_run_keeps_nobody_waiting() {
        let mut team = Team::new(1);
        let shared = team.shared.clone();
        let idle = move || {
            while !shared.stop.load(Ordering::Relaxed) {
                std::thread::park()
            }
        };
        team.threads.push(std::thread::spawn(idle));
        let count = AtomicU32::new(0);
        for _ in 0..10 {
            team.split(7, |_| {
                count.fetch_add(1, Ordering::Relaxed);
            });
        }
        assert_eq!(count.into_inner(), 70);
    }

    #[test]
    fn both_run_once_and_may_write() {
        for threads in [1, 2, 3] {
            let team = Team::new(threads);
            for _ in 0..100 {
                let (mut a, mut b) = (0, vec![1, 2]);
                team.both(
                    || {
                        team.split(3, |_| ());
                        a += 1;
                    },
                    || b.push(3),
                );
                assert_eq!((a, b), (1, vec![1, 2, 3]), "{threads} threads");
            }
        }
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_team_lives_on() {
        let team = Team::new(2);
        for _ in 0..20 {
            let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                team.split(8, |i| assert!(i != 5, "planted"));
            }));
            assert!(caught.is_err());
            team.split(2, |_| ());
        }
    }
}

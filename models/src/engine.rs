//! One worker per model serves any number of streams.
//!
//! A stream's [`Row`] (state, input, output) is moved to the worker with each job and comes back with the result, so
//! nothing is copied and nothing is allocated while streams play. The worker takes what jobs are waiting, up to
//! `batch_size` of the same length, and runs them as one forward pass; each stream has one job under way at most, so its
//! results come back in order, and a stalled stream holds nobody up. A row that no forward pass has taken yet can be taken
//! back, by a stream that cannot wait.

use crate::card::Placed;
use crate::error::Error;
use crate::model::{Info, Model, Row, Scratch};
use crate::state::State;
use crossbeam::channel::{Receiver, Sender, bounded};
use ssm_kernels::cuda::{CardError, card};
use ssm_kernels::{CpuLevel, Cx};
use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

/// Where a model runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Device {
    /// The fastest there is.
    #[default]
    Auto,
    /// The processor.
    Cpu,
    /// The CUDA card of this index.
    Cuda(u32),
}

impl std::str::FromStr for Device {
    type Err = Error;
    fn from_str(word: &str) -> Result<Self, Error> {
        let bad = || Error::Device { asked: format!("{word:?}"), reason: "expected auto, cpu, cuda or cuda:N".into() };
        match word {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda(0)),
            _ => word.strip_prefix("cuda:").and_then(|n| n.parse().ok()).map(Self::Cuda).ok_or_else(bad),
        }
    }
}

impl std::fmt::Display for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(n) => write!(f, "cuda:{n}"),
        }
    }
}

impl Device {
    /// The device that models which can run on a card really use; `auto` stays where there is one.
    ///
    /// # Errors
    /// A card was asked for by name and is not there.
    pub fn resolve(self) -> Result<Self, Error> {
        let Self::Cuda(index) = self else { return Ok(self.present()) };
        let why = match card::count() {
            Ok(count) if index < count => return Ok(self),
            Ok(count) => CardError::NoCard { index, count },
            Err(error) => error,
        };
        Err(Error::Device { asked: self.to_string(), reason: format!("{why}; use device=cpu or device=auto") })
    }
}

/// What makes two elements share one engine.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct EngineKey {
    /// Model file and the options that change what is computed, as one text.
    pub model: String,
    /// Instance name; empty: shared by model and device.
    pub instance: String,
    /// Device.
    pub device: Device,
    /// Threads of one forward pass.
    pub threads: usize,
    /// Streams of one forward pass at most.
    pub batch_size: usize,
    /// Longest wait for further streams' jobs.
    pub batch_timeout: Duration,
}

/// Where a row, its number of steps and how long it may wait for others lie until the worker takes them, or the stream
/// takes them back.
#[derive(Default)]
struct Desk {
    row: Option<(Row, usize, Duration)>,
    /// Whether a job in the channel stands for this desk: a row taken back leaves it there for the next one.
    queued: bool,
}

struct Job {
    desk: Arc<Mutex<Desk>>,
    reply: Sender<Answer>,
}

/// A row that comes back.
struct Answer {
    row: Row,
    /// What went wrong.
    done: Result<(), Arc<str>>,
    /// How long the row waited for others, and whether in vain.
    waited: Duration,
    alone: bool,
}

/// A row that the worker has taken.
struct Work {
    row: Row,
    len: usize,
    patience: Duration,
    reply: Sender<Answer>,
}

impl Job {
    /// The row, unless its stream has taken it back.
    fn take(self) -> Option<Work> {
        let mut desk = lock(&self.desk);
        desk.queued = false;
        let (row, len, patience) = desk.row.take()?;
        drop(desk);
        Some(Work { row, len, patience, reply: self.reply })
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A model at work.
pub struct Engine {
    model: Arc<dyn Model>,
    note: Option<String>,
    level: CpuLevel,
    jobs: Option<Sender<Job>>,
    worker: Option<std::thread::JoinHandle<()>>,
    timeout: Duration,
    passes: Arc<AtomicU64>,
    rows: Arc<AtomicU64>,
    streams: Arc<AtomicUsize>,
}

/// The running engine of a key, if any.
type Slot = Arc<Mutex<Weak<Engine>>>;

/// Whoever opens a model holds its slot alone.
static SHARED: Mutex<Option<HashMap<EngineKey, Slot>>> = Mutex::new(None);

impl Engine {
    /// Starts an engine for `model`.
    pub fn start(model: Arc<dyn Model>, cx: Cx, batch_size: usize, batch_timeout: Duration) -> Arc<Self> {
        Self::start_placed(Placed { model, note: None }, cx, batch_size, batch_timeout)
    }

    /// As [`Engine::start`], for a model that was put where it runs.
    fn start_placed(placed: Placed, cx: Cx, batch_size: usize, batch_timeout: Duration) -> Arc<Self> {
        let Placed { model, note } = placed;
        // Each stream has one job under way at most; the bound only has to exceed the streams of a process.
        let (jobs, inbox) = bounded(1024);
        let (passes, rows, streams) = (Arc::<AtomicU64>::default(), Arc::<AtomicU64>::default(), Arc::default());
        let level = cx.level;
        let worker = {
            let (model, passes, rows) = (model.clone(), passes.clone(), rows.clone());
            let fill = Fill { rows: batch_size.max(1), streams: Arc::clone(&streams) };
            std::thread::Builder::new()
                .name("ssm-engine".into())
                .spawn(move || work(&*model, &cx, &inbox, &fill, &passes, &rows))
                .ok()
        };
        let jobs = worker.is_some().then_some(jobs);
        Arc::new(Self { model, note, level, jobs, worker, timeout: batch_timeout, passes, rows, streams })
    }

    /// The engine of `key`, or a new one of the model that `open` gives.
    ///
    /// # Errors
    /// What `open` says.
    pub fn shared(key: EngineKey, open: impl FnOnce() -> Result<(Placed, Cx), Error>) -> Result<Arc<Self>, Error> {
        let (batch_size, batch_timeout) = (key.batch_size, key.batch_timeout);
        let slot = {
            let mut shared = lock(&SHARED);
            let slots = shared.get_or_insert_default();
            slots.retain(|_, slot| Arc::strong_count(slot) > 1 || lock(slot).strong_count() > 0);
            Arc::clone(slots.entry(key).or_default())
        };
        let mut running = lock(&slot);
        if let Some(engine) = running.upgrade() {
            return Ok(engine);
        }
        let (placed, cx) = open()?;
        let engine = Self::start_placed(placed, cx, batch_size, batch_timeout);
        *running = Arc::downgrade(&engine);
        Ok(engine)
    }

    /// The model.
    pub fn model(&self) -> &dyn Model {
        &*self.model
    }

    /// Facts of the model.
    pub fn info(&self) -> &Info {
        self.model.info()
    }

    /// Where the model runs, and why on the processor though there is a card.
    pub fn device(&self) -> (Device, Option<&str>) {
        (self.model.device(), self.note.as_deref())
    }

    /// Kernels launched on the card so far, and bytes of its memory; zeros on the processor.
    pub fn card(&self) -> (u64, u64) {
        self.model.card().map_or((0, 0), |card| (card.launches(), card.bytes()))
    }

    /// Forward passes so far, and the streams' jobs in them.
    pub fn counts(&self) -> (u64, u64) {
        (self.passes.load(Ordering::Relaxed), self.rows.load(Ordering::Relaxed))
    }

    /// A new stream whose jobs have `len` steps at most.
    pub fn stream(self: &Arc<Self>, len: usize) -> Stream {
        let (reply, answer) = bounded(1);
        let (row, desk) = (Some(Row::new(&*self.model, len)), Arc::default());
        self.streams.fetch_add(1, Ordering::Relaxed);
        let wait = Wait::default();
        Stream { row, done: None, capacity: len, desk, reply, answer, wait, engine: self.clone() }
    }
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let streams = self.streams.load(Ordering::Relaxed);
        f.debug_struct("Engine").field("model", &self.model).field("streams", &streams).finish_non_exhaustive()
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(worker) = self.worker.take() {
            let _ = worker.join();
        }
    }
}

/// How long a stream's rows wait for those of others.
#[derive(Default)]
struct Wait {
    /// When the last answer came.
    answered: Option<Instant>,
    /// How long its row had waited.
    waited: Duration,
    /// Rows in a row that waited in vain.
    vain: u32,
}

impl Wait {
    /// One in so many is tried after many in vain.
    const PROBE: u32 = 64;

    /// How long the row that comes now may wait, `longest` at most: so long that the stream, which comes with its next row
    /// when it has it, does not fall behind, and half as long after each time that nobody came.
    fn patience(&self, longest: Duration) -> Duration {
        let Some(answered) = self.answered.filter(|_| !longest.is_zero()) else { return longest };
        let spare = (answered.elapsed() + self.waited) * 3 / 4;
        let halved = if self.vain.is_multiple_of(Self::PROBE) { longest } else { longest / (1 << self.vain.min(20)) };
        spare.min(halved)
    }

    fn note(&mut self, answer: &Answer) {
        (self.answered, self.waited) = (Some(Instant::now()), answer.waited);
        self.vain = if answer.alone { self.vain.wrapping_add(1) } else { 0 };
    }
}

/// One stream of an engine.
pub struct Stream {
    engine: Arc<Engine>,
    /// Away while a job is under way.
    row: Option<Row>,
    /// How the last job went, until somebody asks.
    done: Option<Result<(), Arc<str>>>,
    capacity: usize,
    desk: Arc<Mutex<Desk>>,
    reply: Sender<Answer>,
    answer: Receiver<Answer>,
    wait: Wait,
}

impl Stream {
    /// The engine.
    pub fn engine(&self) -> &Arc<Engine> {
        &self.engine
    }

    /// State, input and output of the stream. While steps are under way it waits for them.
    pub fn row(&mut self) -> &mut Row {
        if self.row.is_none()
            && let Ok(answer) = self.answer.recv()
        {
            self.back(answer);
        }
        // Every job is answered, so there is a row.
        self.row.get_or_insert_with(|| Row::new(&*self.engine.model, self.capacity))
    }

    /// Runs `len` steps that lie in the row's input and waits for the result in its output.
    ///
    /// # Errors
    /// As [`Stream::submit`] and [`Stream::wait`].
    pub fn run(&mut self, len: usize) -> Result<(), Error> {
        self.submit(len)?;
        self.wait()
    }

    /// As [`Stream::run`], but goes on without the steps if the engine is busy with other streams for longer than
    /// `patience`: `false` then, and the state is as it was. A forward pass that has begun is waited for.
    ///
    /// # Errors
    /// As [`Stream::run`].
    pub fn run_within(&mut self, len: usize, patience: Duration) -> Result<bool, Error> {
        self.submit(len)?;
        match self.answer.recv_timeout(patience) {
            Ok(answer) => self.back(answer),
            Err(_) => {
                let desk = self.desk.clone();
                if let Some((row, ..)) = lock(&desk).row.take() {
                    self.row = Some(row);
                    return Ok(false);
                }
            }
        }
        self.wait().map(|()| true)
    }

    /// Hands `len` steps that lie in the row's input to the engine; [`Stream::wait`] brings the result. Until then the
    /// row is away: whoever touches it waits.
    ///
    /// # Errors
    /// `len` is above the capacity; the steps before were not waited for; the row is not as [`Row::new`] made it, or its
    /// state is another model's; a token is no id of the model; the engine has ended. The row stays.
    pub fn submit(&mut self, len: usize) -> Result<(), Error> {
        if len > self.capacity {
            return Err(Error::Input {
                expected: format!("{} steps at most", self.capacity),
                got: format!("{len} steps"),
            });
        }
        let Some(row) = &self.row else {
            return Err(Error::Input { expected: "steps one after another".into(), got: "some under way".into() });
        };
        row.check(&*self.engine.model, len)?;
        let Some(jobs) = &self.engine.jobs else { return Err(self.failed("its thread did not start")) };
        let Some(row) = self.row.take() else { return Err(self.failed("")) };
        self.done = None;
        let patience = self.wait.patience(self.engine.timeout);
        let mut desk = lock(&self.desk);
        desk.row = Some((row, len, patience));
        if std::mem::replace(&mut desk.queued, true) {
            return Ok(());
        }
        drop(desk);
        if jobs.send(Job { desk: self.desk.clone(), reply: self.reply.clone() }).is_ok() {
            return Ok(());
        }
        let mut desk = lock(&self.desk);
        (self.row, desk.queued) = (desk.row.take().map(|(row, ..)| row), false);
        drop(desk);
        Err(self.failed(""))
    }

    /// Waits for the steps that were submitted; their result then lies in the row's output.
    ///
    /// # Errors
    /// Nothing was submitted, or the forward pass failed (the stream is then a fresh one).
    pub fn wait(&mut self) -> Result<(), Error> {
        if self.row.is_none() {
            let answer = self.answer.recv().map_err(|_| self.failed(""))?;
            self.back(answer);
        }
        match self.done.take() {
            Some(done) => done.map_err(|reason| self.failed(&reason)),
            None => Err(Error::Input { expected: "steps that were submitted".into(), got: "none".into() }),
        }
    }

    fn back(&mut self, answer: Answer) {
        self.wait.note(&answer);
        (self.row, self.done) = (Some(answer.row), Some(answer.done));
    }

    fn failed(&self, reason: &str) -> Error {
        Error::Engine { model: self.engine.info().family.into(), reason: reason.into() }
    }

    /// Makes the stream a fresh one.
    pub fn reset(&mut self) {
        self.row().state.reset();
    }

    /// Lets `periods` steps pass without input, as long as the row's `rate` says.
    pub fn gap(&mut self, periods: f64) {
        let (engine, row) = (self.engine.clone(), self.row());
        engine.model.gap(&mut row.state, periods * f64::from(row.rate));
    }

    /// Steps since the reset. They are counted here wherever the rest of the state lies.
    pub fn steps(&mut self) -> u64 {
        self.row().state.steps
    }

    /// The state, brought from the card if it lies there; one that the card does not give back is a fresh one.
    pub fn state(&mut self) -> &mut State {
        let state = &mut self.row().state;
        state.settle_or_reset();
        state
    }

    /// Ends the stream ([`Model::drain`]) and returns what was still to come; the state is then a fresh one.
    pub fn drain(&mut self, partial: usize) -> &[f32] {
        let engine = self.engine.clone();
        let partial = partial.min(engine.info().input.len());
        let need = engine.model.drain_len();
        let row = self.row();
        if row.y.len() < need {
            row.y.resize(need, 0.0);
        }
        let n = engine.model.drain(&Cx::at(engine.level, 1), row, partial, &mut Scratch::default());
        row.state.reset();
        &row.y[..n]
    }
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.row.as_ref().map(|row| &row.state);
        f.debug_struct("Stream").field("engine", &self.engine).field("state", &state).finish_non_exhaustive()
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.engine.streams.fetch_sub(1, Ordering::Relaxed);
    }
}

/// How a batch is filled.
struct Fill {
    /// Rows at most.
    rows: usize,
    /// Streams there are. Each has one row under way at most, so there is no waiting for more.
    streams: Arc<AtomicUsize>,
}

fn work(model: &dyn Model, cx: &Cx, inbox: &Receiver<Job>, fill: &Fill, passes: &AtomicU64, served: &AtomicU64) {
    let mut scratch = Scratch::default();
    let mut rows: Vec<Row> = Vec::with_capacity(fill.rows);
    // Where each row goes back to, and since when it waits.
    let mut replies: Vec<(Sender<Answer>, Instant)> = Vec::with_capacity(fill.rows);
    let mut next: Option<Work> = None;
    loop {
        let Some(first) = next.take().or_else(|| inbox.iter().find_map(Job::take)) else { return };
        let (len, patience, now) = (first.len, first.patience, Instant::now());
        rows.push(first.row);
        replies.push((first.reply, now));
        let deadline = now + patience;
        while rows.len() < fill.rows.min(fill.streams.load(Ordering::Relaxed)) {
            let job = if patience.is_zero() { inbox.try_recv().ok() } else { inbox.recv_deadline(deadline).ok() };
            match job.map(Job::take) {
                Some(None) => {}
                Some(Some(work)) if work.len == len => {
                    rows.push(work.row);
                    replies.push((work.reply, Instant::now()));
                }
                // Another length: it opens the next batch.
                other => {
                    next = other.flatten();
                    break;
                }
            }
        }
        let begun = Instant::now();
        let alone = rows.len() == 1 && next.is_none() && begun >= deadline;
        // A panic in here is a bug of ours; it must not take the application down with it.
        let pass = std::panic::AssertUnwindSafe(|| model.run(cx, &mut rows, len, &mut scratch));
        let done: Result<(), Arc<str>> = match std::panic::catch_unwind(pass) {
            Ok(done) => done.map_err(|error| format!(": {error}").into()),
            Err(_) => Err("".into()),
        };
        passes.fetch_add(1, Ordering::Relaxed);
        served.fetch_add(rows.len() as u64, Ordering::Relaxed);
        for (mut row, (reply, since)) in rows.drain(..).zip(replies.drain(..)) {
            if done.is_err() {
                row.state.reset();
            }
            let _ = reply.send(Answer { row, done: done.clone(), waited: begun - since, alone });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_waits_no_longer_than_its_stream_can_spare() {
        let (second, mut wait) = (Duration::from_secs(1), Wait::default());
        let told = |waited, alone| {
            let model = crate::open(
                concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/golden/vim_train_style.safetensors"),
                &crate::Options::default(),
            );
            Answer { row: Row::new(&*model.unwrap(), 1), done: Ok(()), waited, alone }
        };
        assert_eq!(wait.patience(second), second, "the first one");
        // A stream that comes again at once, as one that has fallen behind, waits less and less.
        let mut last = second;
        for _ in 0..6 {
            wait.note(&told(last, false));
            let next = wait.patience(second);
            assert!(next < last * 4 / 5, "{next:?} after {last:?}");
            last = next;
        }
        // Nobody came: half as long each time, now and then as long as it may.
        wait.answered = Some(Instant::now() - 10 * second);
        for (vain, most) in [(0, second), (1, second / 2), (3, second / 8), (64, second), (65, second)] {
            wait.vain = vain;
            assert!(wait.patience(second) <= most, "{vain}");
        }
        wait.vain = 65;
        assert!(wait.patience(second) < second / 1000);
        wait.vain = 64;
        assert_eq!(wait.patience(second), second);
        wait.note(&told(second, true));
        assert_eq!(wait.vain, 65);
        wait.note(&told(second, false));
        assert_eq!(wait.vain, 0);
    }

    #[test]
    fn a_row_that_is_away_is_waited_for_and_a_wrong_one_stays() {
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/golden/mamba_lm_tiny_hf.safetensors");
        let model = crate::open(file, &crate::Options::default()).unwrap();
        let engine = Engine::start(model, Cx::at(CpuLevel::Scalar, 1), 8, Duration::from_millis(20));
        let mut streams = [(); 2].map(|()| engine.stream(2));
        let [a, b] = &mut streams;
        let told = a.wait().unwrap_err().to_string();
        assert!(told.contains("expected steps that were submitted"), "{told}");
        for stream in [&mut *a, &mut *b] {
            stream.row().tokens.fill(3);
            stream.run(1).unwrap();
        }
        let want = a.row().y.clone();

        // A neighbour's row that does not fit is that one's fault alone.
        let vocab = b.row().y.len() / 2;
        let break_row: [fn(&mut Row); 4] = [
            |row| row.y.truncate(1),
            |row| row.tokens.truncate(0),
            |row| row.rate = f32::NAN,
            |row| row.state = State::new(&crate::StateLayout::new()),
        ];
        for (spoil, part) in break_row.into_iter().zip(["row with output", "row with input", "finite rate", "state of"])
        {
            let good = Row { state: b.state().clone(), ..Row::new(&*engine.model, 2) };
            spoil(b.row());
            a.submit(1).unwrap();
            let told = b.submit(1).unwrap_err().to_string();
            assert!(told.contains(part), "{told}");
            a.wait().unwrap();
            *b.row() = good;
        }
        b.row().tokens.fill(vocab as u32);
        assert!(b.submit(1).unwrap_err().to_string().contains("token ids below"));
        assert_eq!((a.steps(), b.steps()), (5, 1));

        // Touched while it is away: what it has done counts, nothing is lost, nobody else stands still.
        for _ in 0..3 {
            a.reset();
            a.row().tokens.fill(3);
            a.submit(1).unwrap();
            assert!(a.submit(1).unwrap_err().to_string().contains("some under way"));
            assert_eq!((a.steps(), &a.row().y), (1, &want));
            a.wait().unwrap();
            a.submit(1).unwrap();
            a.reset();
            b.row().tokens.fill(3);
            b.run(1).unwrap();
        }
        assert_eq!(a.steps(), 0);
    }

    #[test]
    fn opening_one_model_does_not_hold_up_another() {
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/golden/vim_train_style.safetensors");
        let open =
            || Ok((Device::Cpu.place(crate::open(file, &crate::Options::default())?)?, Cx::at(CpuLevel::Scalar, 1)));
        let key = |model: &str| EngineKey {
            model: model.into(),
            instance: "".into(),
            device: Device::Cpu,
            threads: 1,
            batch_size: 1,
            batch_timeout: Duration::ZERO,
        };
        // The first one's file comes once the second one is open.
        let (ready, wait) = bounded(1);
        let slow = std::thread::spawn(move || {
            Engine::shared(key("slow"), || {
                wait.recv_timeout(Duration::from_secs(60)).expect("the other one opens meanwhile");
                open()
            })
        });
        while lock(&SHARED).as_ref().is_none_or(|slots| !slots.contains_key(&key("slow"))) {
            std::thread::yield_now();
        }
        let quick = Engine::shared(key("quick"), open).unwrap();
        ready.send(()).unwrap();
        let slow = slow.join().unwrap().unwrap();
        // Whoever comes later gets what is there.
        let again = |model| Engine::shared(key(model), || panic!("it is open")).unwrap();
        assert!(Arc::ptr_eq(&again("slow"), &slow) && Arc::ptr_eq(&again("quick"), &quick));
        drop((slow, quick));
        Engine::shared(key("third"), open).unwrap();
        assert!(!lock(&SHARED).as_ref().unwrap().contains_key(&key("slow")), "what is gone is forgotten");
    }

    #[test]
    fn an_engine_whose_thread_did_not_start_answers() {
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/golden/vim_train_style.safetensors");
        let model = crate::open(file, &crate::Options::default()).unwrap();
        let idle = Engine {
            model,
            note: None,
            level: CpuLevel::Scalar,
            jobs: None,
            worker: None,
            timeout: Duration::ZERO,
            passes: Arc::default(),
            rows: Arc::default(),
            streams: Arc::default(),
        };
        let mut stream = Arc::new(idle).stream(1);
        for _ in 0..2 {
            let told = stream.run(1).unwrap_err().to_string();
            assert!(told.contains("its thread did not start"), "{told}");
            assert!(stream.submit(1).is_err() && stream.wait().is_err());
        }
    }
}

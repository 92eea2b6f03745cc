use super::Network;
use super::pass::{Pass, Place};
use super::weights::Weights;
use crate::engine::Device;
use crate::error::Error;
use crate::model::{Info, Model, Row, Scratch};
use crate::state::{State, StateLayout};
use ssm_kernels::Cx;
use ssm_kernels::cuda::card::{Graph, Memory, Staging};
use ssm_kernels::cuda::{Card, CardError, Ptr};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A model whose forward passes run on a card.
///
/// The state of a stream that has run lies on the card, at a slot of the pool, until somebody asks for it
/// ([`crate::State::settle`]): then it is copied back, laid out as on the processor. A state that was changed here goes there
/// before its stream's next pass.
pub struct OnCard {
    model: Arc<dyn Model>,
    home: Arc<Home>,
}

/// What a network has on its card.
pub(crate) struct Home {
    card: Arc<Card>,
    net: Box<dyn Network>,
    weights: Memory,
    /// Values of a state; 0 where nothing is remembered.
    state: usize,
    /// Slots that no stream has.
    free: Mutex<Vec<u32>>,
    /// Whoever queues holds this.
    works: Mutex<Works>,
}

/// Buffers, which grow with the passes that are seen.
struct Works {
    pool: Memory,
    slots: u32,
    /// Input, slots and rates of a pass, as they lie in `input`.
    outbound: Staging,
    inbound: Staging,
    /// One state.
    ferry: Staging,
    input: Memory,
    output: Memory,
    scratch: Memory,
    /// By streams and steps: `None` after the first pass, a graph from the second on.
    graphs: HashMap<(u32, u32), Option<Graph>>,
}

/// Pairs of streams and steps that are kept as graphs; beyond, all are forgotten.
const GRAPHS: usize = 64;

/// Where a stream's state lies on a card.
pub(crate) struct Seat {
    home: Arc<Home>,
    slot: u32,
    /// Whether the card's copy is the newer one, and not the process's.
    pub(crate) newer: bool,
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.home.free.lock().unwrap_or_else(PoisonError::into_inner).push(self.slot);
    }
}

impl Seat {
    /// Copies the state from the card.
    pub(crate) fn fetch(&self, data: &mut [f32]) -> Result<(), Error> {
        self.home.fetch(&mut self.home.works(), self.slot, data)
    }
}

/// Puts words behind each other into memory of a card.
pub(crate) fn upload(card: &Arc<Card>, words: &[u32]) -> Result<Memory, CardError> {
    let memory = card.memory(words.len())?;
    let mut staging = card.staging(words.len().min(1 << 20))?;
    for (i, part) in words.chunks(1 << 20).enumerate() {
        staging.values()?.iter_mut().zip(part).for_each(|(to, from)| *to = f32::from_bits(*from));
        card.write(&memory, i << 20, &staging, 0..part.len())?;
    }
    card.wait()?;
    Ok(memory)
}

impl Home {
    fn works(&self) -> MutexGuard<'_, Works> {
        self.works.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fetch(&self, works: &mut Works, slot: u32, data: &mut [f32]) -> Result<(), Error> {
        self.card.read(&works.pool, slot as usize * self.state, &mut works.ferry, 0..self.state)?;
        data.copy_from_slice(&works.ferry.values()?[..self.state]);
        Ok(())
    }

    /// Makes sure that a stream's state lies on the card, and says at which slot.
    fn seat(self: &Arc<Self>, works: &mut Works, state: &mut State) -> Result<u32, Error> {
        if self.state == 0 {
            return Ok(0);
        }
        let slot = match &state.seat {
            Some(seat) if seat.newer => return Ok(seat.slot),
            Some(seat) => seat.slot,
            None => {
                let slot = self.slot(works)?;
                state.seat = Some(Seat { home: self.clone(), slot, newer: false });
                slot
            }
        };
        works.ferry.values()?[..self.state].copy_from_slice(&state.data);
        self.card.write(&works.pool, slot as usize * self.state, &works.ferry, 0..self.state)?;
        Ok(slot)
    }

    /// A free slot; where there is none, the pool becomes twice as large.
    fn slot(&self, works: &mut Works) -> Result<u32, Error> {
        let free = || self.free.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(slot) = free().pop() {
            return Ok(slot);
        }
        let more = (2 * works.slots).max(8);
        let pool = self.card.memory(more as usize * self.state)?;
        self.card.copy(&pool, 0, &works.pool, 0..works.slots as usize * self.state)?;
        // Graphs know the old one.
        works.graphs.clear();
        works.pool = pool;
        free().extend((works.slots + 1..more).rev());
        Ok(std::mem::replace(&mut works.slots, more))
    }

    fn place(&self, works: &Works, rows: usize, inputs: usize) -> Place {
        let after = |values: usize| Ptr(works.input.ptr().0 + 4 * values as u64);
        Place {
            weights: self.weights.ptr(),
            scratch: works.scratch.ptr(),
            x: works.input.ptr(),
            y: works.output.ptr(),
            states: works.pool.ptr(),
            stride: self.state as u64,
            slots: after(inputs),
            rates: after(inputs + rows),
        }
    }

    /// Grows what is too small for a pass.
    fn fit(&self, works: &mut Works, rows: usize, len: usize, inputs: usize, outputs: usize) -> Result<(), Error> {
        let card = &self.card;
        let staged = inputs + 2 * rows;
        let counting = Pass::counting(card, self.place(works, rows, inputs), rows as u32, len as u32);
        self.net.queue(&counting)?;
        let grown = staged > works.input.len() || outputs > works.output.len() || counting.most() > works.scratch.len();
        if !grown {
            return Ok(());
        }
        works.graphs.clear();
        if staged > works.input.len() {
            (works.outbound, works.input) = (card.staging(staged)?, card.memory(staged)?);
        }
        if outputs > works.output.len() {
            (works.inbound, works.output) = (card.staging(outputs)?, card.memory(outputs)?);
        }
        if counting.most() > works.scratch.len() {
            works.scratch = card.memory(counting.most())?;
        }
        Ok(())
    }

    /// Steps `from .. from + len` of every row.
    fn pass(self: &Arc<Self>, model: &dyn Model, rows: &mut [Row], from: usize, len: usize) -> Result<(), Error> {
        let (b, n, out) = (rows.len(), self.net.input_len(), model.info().output.len());
        let (inputs, outputs) = (b * len * n, b * len * out);
        let works = &mut *self.works();
        let key = (b as u32, len as u32);
        if !works.graphs.contains_key(&key) {
            self.fit(works, b, len, inputs, outputs)?;
        }
        for (i, row) in rows.iter_mut().enumerate() {
            let slot = self.seat(works, &mut row.state)?;
            let staged = works.outbound.values()?;
            if row.there.is_none() {
                model.embed(row, from..from + len, &mut staged[i * len * n..][..len * n]);
            }
            staged[inputs + i] = f32::from_bits(slot);
            staged[inputs + b + i] = row.rate;
        }
        let (card, staged) = (&self.card, inputs + 2 * b);
        let first = if rows.iter().all(|row| row.there.is_some()) { inputs } else { 0 };
        card.write(&works.input, first, &works.outbound, first..staged)?;
        for (i, row) in rows.iter().enumerate() {
            if let Some(there) = &row.there {
                card.copy(&works.input, i * len * n, there.memory(), from * n..(from + len) * n)?;
            }
        }
        let place = self.place(works, b, inputs);
        let queue = || self.net.queue(&Pass::new(card, place, key.0, key.1));
        match works.graphs.get(&key) {
            Some(Some(graph)) => graph.replay()?,
            Some(None) => {
                let graph = card.record(queue)?;
                graph.replay()?;
                works.graphs.insert(key, Some(graph));
            }
            // The first time all kernels are loaded, which cannot be recorded.
            None => {
                queue()?;
                if works.graphs.len() == GRAPHS {
                    works.graphs.clear();
                }
                works.graphs.insert(key, None);
            }
        }
        card.read(&works.output, 0, &mut works.inbound, 0..outputs)?;
        let y = works.inbound.values()?;
        for (row, y) in rows.iter_mut().zip(y[..outputs].chunks_exact(len * out)) {
            row.y[from * out..][..len * out].copy_from_slice(y);
            if let Some(seat) = &mut row.state.seat {
                seat.newer = true;
            }
        }
        Ok(())
    }
}

impl OnCard {
    /// The model on a card; `None` where its network is not written for one.
    ///
    /// # Errors
    /// The card refuses, or has not enough memory.
    pub fn new(card: Arc<Card>, model: Arc<dyn Model>) -> Result<Option<Self>, CardError> {
        let mut weights = Weights::default();
        let Some(net) = model.network(&mut weights) else { return Ok(None) };
        let state = model.layout().len();
        let works = Works {
            pool: card.memory(0)?,
            slots: 0,
            outbound: card.staging(0)?,
            inbound: card.staging(0)?,
            ferry: card.staging(state)?,
            input: card.memory(0)?,
            output: card.memory(0)?,
            scratch: card.memory(0)?,
            graphs: HashMap::new(),
        };
        let weights = upload(&card, weights.words())?;
        let home = Home { card, net, weights, state, free: Mutex::default(), works: Mutex::new(works) };
        Ok(Some(Self { model, home: Arc::new(home) }))
    }

    /// The card.
    pub fn card(&self) -> &Arc<Card> {
        &self.home.card
    }
}

impl Model for OnCard {
    fn info(&self) -> &Info {
        self.model.info()
    }

    fn layout(&self) -> &StateLayout {
        self.model.layout()
    }

    /// On the processor.
    fn forward(&self, cx: &Cx, rows: &mut [Row], len: usize, scratch: &mut Scratch) {
        rows.iter_mut().for_each(|row| {
            row.state.settle_or_reset();
            // What a card does not give back is nothing to see.
            if row.settle().is_err() {
                row.x.fill(0.0);
            }
        });
        self.model.forward(cx, rows, len, scratch);
    }

    fn run(&self, cx: &Cx, rows: &mut [Row], len: usize, scratch: &mut Scratch) -> Result<(), Error> {
        if rows.is_empty() || len == 0 {
            return Ok(());
        }
        // A row's result does not depend on its batch.
        let own_rate = |row: &Row| self.home.net.trained_rate() && row.rate != 1.0;
        if rows.iter().any(own_rate) {
            for rows in rows.chunk_by_mut(|a, b| own_rate(a) == own_rate(b)) {
                if own_rate(&rows[0]) {
                    self.forward(cx, rows, len, scratch);
                } else {
                    self.run(cx, rows, len, scratch)?;
                }
            }
            return Ok(());
        }
        // Input that lies on another card comes here, a state that lies on another model's card moves; nothing is locked here
        // yet.
        for row in rows.iter_mut() {
            if row.there.as_ref().is_some_and(|there| there.index() != self.home.card.index()) {
                row.settle()?;
            }
        }
        for state in rows.iter_mut().map(|row| &mut row.state) {
            if state.seat.as_ref().is_some_and(|seat| !Arc::ptr_eq(&seat.home, &self.home)) {
                state.settle()?;
                state.seat = None;
            }
        }
        let at_once = if self.home.net.single_steps() { 1 } else { len };
        for from in (0..len).step_by(at_once) {
            self.home.pass(&*self.model, rows, from, at_once)?;
        }
        rows.iter_mut().for_each(|row| row.state.steps += len as u64);
        Ok(())
    }

    fn gap(&self, state: &mut State, periods: f64) {
        if periods > 0.0 {
            state.settle_or_reset();
            self.model.gap(state, periods);
        }
    }

    fn drain(&self, cx: &Cx, row: &mut Row, partial: usize, scratch: &mut Scratch) -> usize {
        row.state.settle_or_reset();
        self.model.drain(cx, row, partial, scratch)
    }

    fn drain_len(&self) -> usize {
        self.model.drain_len()
    }

    fn upstream_state(&self, state: &State, name: &str) -> Option<(Vec<usize>, Vec<f32>)> {
        self.model.upstream_state(&state.clone(), name)
    }

    fn device(&self) -> Device {
        Device::Cuda(self.home.card.index())
    }

    fn card(&self) -> Option<&Card> {
        Some(&self.home.card)
    }
}

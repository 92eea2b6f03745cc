//! The same way for frames that lie on a card.

use super::ImagePlan;
use crate::card::{CardInput, upload};
use crate::error::Error;
use ssm_kernels::cuda::card::{Context, Memory};
use ssm_kernels::cuda::{Card, CardError, Kind, Ptr, image};
use std::sync::Arc;

/// One plane of a frame on a card.
#[derive(Clone, Copy, Debug, Default)]
pub struct CardPlane {
    /// Its first byte.
    pub at: Ptr,
    /// Its bytes.
    pub bytes: usize,
    /// Bytes from one row to the next.
    pub stride: usize,
}

/// As [`ImagePlan`] on a card, by a queue of its own. A frame allocates nothing, but for frames of another context.
pub struct CardPlan {
    card: Arc<Card>,
    plan: ImagePlan,
    planes: Vec<PlaneTables>,
    /// Places and weights of the passes of all planes, then the table of bytes.
    tables: Memory,
    table: usize,
    /// Bytes between the passes of a plane.
    between: Memory,
    /// The resized parts of all planes.
    pixels: Memory,
    /// A plane that was brought from another context.
    ferry: Memory,
    input: CardInput,
}

/// Where the tables of a plane lie: columns and rows, first places and weights.
struct PlaneTables {
    columns: [usize; 2],
    rows: [usize; 2],
    /// First byte of its resized part.
    pixels: usize,
}

impl CardPlan {
    /// The plan for the card of this index.
    ///
    /// # Errors
    /// There is none, or it refuses.
    pub fn new(index: u32, plan: ImagePlan) -> Result<Self, Error> {
        if !plan.format.on_card() {
            return Err(Error::Input {
                expected: "a format that is read on a card".into(),
                got: format!("{:?}", plan.format),
            });
        }
        let card = Card::open(index)?;
        let (mut words, mut bytes) = (Vec::new(), 0);
        let mut put = |first: &[usize], weights: &[i32]| {
            let at = words.len();
            words.extend(first.iter().map(|f| *f as u32));
            words.extend(weights.iter().map(|w| w.cast_unsigned()));
            [at, at + first.len()]
        };
        let planes = plan.views.iter().map(|plane| {
            let (columns, rows) = (plane.resize.columns_plan(), plane.resize.rows_plan());
            let (columns, rows) = (put(columns.0, columns.1), put(rows.0, rows.1));
            let pixels = bytes;
            bytes += plane.resize.out_len();
            PlaneTables { columns, rows, pixels }
        });
        let planes = planes.collect();
        let table = words.len();
        words.extend(plan.table.iter().flatten().map(|v| v.to_bits()));
        let between = plan.views.iter().map(|p| p.resize.scratch_len()).max().unwrap_or(0);
        Ok(Self {
            planes,
            table,
            tables: upload(&card, &words)?,
            between: card.memory(between.div_ceil(4))?,
            pixels: card.memory(bytes.div_ceil(4))?,
            ferry: card.memory(0)?,
            input: CardInput::new(card.clone(), 3 * plan.to.0 * plan.to.1)?,
            plan,
            card,
        })
    }

    /// The card.
    pub fn card(&self) -> &Arc<Card> {
        &self.card
    }

    /// Makes a frame's input and waits for it; the frame's pixels must be there. Frames of another context than the
    /// card's own are copied on the card first.
    ///
    /// # Errors
    /// A plane is missing or too short, or the card refuses.
    pub fn run(&mut self, frame: &[CardPlane], context: &Context) -> Result<CardInput, Error> {
        self.plan.count(frame.len())?;
        let (card, plan) = (&self.card, &self.plan);
        let table = |at: usize| Ptr(self.tables.ptr().0 + 4 * at as u64);
        let pixels = |at: usize| Ptr(self.pixels.ptr().0 + at as u64);
        for ((plane, tables), from) in plan.views.iter().zip(&self.planes).zip(frame) {
            let bytes = plane.bytes(from.bytes, from.stride)?;
            let at = if card.is_home(context) {
                from.at
            } else {
                if self.ferry.len() < bytes.div_ceil(4) {
                    self.ferry = card.memory(bytes.div_ceil(4))?;
                }
                card.bring(&self.ferry, from.at, context, bytes)?;
                self.ferry.ptr()
            };
            let (first, weights, between) = (table(tables.columns[0]), table(tables.columns[1]), self.between.ptr());
            let stride = u32::try_from(from.stride).unwrap_or(u32::MAX);
            let columns =
                image::columns(&plane.resize, at, stride, first, weights, between).map_err(CardError::from)?;
            card.launch(&columns.1, &columns.0)?;
            let (first, weights) = (table(tables.rows[0]), table(tables.rows[1]));
            let rows = image::rows(&plane.resize, between, first, weights, pixels(tables.pixels));
            let rows = rows.map_err(CardError::from)?;
            card.launch(&rows.1, &rows.0)?;
        }
        let views = plan.format.views();
        let channels = plan.format.channels();
        let channel = channels.map(|(view, byte)| self.planes.get(view).map_or(0, |p| p.pixels) + byte);
        let step = channels.map(|(view, _)| views[view].bytes as u32);
        let (black, luma, weights) = plan.format.yuv().map(|yuv| yuv.weights()).unwrap_or_default();
        let (height, width) = (plan.to.0 as u32, plan.to.1 as u32);
        let planes = image::Patches {
            channel: channel.map(pixels),
            table: if plan.format.yuv().is_some() { Ptr::NONE } else { table(self.table) },
            y: self.input.memory().ptr(),
            image: 0,
            step,
            height,
            width,
            lines: height,
            patch: width,
            stride: 1,
            batch: 1,
            kind: Kind::F32,
            black,
            luma,
            wu: weights.map(|w| w.0),
            wv: weights.map(|w| w.1),
            mean: plan.mean,
            deviation: plan.std,
        };
        card.launch(&planes.launch().map_err(CardError::from)?, &planes)?;
        card.wait()?;
        Ok(self.input.clone())
    }
}

//! What is drawn: the last results of each element as rows, and their course as a timeline.

use super::canvas::{Brush, Canvas, Colour, Rect};
use super::font;
use crate::results::each;
use gst::ClockTime;
use std::collections::VecDeque;
use std::fmt::Write;

/// Elements whose results are shown at most.
const SOURCES: usize = 4;
/// Rows of one element at most.
pub(crate) const ROWS: usize = 16;
/// Steps that a timeline remembers.
const STEPS: usize = 2048;
/// Columns of a frame that a dot of letters is at least one in: they get no wider where a frame is upright.
const NARROW: usize = 240;
/// Letters of a label at most.
const LETTERS: usize = 28;
/// Events that a timeline remembers.
const MARKS: usize = 64;
/// How long an event's name stands in the corner.
const BANNER: ClockTime = ClockTime::from_mseconds(1500);
/// An element that has said nothing for so long is no longer shown.
const FORGET: ClockTime = ClockTime::from_seconds(5);
/// A step of the timeline stands until the next one, but no longer than this.
const HOLD: ClockTime = ClockTime::from_seconds(1);

const WHITE: Colour = [255, 255, 255];
const BLACK: Colour = [0, 0, 0];
const TRACK: Colour = [90, 90, 90];
/// Colours of classes; a class has the one of its index.
const PALETTE: [Colour; 8] = [
    [80, 200, 255],
    [255, 180, 60],
    [120, 230, 110],
    [255, 110, 150],
    [190, 150, 255],
    [255, 240, 90],
    [90, 235, 210],
    [255, 140, 90],
];

fn colour(index: u32) -> Colour {
    PALETTE[index as usize % PALETTE.len()]
}

/// What is shown.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Show {
    /// Rows of one element; 0: no panel.
    pub(crate) rows: usize,
    /// Whether the timeline is drawn.
    pub(crate) timeline: bool,
    /// Time from its left edge to its right one.
    pub(crate) span: ClockTime,
}

#[derive(Default)]
struct Row {
    index: u32,
    label: String,
    score: f32,
}

struct Step {
    time: ClockTime,
    index: u32,
    score: f32,
}

/// An event.
#[derive(PartialEq, Eq)]
struct Mark {
    start: ClockTime,
    end: ClockTime,
    class: u32,
}

/// An event that was told just now.
#[derive(Default)]
struct News {
    label: String,
    class: u32,
    told: ClockTime,
}

struct Source {
    element: String,
    seen: ClockTime,
    rows: Vec<Row>,
    used: usize,
    course: VecDeque<Step>,
    marks: VecDeque<Mark>,
    news: Option<News>,
}

/// What is remembered of the results. Once it has seen as many elements and as long labels as there are, it allocates
/// nothing.
#[derive(Default)]
pub(crate) struct Panel {
    sources: Vec<Source>,
    text: String,
}

impl Panel {
    /// Forgets everything.
    pub(crate) fn clear(&mut self) {
        self.sources.clear();
    }

    /// Notes the results in a buffer's meta. `now` is the frame's time.
    pub(crate) fn note(&mut self, results: &gst::StructureRef, now: ClockTime) {
        for result in each(results).into_iter().flatten() {
            self.note_one(result, now);
        }
    }

    fn note_one(&mut self, result: &gst::StructureRef, now: ClockTime) -> Option<()> {
        let element = result.get::<&str>("element").ok()?;
        let time = result.get::<u64>("pts").ok().filter(|ns| *ns < u64::MAX).map_or(now, ClockTime::from_nseconds);
        let speech = result.get::<f64>("speech").ok();
        let classes = result.value("classes").ok().and_then(|v| v.get::<gst::ArrayRef<'_>>().ok());
        if let Ok(event) = result.get::<&gst::StructureRef>("event") {
            return self.source(element, now)?.event(event, now);
        }
        if speech.is_none() && classes.is_none() {
            return None;
        }
        let source = self.source(element, now)?;
        source.used = 0;
        if let Some(score) = speech {
            source.row(0, "speech", score);
        }
        for class in classes.iter().flat_map(|c| c.iter()) {
            if let Ok(class) = class.get::<&gst::StructureRef>() {
                let label = class.get::<&str>("label").unwrap_or_default();
                source.row(class.get("index").unwrap_or(0), label, class.get("score").unwrap_or(0.0));
            }
        }
        if source.course.back().is_some_and(|last| last.time > time) {
            source.course.clear();
            source.marks.clear();
        }
        if source.course.len() == STEPS {
            source.course.pop_front();
        }
        let best = source.rows[..source.used].iter().reduce(|best, r| if r.score > best.score { r } else { best });
        let (index, score) = best.map_or((0, 0.0), |r| (r.index, r.score));
        source.course.push_back(Step { time, index, score });
        Some(())
    }

    /// The place of an element, an old or a new one; `None` if there are too many.
    fn source(&mut self, element: &str, now: ClockTime) -> Option<&mut Source> {
        let at = match self.sources.iter().position(|s| s.element == element) {
            Some(at) => at,
            None if self.sources.len() < SOURCES => {
                self.sources.push(Source {
                    element: element.into(),
                    seen: now,
                    rows: Vec::with_capacity(ROWS),
                    used: 0,
                    course: VecDeque::with_capacity(STEPS),
                    marks: VecDeque::with_capacity(MARKS),
                    news: None,
                });
                self.sources.len() - 1
            }
            None => return None,
        };
        let source = &mut self.sources[at];
        source.seen = now;
        Some(source)
    }

    /// Draws what is known at the time of a frame.
    pub(crate) fn draw(&mut self, canvas: &mut Canvas<'_>, brush: &Brush, show: &Show, now: ClockTime) {
        self.sources.retain(|s| now.saturating_sub(s.seen) <= FORGET && s.seen.saturating_sub(now) <= FORGET);
        if self.sources.is_empty() {
            return;
        }
        let (width, height) = brush.size();
        let dot = (height / 180).min(width / NARROW).max(1);
        if show.rows > 0 {
            self.rows(canvas, width, dot, show.rows);
            self.banner(canvas, brush.size(), dot, now);
        }
        if show.timeline {
            self.timeline(canvas, brush.size(), dot, show.span, now);
        }
    }

    fn rows(&mut self, canvas: &mut Canvas<'_>, width: usize, dot: usize, rows: usize) {
        // Classes come in any order: where not all of them fit, the best ones are shown.
        for source in self.sources.iter_mut().filter(|s| s.used > rows) {
            let used = source.used;
            source.rows[..used].sort_unstable_by(|a, b| b.score.total_cmp(&a.score));
        }
        let shown = |s: &Source| s.used.min(rows);
        let count: usize = self.sources.iter().map(shown).sum();
        let labels =
            self.sources.iter().flat_map(|s| &s.rows[..shown(s)]).map(|r| r.label.chars().count().min(LETTERS));
        let letters = labels.max().unwrap_or(0);
        // Long names end where the frame would.
        let beside = (48 + 2 * 4 + 4 * (font::WIDTH + 1) + 2 * 3 + 2 * 4) * dot;
        let letters = letters.min(width.saturating_sub(beside) / ((font::WIDTH + 1) * dot));
        if count == 0 {
            return;
        }
        let (pad, line, letter) = (3 * dot, (font::HEIGHT + 3) * dot, (font::WIDTH + 1) * dot);
        let (bar, gap) = (48 * dot, 4 * dot);
        let (x, mut y) = (4 * dot, 4 * dot);
        let width = letters * letter + gap + bar + gap + 4 * letter + 2 * pad;
        let between = (self.sources.len() - 1) * pad;
        canvas.fill(Rect { x, y, width, height: count * line + between + 2 * pad - 3 * dot }, BLACK, 180);
        y += pad;
        let x = x + pad;
        let at = x + letters * letter + gap;
        for source in &self.sources {
            for row in &source.rows[..shown(source)] {
                canvas.text(&row.label, (x, y), dot, letters, WHITE);
                let full = (bar as f32 * row.score.clamp(0.0, 1.0)).round() as usize;
                let track = Rect { x: at, y: y + dot, width: bar, height: 5 * dot };
                canvas.fill(track, TRACK, 255);
                canvas.fill(Rect { width: full, ..track }, colour(row.index), 255);
                self.text.clear();
                let _ = write!(self.text, "{:.2}", row.score.clamp(0.0, 1.0));
                canvas.text(&self.text, (at + bar + gap, y), dot, 4, WHITE);
                y += line;
            }
            y += pad;
        }
    }

    /// The name of the newest event, in the upper right corner.
    fn banner(&self, canvas: &mut Canvas<'_>, (width, _): (usize, usize), dot: usize, now: ClockTime) {
        let news = self.sources.iter().filter_map(|s| s.news.as_ref());
        let fresh = news.filter(|n| n.told <= now && now - n.told <= BANNER).max_by_key(|n| n.told);
        let Some(News { label, class, .. }) = fresh else { return };
        let dot = 2 * dot;
        let (pad, letter) = (3 * dot, (font::WIDTH + 1) * dot);
        let letters = label.chars().count().min(LETTERS).min(width.saturating_sub(3 * pad) / letter);
        let text = letters * letter;
        let Some(x) = width.checked_sub(text + 3 * pad).filter(|_| letters > 0) else { return };
        canvas.fill(Rect { x, y: pad, width: text + 2 * pad, height: font::HEIGHT * dot + 2 * pad }, BLACK, 180);
        canvas.text(label, (x + pad, 2 * pad), dot, letters, colour(*class));
    }

    /// A lane for each element: the height is the score of its best class, the colour that class; events are bands of the
    /// whole lane; the right edge is now.
    fn timeline(
        &self,
        canvas: &mut Canvas<'_>,
        (width, height): (usize, usize),
        dot: usize,
        span: ClockTime,
        now: ClockTime,
    ) {
        let lanes = self.sources.len();
        let lane = (height / 8 / lanes).max(4 * dot).min(height / lanes);
        let step = dot.max(2);
        let columns = width / step;
        canvas.fill(Rect { x: 0, y: height - lanes * lane, width, height: lanes * lane }, BLACK, 180);
        for (i, source) in self.sources.iter().enumerate() {
            let bottom = height - (lanes - 1 - i) * lane;
            let room = lane.saturating_sub(dot);
            let mut steps = source.course.iter().rev().peekable();
            for column in (0..columns).rev() {
                let back = (columns - 1 - column) as u64;
                let back = ClockTime::from_nseconds(span.nseconds() / columns as u64 * back);
                let Some(time) = now.checked_sub(back) else { break };
                while steps.next_if(|s| s.time > time).is_some() {}
                let Some(found) = steps.peek() else { break };
                if time - found.time <= HOLD {
                    let full = (room as f32 * found.score.clamp(0.0, 1.0)).round() as usize;
                    let rect = Rect { x: column * step, y: bottom - full, width: step, height: full };
                    canvas.fill(rect, colour(found.index), 230);
                }
            }
            for mark in &source.marks {
                // Places of the event from the right edge; one frame is a step wide.
                let back = |t: ClockTime| {
                    (now.saturating_sub(t).nseconds() / (span.nseconds() / columns.max(1) as u64).max(1)) as usize
                };
                let (from, to) = (back(mark.start), back(mark.end));
                if to < columns {
                    let left = columns.saturating_sub(from + 1);
                    let wide = (columns - to - left).max(1);
                    let rect = Rect { x: left * step, y: bottom - room, width: wide * step, height: room };
                    canvas.fill(rect, colour(mark.class), 120);
                }
            }
            // Half.
            canvas.fill(Rect { x: 0, y: bottom - room / 2, width, height: dot.div_ceil(2) }, WHITE, 70);
        }
    }
}

impl Source {
    fn event(&mut self, event: &gst::StructureRef, now: ClockTime) -> Option<()> {
        let time = |name: &str| event.get::<u64>(name).ok().filter(|ns| *ns < u64::MAX).map(ClockTime::from_nseconds);
        let class = event.get("class").ok()?;
        let mark = Mark { start: time("start")?, end: time("end")?, class };
        // Elements that repeat frames copy what lies on them.
        if self.marks.back() == Some(&mark) {
            return Some(());
        }
        if self.marks.len() == MARKS {
            self.marks.pop_front();
        }
        self.marks.push_back(mark);
        let news = self.news.get_or_insert_default();
        (news.class, news.told) = (class, now);
        news.label.clear();
        news.label.push_str(event.get::<&str>("kind").unwrap_or_default());
        Some(())
    }

    fn row(&mut self, index: u32, label: &str, score: f64) {
        if self.used == self.rows.len() && self.used < ROWS {
            self.rows.push(Row::default());
        }
        let score = score as f32;
        let row = match self.rows.get_mut(self.used) {
            Some(row) => {
                self.used += 1;
                row
            }
            // There are as many as can be shown: it takes the place of the weakest.
            None => match self.rows.iter_mut().min_by(|a, b| a.score.total_cmp(&b.score)) {
                Some(row) if row.score < score => row,
                _ => return,
            },
        };
        (row.index, row.score) = (index, score);
        row.label.clear();
        if label.is_empty() {
            let _ = write!(row.label, "class {index}");
        } else {
            row.label.push_str(label);
        }
    }
}

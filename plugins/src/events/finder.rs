//! From scores of each frame to events with a beginning and an end.
//!
//! A class called `cut` is an event of one frame: it is told where its score is at the threshold or above and the largest
//! of five frames. Every other class lasts: an event goes on while the largest score of these classes is at the lower
//! threshold or above, and is told if it reached the threshold; its kind is the class that had the most of it. Of a cut and a
//! longer event within two frames of it, the one with the larger score is told. A cut does not wait for the end of a longer
//! event for more than 250 frames.

use serde::{Deserialize, Serialize};
use std::collections::VecDeque;

/// The class that marks single frames.
const CUT: &str = "cut";
/// Classes that mark nothing.
const NOTHING: [&str; 2] = ["none", "background"];
/// Frames on each side that a cut's score is compared with.
const NEAR: usize = 2;
/// Frames that a cut waits for the end of a lasting event around it.
const PATIENCE: u64 = 250;

/// What the element's properties say.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rules {
    pub(crate) threshold: f64,
    pub(crate) low: f64,
    /// Shortest time from one cut to the next in ns.
    pub(crate) cooldown: u64,
}

/// What a class is taken for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Cut,
    Lasting,
    Nothing,
}

/// The classes of a model.
#[derive(Clone, Debug, Default)]
pub(crate) struct Kinds {
    roles: Vec<Role>,
}

impl Kinds {
    pub(crate) fn new<L: AsRef<str>>(labels: &[L], classes: usize) -> Self {
        let role = |i: usize| match labels.get(i).map(AsRef::as_ref) {
            Some(CUT) => Role::Cut,
            Some(name) if NOTHING.contains(&name) => Role::Nothing,
            _ => Role::Lasting,
        };
        Self { roles: (0..classes).map(role).collect() }
    }

    fn of(&self, role: Role) -> impl Iterator<Item = usize> {
        self.roles.iter().enumerate().filter(move |(_, r)| **r == role).map(|(i, _)| i)
    }
}

/// A frame: its number in the stream, its time in ns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Mark {
    pub(crate) frame: u64,
    pub(crate) pts: u64,
    /// Where it ends; `pts` or before where that is not known, as in states of earlier versions.
    #[serde(default)]
    pub(crate) end: u64,
}

/// Something happened.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Event {
    /// Index of the class.
    pub(crate) kind: usize,
    /// The last frame wholly of what was before.
    pub(crate) start: Mark,
    /// The first frame wholly of what comes after.
    pub(crate) end: Mark,
    /// Largest probability.
    pub(crate) score: f64,
}

impl Event {
    /// Time of the event: of a cut its first new frame, else the middle.
    pub(crate) fn pts(&self) -> u64 {
        let cut = self.end.frame == self.start.frame + 1;
        if cut { self.end.pts } else { self.start.pts.min(self.end.pts).midpoint(self.end.pts) }
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Cut {
    kind: usize,
    start: Mark,
    end: Mark,
    score: f64,
}

/// A stretch of frames of a lasting class.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Span {
    start: Mark,
    first: Mark,
    /// The first frame behind it, once it has ended.
    end: Option<Mark>,
    largest: f64,
    /// Sum of each class's probabilities.
    sums: Vec<f64>,
}

/// Frames and their scores on the way to events. A value: it goes into snapshots as text.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Finder {
    /// Frames that have no scores yet.
    waiting: VecDeque<Mark>,
    /// The last frames with the score and the class of their cut, oldest first.
    recent: VecDeque<(Mark, f64, usize)>,
    /// Time of the last cut that was told.
    last_cut: Option<u64>,
    cuts: Vec<Cut>,
    spans: VecDeque<Span>,
    frames: u64,
    /// The model's number of the last step.
    #[serde(default)]
    pub(crate) taken: u64,
}

impl Finder {
    /// One from its text; times and numbers that cannot be would overflow later.
    ///
    /// # Errors
    /// The text is not a finder's.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let finder: Self = serde_json::from_str(text).map_err(|e| e.to_string())?;
        let spans = finder.spans.iter().flat_map(|s| [Some(s.start), Some(s.first), s.end]).flatten();
        let cuts = finder.cuts.iter().flat_map(|c| [c.start, c.end]);
        let mut marks =
            finder.waiting.iter().copied().chain(finder.recent.iter().map(|r| r.0)).chain(spans).chain(cuts);
        let far = |n: u64| n >= 1 << 62;
        match marks.find(|m| far(m.frame) || far(m.pts) || far(m.end)) {
            Some(mark) => Err(format!("frame {} at {} ns", mark.frame, mark.pts)),
            None if far(finder.frames) => Err(format!("{} frames", finder.frames)),
            None => Ok(finder),
        }
    }

    /// A frame came, from `pts` to `end`, and the probabilities of the frame `look_ahead` before it, which is returned.
    pub(crate) fn step(
        &mut self,
        rules: &Rules,
        kinds: &Kinds,
        look_ahead: usize,
        (pts, end): (u64, u64),
        p: &[f32],
        out: &mut Vec<Event>,
    ) -> Option<Mark> {
        self.waiting.push_back(Mark { frame: self.frames, pts, end });
        self.frames += 1;
        if self.waiting.len() > look_ahead { self.score(rules, kinds, p, out) } else { None }
    }

    /// Probabilities of the oldest frame that has none, when no more frames come. Returns that frame.
    pub(crate) fn score(&mut self, rules: &Rules, kinds: &Kinds, p: &[f32], out: &mut Vec<Event>) -> Option<Mark> {
        let mark = self.waiting.pop_front()?;
        let at = |i: usize| p.get(i).map_or(0.0, |p| f64::from(*p));
        let best = |role: Role| {
            kinds.of(role).map(|i| (at(i), i)).fold((0.0, usize::MAX), |a, b| if b.0 > a.0 { b } else { a })
        };
        let (cut, kind) = best(Role::Cut);
        let before = self.recent.back().map_or(mark, |r| r.0);
        let lasting = best(Role::Lasting).0;
        match self.spans.back_mut().filter(|s| s.end.is_none()) {
            Some(span) if lasting < rules.low => span.end = Some(mark),
            Some(span) => {
                span.largest = span.largest.max(lasting);
                span.sums.iter_mut().enumerate().for_each(|(i, sum)| *sum += at(i));
            }
            None if lasting >= rules.low && lasting > 0.0 => {
                let sums = (0..kinds.roles.len()).map(at).collect();
                self.spans.push_back(Span { start: before, first: mark, end: None, largest: lasting, sums });
            }
            None => {}
        }
        self.recent.push_back((mark, cut, kind));
        if self.recent.len() > 2 * NEAR + 2 {
            self.recent.pop_front();
        }
        if let Some(middle) = self.recent.len().checked_sub(NEAR + 1) {
            self.judge(rules, middle);
        }
        self.tell(rules, kinds, mark.frame, out);
        Some(mark)
    }

    /// No more frames: what is open ends with the last one that came.
    pub(crate) fn end(&mut self, rules: &Rules, kinds: &Kinds, out: &mut Vec<Event>) {
        let n = self.recent.len();
        for middle in n.saturating_sub(NEAR)..n {
            self.judge(rules, middle);
        }
        if let Some((last, ..)) = self.recent.back().copied() {
            if let Some(span) = self.spans.back_mut().filter(|s| s.end.is_none()) {
                span.end = Some(last);
            }
            self.tell(rules, kinds, u64::MAX, out);
        }
        *self = Self::default();
    }

    /// Whether a frame of `recent` is a cut: all that it is compared with is there.
    fn judge(&mut self, rules: &Rules, middle: usize) {
        let (mark, score, kind) = self.recent[middle];
        let near = middle.saturating_sub(NEAR)..(middle + NEAR + 1).min(self.recent.len());
        // Of equal ones the first.
        let largest = near.clone().all(|i| self.recent[i].1 < score || i >= middle && self.recent[i].1 <= score);
        if middle > 0 && score >= rules.threshold && score > 0.0 && largest {
            self.cuts.push(Cut { kind, start: self.recent[middle - 1].0, end: mark, score });
        }
    }

    /// Tells what can no longer change, `now` being the newest frame with scores.
    fn tell(&mut self, rules: &Rules, kinds: &Kinds, now: u64, out: &mut Vec<Event>) {
        let near = NEAR as u64;
        let touches = |span: &Span, cut: &Cut| {
            cut.end.frame + near >= span.first.frame && span.end.is_none_or(|end| cut.end.frame <= end.frame + near)
        };
        while let Some(span) = self.spans.front() {
            // Cuts up to two frames behind the end are judged two frames later.
            let Some(end) = span.end.filter(|end| now == u64::MAX || now >= end.frame + 2 * near) else { break };
            let strongest = self.cuts.iter().filter(|c| touches(span, c)).map(|c| c.score).fold(0.0, f64::max);
            if span.largest >= rules.threshold && span.largest >= strongest {
                let lasting = kinds.of(Role::Lasting).map(|i| (span.sums.get(i).copied().unwrap_or(0.0), i));
                let kind = lasting.fold((f64::MIN, 0), |a, b| if b.0 > a.0 { b } else { a }).1;
                let event = Event { kind, start: span.start, end, score: span.largest };
                self.cuts.retain(|c| !touches(span, c));
                out.push(event);
            }
            self.spans.pop_front();
        }
        // A cut that no open or future stretch can touch.
        let spans = &self.spans;
        self.cuts.retain(|cut| {
            let waits = now.saturating_sub(cut.end.frame) < PATIENCE;
            let open = waits && (now < cut.end.frame + near || spans.iter().any(|s| touches(s, cut)));
            // One that the lasting event around it outdoes waits no longer, and is not told.
            let outdone = |s: &Span| touches(s, cut) && s.largest >= rules.threshold && s.largest >= cut.score;
            // A cut that lies ahead is of another clock: the state came from another process, or the stream went back.
            let since = self.last_cut.and_then(|last| cut.end.pts.checked_sub(last));
            if !open && since.is_none_or(|since| since >= rules.cooldown) && !spans.iter().any(outdone) {
                self.last_cut = Some(cut.end.pts);
                out.push(Event { kind: cut.kind, start: cut.start, end: cut.end, score: cut.score });
            }
            open
        });
        out.sort_by_key(|e| e.end.frame);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULES: Rules = Rules { threshold: 0.5, low: 0.25, cooldown: 200 };
    const FRAME: u64 = 40;

    fn kinds() -> Kinds {
        Kinds::new(&["cut", "dissolve", "fade"].map(str::to_owned), 3)
    }

    /// Events (kind, start frame, end frame) of scores in line with the frames; the scores come `lag` frames late.
    fn run(scores: &[[f32; 3]], lag: usize, save_at: Option<usize>) -> Vec<(usize, u64, u64)> {
        let (mut finder, mut out) = (Finder::default(), Vec::new());
        let n = scores.len();
        for t in 0..n + lag {
            let p = t.checked_sub(lag).map_or([0.9; 3], |t| scores[t]);
            if t < n {
                finder.step(&RULES, &kinds(), lag, (t as u64 * FRAME, 0), &p, &mut out);
            } else {
                finder.score(&RULES, &kinds(), &p, &mut out);
            }
            if save_at == Some(t) {
                let text = serde_json::to_string(&finder).expect("it is a value");
                finder = serde_json::from_str(&text).expect("it is its own text");
            }
        }
        finder.end(&RULES, &kinds(), &mut out);
        out.iter().map(|e| (e.kind, e.start.frame, e.end.frame)).collect()
    }

    fn quiet(n: usize) -> Vec<[f32; 3]> {
        vec![[0.01, 0.02, 0.0]; n]
    }

    #[test]
    fn a_cut_is_the_largest_score_around() {
        let mut s = quiet(40);
        (s[9][0], s[10][0], s[11][0]) = (0.6, 0.9, 0.9);
        s[30][0] = 0.49;
        for lag in [0, 8] {
            assert_eq!(run(&s, lag, None), [(0, 9, 10)]);
        }
        // At the very end, too, and never on the first frame.
        (s[39][0], s[0][0]) = (0.8, 0.99);
        assert_eq!(run(&s, 8, None), [(0, 9, 10), (0, 38, 39)]);
    }

    #[test]
    fn cuts_keep_their_distance() {
        let mut s = quiet(40);
        (s[10][0], s[13][0], s[16][0]) = (0.9, 0.9, 0.8);
        assert_eq!(run(&s, 2, None), [(0, 9, 10), (0, 15, 16)]);
    }

    #[test]
    fn a_stretch_ends_below_the_lower_threshold() {
        let mut s = quiet(60);
        for (t, s) in s.iter_mut().enumerate().take(30).skip(20) {
            (s[1], s[2]) = (0.3, if t < 24 { 0.6 } else { 0.1 });
        }
        s[40][2] = 0.4; // never reaches the threshold
        for lag in [0, 8] {
            assert_eq!(run(&s, lag, None), [(1, 19, 30)]);
        }
    }

    #[test]
    fn of_a_cut_and_a_stretch_the_stronger_is_told() {
        for (cut, at, want) in [
            (0.55, 24, vec![(2, 19, 30)]),
            (0.95, 24, vec![(0, 23, 24)]),
            (0.55, 32, vec![(2, 19, 30)]),
            (0.55, 18, vec![(2, 19, 30)]),
            (0.55, 33, vec![(2, 19, 30), (0, 32, 33)]),
            (0.55, 17, vec![(0, 16, 17), (2, 19, 30)]),
        ] {
            let mut s = quiet(60);
            s[20..30].iter_mut().for_each(|s| s[2] = 0.8);
            s[at][0] = cut;
            assert_eq!(run(&s, 4, None), want, "cut of {cut} at {at}");
        }
    }

    #[test]
    fn a_stretch_swallows_weaker_cuts_however_long_it_is() {
        let mut s = quiet(600);
        s[10..410].iter_mut().for_each(|s| s[1] = 0.99);
        s[100][0] = 0.9;
        assert_eq!(run(&s, 0, None), [(1, 9, 410)]);
    }

    #[test]
    fn a_cut_that_is_not_told_keeps_none_away() {
        let mut s = quiet(60);
        s[9..12].iter_mut().for_each(|s| s[1] = 0.97);
        // The first lies within the stretch's reach, and the stretch is the stronger one.
        (s[12][0], s[15][0]) = (0.6, 0.97);
        assert_eq!(run(&s, 0, None), [(1, 8, 12), (0, 14, 15)]);
    }

    #[test]
    fn the_clock_of_another_process_does_not_silence_cuts() {
        let (mut finder, mut out) = (Finder::default(), Vec::new());
        for (start, frames) in [(3_600_000, 20), (0, 20)] {
            for t in 0..frames {
                let p = [if t == 10 { 0.9 } else { 0.0 }, 0.0, 0.0];
                finder.step(&RULES, &kinds(), 0, ((start + t) * FRAME, 0), &p, &mut out);
            }
        }
        assert_eq!(out.len(), 2, "{out:?}");
    }

    #[test]
    fn a_stretch_without_end_withholds_no_cut() {
        let mut s = vec![[0.01, 0.3, 0.0]; 700];
        (s[100][0], s[500][0]) = (0.9, 0.9);
        let (mut finder, mut out) = (Finder::default(), Vec::new());
        for (t, p) in s.iter().enumerate() {
            finder.step(&RULES, &kinds(), 0, (t as u64 * FRAME, 0), p, &mut out);
            assert!(finder.cuts.len() <= 1);
            assert_eq!(out.len(), usize::from(t >= 350), "frame {t}");
        }
    }

    #[test]
    fn texts_that_no_finder_wrote_are_refused() {
        let good = serde_json::to_string(&Finder::default()).expect("it is a value");
        assert!(Finder::parse(&good).is_ok());
        let far = good.replace("\"frames\":0", &format!("\"frames\":{}", u64::MAX));
        let late = good.replace("\"waiting\":[]", &format!("\"waiting\":[{{\"frame\":1,\"pts\":{}}}]", u64::MAX));
        for bad in ["", "{}", &far, &late] {
            assert!(Finder::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn it_goes_on_from_its_text() {
        let mut s = quiet(60);
        s[20..30].iter_mut().for_each(|s| s[1] = 0.8);
        (s[10][0], s[28][0], s[45][0]) = (0.9, 0.6, 0.7);
        let want = run(&s, 8, None);
        assert_eq!(want, [(0, 9, 10), (1, 19, 30), (0, 44, 45)]);
        for at in 0..68 {
            assert_eq!(run(&s, 8, Some(at)), want, "saved behind frame {at}");
        }
    }
}

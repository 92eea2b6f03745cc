//! The stream of `ssmdenoise` between two caps, and its times.

use crate::results::Results;
use crate::timeline::Clock;
use gst::ClockTime;
use gst_audio::{AudioFormat, AudioInfo};
use ssm_models::AudioStream;

/// What flows: everything that belongs to the stream between two caps.
pub(super) struct Flow {
    pub(super) info: AudioInfo,
    pub(super) audio: AudioStream,
    pub(super) clock: Clock,
    /// Frames that the clock counted, out and in.
    pub(super) given: u64,
    pub(super) taken: u64,
    /// Whether the next output buffer begins anew.
    pub(super) discont: bool,
    /// Whether samples that are not finite are being seen, so that a stretch of them warns once.
    pub(super) warned: bool,
    /// Whether the model gives values that are not finite, so that a stretch of them warns once.
    pub(super) silent: bool,
    pub(super) samples: Vec<f32>,
    pub(super) out: Vec<f32>,
    /// Results that came with the samples inside.
    pub(super) results: Vec<Results>,
    /// Where samples without times go on behind a reset.
    pub(super) after: Option<ClockTime>,
}

impl Flow {
    /// What is inside comes out, completed with silence; the state is a `fresh` one then, or goes on.
    pub(super) fn empty(&mut self, fresh: bool) {
        if let (false, Some(after)) = (self.clock.has_time(), self.after) {
            self.begin(after);
        }
        if fresh {
            self.audio.drain(&mut self.out);
        } else {
            self.audio.gap(0, &mut self.out);
        }
    }

    /// Gives the stream a time: what is inside, of a snapshot or of buffers without times, lies before `pts`.
    pub(super) fn begin(&mut self, pts: ClockTime) {
        let inside = self.audio.inside() as u64;
        self.clock.begin(Some(pts), inside);
        (self.given, self.taken) = (0, inside);
    }

    /// Begins a new count of time; what is inside must have come out.
    pub(super) fn rebase(&mut self, pts: Option<ClockTime>) {
        self.clock.begin(pts, 0);
        (self.given, self.taken, self.after) = (0, 0, None);
    }

    /// As [`Flow::rebase`] for a reset: samples without times go on where the last ones ended.
    pub(super) fn restart(&mut self) {
        let after = self.clock.time(self.taken).or(self.after);
        self.rebase(None);
        self.after = after;
    }

    /// The frames in `out` as a buffer with its time; `None` if there are none.
    pub(super) fn take(&mut self) -> Result<Option<gst::Buffer>, glib::BoolError> {
        let frames = (self.out.len() / self.audio.channels()) as u64;
        if frames == 0 {
            return Ok(None);
        }
        let mut buffer = gst::Buffer::with_size(self.out.len() * self.info.bps() as usize)?;
        let b = buffer.make_mut();
        {
            let mut map = b.map_writable()?;
            if self.info.format() == AudioFormat::F32le {
                for (b, s) in map.as_chunks_mut::<4>().0.iter_mut().zip(&self.out) {
                    *b = s.to_le_bytes();
                }
            } else {
                for (b, s) in map.as_chunks_mut::<2>().0.iter_mut().zip(&self.out) {
                    *b = ((s * 32768.0).round().clamp(-32768.0, 32767.0) as i16).to_le_bytes();
                }
            }
        }
        let (pts, end) = (self.clock.time(self.given), self.clock.time(self.given + frames));
        b.set_pts(pts);
        b.set_duration(end.zip(pts).map(|(end, pts)| end.saturating_sub(pts)));
        if std::mem::take(&mut self.discont) {
            b.set_flags(gst::BufferFlags::DISCONT);
        }
        Results::attach(&self.results, b)?;
        self.results.clear();
        self.given += frames;
        self.out.clear();
        Ok(Some(buffer))
    }
}

//! What tests of elements that listen share: a harness with a bus, samples and times.

use crate::element::make;
use gst::ClockTime;
use gst::prelude::*;
use gst_check::Harness;
use gstssm::Results;

/// Caps of interleaved audio.
pub fn caps(format: &str, rate: u32, channels: i32) -> gst::Caps {
    let caps = gst::Caps::builder("audio/x-raw")
        .field("format", format)
        .field("rate", rate as i32)
        .field("channels", channels)
        .field("layout", "interleaved");
    let mask = gst::Bitmask::new((1 << channels) - 1);
    if channels > 1 { caps.field("channel-mask", mask).build() } else { caps.build() }
}

/// Samples as `F32LE`.
pub fn bytes(samples: &[f32]) -> Vec<u8> {
    samples.iter().flat_map(|s| s.to_le_bytes()).collect()
}

/// An element that listens, under test.
pub struct Listening {
    /// The harness around it.
    pub h: Harness,
    /// The element.
    pub element: gst::Element,
    bus: gst::Bus,
    bpf: usize,
    rate: u64,
    /// What came out of the element so far.
    pub out: Vec<u8>,
    /// The results on it.
    pub results: Vec<Results>,
}

impl Listening {
    /// The element playing, with caps.
    pub fn new(factory: &str, properties: &[(&str, &str)], format: &str, rate: u32, channels: i32) -> Self {
        let element = make(factory, properties);
        let mut h = Harness::with_element(&element, Some("sink"), Some("src"));
        h.set_caps(caps(format, rate, channels), caps(format, rate, channels));
        let bus = gst::Bus::new();
        element.set_bus(Some(&bus));
        let bpf = channels as usize * if format == "F32LE" { 4 } else { 2 };
        Self { h, element, bus, bpf, rate: rate.into(), out: vec![], results: vec![] }
    }

    /// Time of a sample.
    pub fn time(&self, sample: usize) -> ClockTime {
        ClockTime::from_nseconds(sample as u64 * 1_000_000_000 / self.rate)
    }

    /// Pushes one buffer and takes what comes out.
    pub fn push(&mut self, bytes: &[u8], pts: Option<ClockTime>) -> Result<(), gst::FlowError> {
        let mut buffer = gst::Buffer::from_mut_slice(bytes.to_vec());
        buffer.get_mut().expect("a new buffer").set_pts(pts);
        self.h.push(buffer)?;
        while let Some(buffer) = self.h.try_pull() {
            assert_eq!(buffer.pts(), pts);
            self.out.extend_from_slice(&buffer.map_readable().expect("readable"));
            self.results.extend(Results::of(&buffer));
        }
        Ok(())
    }

    /// Pushes a clip in pieces, times counted from `start`.
    pub fn pieces(&mut self, bytes: &[u8], cuts: &[usize], start: ClockTime) {
        let mut at = 0;
        for n in cuts {
            let pts = start + self.time(at);
            self.push(&bytes[at * self.bpf..(at + n) * self.bpf], Some(pts)).expect("flows");
            at += n;
        }
    }

    /// A flush, and a segment after it.
    pub fn flush(&mut self) {
        self.h.push_event(gst::event::FlushStart::new());
        self.h.push_event(gst::event::FlushStop::new(true));
        self.h.push_event(gst::event::Segment::new(gst::FormattedSegment::<ClockTime>::new().upcast_ref()));
    }

    /// The element messages of a name since the last call; errors and warnings are left out.
    pub fn messages(&self, name: &str) -> Vec<gst::Structure> {
        let mut found = vec![];
        while let Some(message) = self.bus.pop() {
            if let gst::MessageView::Element(e) = message.view() {
                found.extend(e.structure().filter(|s| s.name() == name).map(|s| s.to_owned()));
            }
        }
        found
    }

    /// The bus.
    pub fn bus(&self) -> &gst::Bus {
        &self.bus
    }
}

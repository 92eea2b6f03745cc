//! `ssmoverlay` as an application meets it: what is drawn where, in every format; what is left alone.

use gst::ClockTime;
use gst::prelude::*;
use gst_check::Harness;
use gstssm::META_NAME;
use ssm_tests::element::{complaint, make, run};

const FORMATS: [&str; 17] = [
    "RGB", "BGR", "RGBx", "BGRx", "xRGB", "xBGR", "RGBA", "BGRA", "ARGB", "ABGR", "GRAY8", "I420", "NV12", "YV12",
    "NV21", "YUY2", "UYVY",
];

struct Bench {
    h: Harness,
    element: gst::Element,
    size: (usize, usize),
    format: &'static str,
}

/// A result as the documentation describes it.
fn result(element: &str, pts: ClockTime, classes: &[(u32, &str, f64)]) -> gst::Structure {
    let classes = classes.iter().map(|(index, label, score)| {
        let class = gst::Structure::builder("class").field("index", index).field("score", score);
        class.field_if("label", *label, !label.is_empty()).build().to_send_value()
    });
    gst::Structure::builder("result")
        .field("version", 1u32)
        .field("kind", "classes")
        .field("element", element)
        .field("pts", pts.nseconds())
        .field("step", 1u64)
        .field("classes", gst::Array::from_values(classes))
        .build()
}

impl Bench {
    fn new(format: &'static str, size: (usize, usize), properties: &[(&str, &str)]) -> Self {
        let element = make("ssmoverlay", properties);
        let mut h = Harness::with_element(&element, Some("sink"), Some("src"));
        let caps = gst::Caps::builder("video/x-raw")
            .field("format", format)
            .field("width", size.0 as i32)
            .field("height", size.1 as i32)
            .field("framerate", gst::Fraction::new(25, 1))
            .build();
        h.set_caps(caps.clone(), caps);
        Self { h, element, size, format }
    }

    fn bytes(&self) -> usize {
        let pixels = self.size.0 * self.size.1;
        match self.format {
            "RGB" | "BGR" => pixels * 3,
            "GRAY8" => pixels,
            "I420" | "NV12" | "YV12" | "NV21" => pixels * 3 / 2,
            "YUY2" | "UYVY" => pixels * 2,
            _ => pixels * 4,
        }
    }

    /// A frame of one value with results; returns its bytes as they come out.
    fn frame(&mut self, value: u8, pts: ClockTime, results: &[gst::Structure]) -> Vec<u8> {
        let mut buffer = gst::Buffer::from_mut_slice(vec![value; self.bytes()]);
        let edit = buffer.get_mut().expect("a new buffer");
        edit.set_pts(pts);
        if !results.is_empty() {
            let mut meta = gst::meta::CustomMeta::add(edit, META_NAME).expect("the meta is known");
            let results = results.iter().map(|r| r.to_send_value());
            meta.mut_structure().set("results", gst::Array::from_values(results));
        }
        self.h.push(buffer).expect("flows");
        self.h.pull().expect("a buffer comes out").map_readable().expect("readable").to_vec()
    }

    /// Brightness of a pixel: luma, or the green of R, G, B.
    fn at(&self, bytes: &[u8], x: usize, y: usize) -> u8 {
        let i = y * self.size.0 + x;
        match self.format {
            "RGB" | "BGR" => bytes[3 * i + 1],
            "GRAY8" | "I420" | "NV12" | "YV12" | "NV21" => bytes[i],
            "YUY2" => bytes[2 * i],
            "UYVY" => bytes[2 * i + 1],
            "RGBx" | "BGRx" | "RGBA" | "BGRA" => bytes[4 * i + 1],
            _ => bytes[4 * i + 2],
        }
    }
}

#[test]
fn rows_and_timeline_are_drawn_and_the_rest_is_left_alone() {
    for format in FORMATS {
        // 360 lines: a dot is two pixels.
        let mut b = Bench::new(format, (640, 360), &[]);
        let untouched = b.frame(120, ClockTime::ZERO, &[]);
        assert!(untouched.iter().all(|v| *v == 120), "{format}: without results nothing is drawn");
        let classes = [(0, "LLLL", 1.0), (1, "a", 0.0)];
        let drawn = b.frame(120, ClockTime::from_mseconds(40), &[result("e", ClockTime::from_mseconds(40), &classes)]);
        let at = |x, y| b.at(&drawn, x, y);
        // The first letter begins at dot (7, 7): an upright stroke of seven dots and a bar to the right at its foot.
        let white = at(14, 14);
        assert!(white > 225, "{format}: white is {white}");
        assert!((0..14).all(|y| at(14, 14 + y) == white && at(15, 14 + y) == white), "{format}: the upright of L");
        assert!((0..10).all(|x| at(14 + x, 26) == white), "{format}: the foot of L");
        let dark = at(18, 16);
        assert!(dark < 70, "{format}: the panel is dark, not {dark}");
        assert!((1..11).all(|y| at(24, 14 + y) == dark), "{format}: between two letters");
        // Behind the labels (4 letters of 6 dots, a gap of 4): a full bar and an empty one.
        let (bar, first, second) = (2 * (7 + 24 + 4), 2 * (7 + 3), 2 * (7 + 10 + 3));
        assert!((0..95).all(|x| at(bar + x, first) == at(bar, first)), "{format}: a full bar");
        assert!((0..95).all(|x| at(bar + x, second) == at(bar, second)), "{format}: an empty bar");
        assert_ne!(at(bar, first), at(bar, second), "{format}");
        // The timeline: the newest column reaches up, what is before the stream began is empty.
        assert!(at(639, 330) != at(300, 330), "{format}: the newest step is drawn");
        assert_eq!(at(300, 330), at(100, 330), "{format}: nothing was before");
        assert!(at(300, 330) < 70, "{format}: the timeline is dark");
        // Between the two, and to the right of the rows, every byte is as it was.
        let whole = |y: usize| (0..640).all(|x| at(x, y) == 120);
        assert!((100..310).all(whole) && (0..4).all(whole), "{format}: the middle was drawn on");
        assert!((0..300).all(|y| (300..640).all(|x| at(x, y) == 120)), "{format}: the right was drawn on");
        if format.len() == 4 && format.contains(['A', 'x']) && format != "GRAY8" {
            let alpha = if format.starts_with(['A', 'x']) { 0 } else { 3 };
            let fourth = |x: usize, y: usize| drawn[(y * 640 + x) * 4 + alpha];
            // A byte that says nothing stays; letters are opaque, and what is not drawn on is as clear as it was.
            let letter = if format.contains('A') { 255 } else { 120 };
            assert_eq!(fourth(14, 14), letter, "{format}: the fourth byte of a letter");
            assert!(
                (100..310).all(|y| (0..640).all(|x| fourth(x, y) == 120)),
                "{format}: the fourth byte of the middle"
            );
        }
    }
}

#[test]
fn of_many_classes_the_best_are_shown() {
    let time = ClockTime::from_mseconds(40);
    // In the order of the model, as `ssmevents` gives them.
    let many = |best: u32| {
        let all: Vec<(u32, &str, f64)> = (0..40).map(|i| (i, "a", if i == best { 1.0 } else { 0.0 })).collect();
        result("e", time, &all)
    };
    for best in [2, 9, 33] {
        let mut b = Bench::new("RGB", (640, 360), &[]);
        let drawn = b.frame(0, time, &[many(best)]);
        // The newest column of the lane reaches up, and the first row's bar is full.
        assert!(b.at(&drawn, 638, 325) > 60, "class {best} in the lane");
        let full = 2 * (7 + 6 + 4);
        assert!((0..95).all(|x| b.at(&drawn, full + x, 20) == b.at(&drawn, full, 20)), "class {best} in the first row");
    }
}

#[test]
fn an_upright_frame_has_its_bars_and_names() {
    let mut b = Bench::new("RGB", (360, 640), &[]);
    let time = ClockTime::from_mseconds(40);
    let event = gst::Structure::builder("event").field("kind", "dissolve").field("class", 1u32).field("score", 0.9);
    let event = event.field("start", 0u64).field("end", time.nseconds()).build();
    let told = gst::Structure::builder("result").field("element", "f").field("pts", time.nseconds());
    let told = told.field("event", event.to_send_value()).build();
    let drawn = b.frame(0, time, &[result("e", time, &[(0, "golden retriever", 1.0)]), told]);
    let lit = |from: usize, to: usize, rows: std::ops::Range<usize>| {
        rows.map(|y| (from..to).filter(|x| b.at(&drawn, *x, y) > 60).count()).sum::<usize>()
    };
    assert!(lit(120, 240, 0..40) > 100, "the bar");
    assert!(lit(240, 360, 0..40) > 60, "the probability and the name");
    let mut again = Bench::new("RGB", (200, 640), &[]);
    assert!(again.frame(0, time, &[result("e", time, &[(0, &"long ".repeat(9), 1.0)])]).iter().any(|v| *v > 200));
}

#[test]
fn colours_agree_between_formats() {
    // Through videoconvert the bar has the same colour, whichever format it was drawn in.
    let bar = |format: &'static str| {
        let mut b = Bench::new(format, (640, 360), &[("timeline", "false")]);
        let drawn = b.frame(16, ClockTime::ZERO, &[result("e", ClockTime::ZERO, &[(1, "LLLL", 1.0)])]);
        let (x, y, w, n) = (2 * (7 + 24 + 4) + 20, 20, 640, 640 * 360);
        let yuv = |y: f32, u: f32, v: f32| {
            // BT.601, limited range.
            let (y, u, v) = (1.164_383 * (y - 16.0), u - 128.0, v - 128.0);
            [y + 1.596_027 * v, y - 0.391_762 * u - 0.812_968 * v, y + 2.017_232 * u]
        };
        let f = |i: usize| f32::from(drawn[i]);
        let (i, half) = (y * w + x, (y / 2) * (w / 2) + x / 2);
        match format {
            "I420" => yuv(f(i), f(n + half), f(n + n / 4 + half)),
            "NV12" => yuv(f(i), f(n + 2 * half), f(n + 2 * half + 1)),
            "BGR" => [f(3 * i + 2), f(3 * i + 1), f(3 * i)],
            _ => [f(3 * i), f(3 * i + 1), f(3 * i + 2)],
        }
    };
    let rgb = bar("RGB");
    assert_eq!(rgb, [255.0, 180.0, 60.0]);
    assert_eq!(bar("BGR"), rgb);
    for format in ["I420", "NV12"] {
        let got = bar(format);
        assert!(got.iter().zip(rgb).all(|(a, b)| (a - b).abs() < 3.0), "{format}: {got:?}");
    }
}

#[test]
fn colour_does_not_bleed_over_odd_edges() {
    // 180 lines: a dot is one pixel, the bar begins at pixel 35, so at the colour sample of pixel 36.
    let mut b = Bench::new("I420", (320, 180), &[("timeline", "false")]);
    let drawn = b.frame(16, ClockTime::ZERO, &[result("e", ClockTime::ZERO, &[(1, "LLLL", 1.0)])]);
    let u = |x: usize| drawn[320 * 180 + 5 * 160 + x];
    assert_eq!(u(17), u(16), "the panel before the bar");
    assert_ne!(u(18), u(17), "the bar");
}

#[test]
fn the_timeline_scrolls_and_a_flush_clears() {
    let mut b = Bench::new("GRAY8", (640, 360), &[("rows", "0"), ("timeline-span", "1000000000")]);
    let ms = ClockTime::from_mseconds;
    // Full for 200 ms, then empty.
    let mut last = vec![];
    for i in 0..25 {
        let score = if i < 5 { 1.0 } else { 0.0 };
        last = b.frame(120, ms(40 * i), &[result("e", ms(40 * i), &[(0, "x", score)])]);
    }
    let lit = |x: usize, bytes: &[u8]| b.at(bytes, x, 330) > 100;
    // The right edge is 960 ms, the left one -40 ms: 0 to 200 ms lie from pixel 26 to 154.
    let edge = |ms: i64| (640 * (ms + 40) / 1000) as usize;
    assert!((edge(0) + 6..edge(200) - 6).all(|x| lit(x, &last)), "the first steps moved to the left");
    assert!((edge(200) + 6..640).all(|x| !lit(x, &last)) && !lit(edge(0) - 6, &last));
    assert!(b.at(&last, 20, 20) == 120, "no rows were asked for");
    // A frame without results shows the last ones; after a flush there is nothing.
    let still = b.frame(120, ms(1000), &[]);
    assert_ne!(b.at(&still, 600, 355), 120);
    b.h.push_event(gst::event::FlushStart::new());
    b.h.push_event(gst::event::FlushStop::new(true));
    b.h.push_event(gst::event::Segment::new(gst::FormattedSegment::<ClockTime>::new().upcast_ref()));
    assert!(b.frame(120, ms(1040), &[]).iter().all(|v| *v == 120), "a flush clears");
}

#[test]
fn any_size_and_any_text_can_be_drawn() {
    for (width, height) in [(8, 2), (8, 4), (8, 300), (2000, 8), (64, 64), (320, 180)] {
        for format in ["RGBx", "I420", "NV12", "GRAY8"] {
            let mut b = Bench::new(format, (width, height), &[]);
            let long = "a label that is longer than any frame is wide — and not ASCII: Ünïcödé";
            let classes: Vec<(u32, &str, f64)> = (0..40).map(|i| (i, long, f64::from(i) - 3.0)).collect();
            let results: Vec<_> = ["a", "b", "c", "d", "e", "f"].map(|e| result(e, ClockTime::ZERO, &classes)).into();
            let nan = result("a", ClockTime::ZERO, &[(9, "", f64::NAN)]);
            for (i, results) in [&results[..], &[nan], &[gst::Structure::new_empty("result")]].into_iter().enumerate() {
                b.frame(50, ClockTime::from_mseconds(40 * i as u64), results);
            }
        }
    }
    let mut b = Bench::new("RGB", (64, 64), &[]);
    let bus = gst::Bus::new();
    b.element.set_bus(Some(&bus));
    b.h.push(gst::Buffer::from_mut_slice(vec![0; 10])).expect("a stray frame passes");
    assert!(complaint(&bus, gst::MessageType::Warning).contains("got 10; nothing is drawn on it"));
}

#[test]
fn a_pipeline_plays() {
    let folder = ssm_tests::element::Folder::new("overlay");
    let (_, path) = folder.model("vim", 1);
    for (format, size) in
        [("I420", "320,height=240"), ("I420", "1,height=1"), ("NV12", "33,height=17"), ("BGR", "7,height=301")]
    {
        run(&format!(
            "videotestsrc num-buffers=5 ! video/x-raw,format={format},width={size} ! ssmclassify model={path} ! queue ! \
             ssmoverlay ! videoconvert ! video/x-raw,format=RGB ! fakesink"
        ));
    }
}

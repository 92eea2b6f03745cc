//! LATENCY queries are answered exactly: what the element adds, to what is before it.

use gst::ClockTime;
use gst::prelude::*;
use gst_check::Harness;
use ssm_tests::audio::caps;
use ssm_tests::element::{Folder, init, make};

#[test]
fn elements_that_let_the_media_pass_add_none() {
    init();
    let folder = Folder::new("latency-none");
    let ((_, vim), (f, aum)) = (folder.model("vim", 1), folder.model("aum", 4));
    let ssm_models::Signal::Samples { rate, .. } = ssm_models::open(
        &aum,
        &ssm_models::Options { listen: ssm_models::Listen::Samples(1), ..ssm_models::Options::default() },
    )
    .expect("it opens")
    .info()
    .input
    else {
        panic!("no samples: {:?}", f.config)
    };
    let video = gst::Caps::builder("video/x-raw")
        .field("format", "RGB")
        .field("width", 32)
        .field("height", 32)
        .field("framerate", gst::Fraction::new(25, 1))
        .build();
    for (factory, model, caps) in [
        ("ssmclassify", Some(&*vim), video.clone()),
        ("ssmembed", Some(&*vim), video.clone()),
        ("ssmevents", None, video.clone()),
        ("ssmvad", None, caps("F32LE", 16_000, 1)),
        ("ssmaudiotag", Some(&*aum), caps("F32LE", rate, 1)),
        ("ssmembed", Some("builtin:denoise"), caps("F32LE", 16_000, 1)),
        ("ssmoverlay", None, video),
    ] {
        let element = make(factory, &model.map(|m| ("model", m)).into_iter().collect::<Vec<_>>());
        let mut h = Harness::with_element(&element, Some("sink"), Some("src"));
        h.set_caps(caps.clone(), caps);
        h.set_upstream_latency(ClockTime::from_mseconds(7));
        assert_eq!(h.query_latency(), Some(ClockTime::from_mseconds(7)), "{factory}");
        if element.has_property("latency-ns") {
            assert_eq!(element.property::<u64>("latency-ns"), 0, "{factory}");
        }
    }
}

/// Whether it is live, least and largest latency.
fn latency(pad: &gst::Pad) -> (bool, ClockTime, Option<ClockTime>) {
    let mut query = gst::query::Latency::new();
    assert!(pad.query(&mut query), "{} answers", pad.name());
    query.result()
}

#[test]
fn a_live_pipeline_waits_as_long_as_its_elements_take() {
    init();
    let folder = Folder::new("latency-live");
    let models = ["cleanumamba", "band_mask"].map(|family| folder.model(family, 1).1);
    for model in models.iter().map(String::as_str).chain(["builtin:denoise"]) {
        let line = format!(
            "audiotestsrc is-live=true name=src ! audio/x-raw,rate=16000,channels=1 ! ssmvad name=c batch-timeout=3000000 ! ssmdenoise name=a model={model} ! \
             ssmvad ! ssmdenoise name=b ! fakesink sync=true processing-deadline=0 name=sink"
        );
        let pipeline =
            gst::parse::launch(&line).expect("the line parses").downcast::<gst::Pipeline>().expect("a pipeline");
        let bus = pipeline.bus().expect("a pipeline has a bus");
        pipeline.set_state(gst::State::Playing).expect("it plays");
        let done = [gst::MessageType::AsyncDone, gst::MessageType::Error];
        let message = bus.timed_pop_filtered(ClockTime::from_seconds(60), &done).expect("a buffer came through");
        assert_eq!(message.type_(), gst::MessageType::AsyncDone);
        let pad = |element: &str, pad: &str| {
            pipeline.by_name(element).and_then(|e| e.static_pad(pad)).expect("the pad is there")
        };
        let own = |element: &str| pipeline.by_name(element).expect("it is there").property::<u64>("latency-ns");
        let (added, source) = (own("a") + own("b") + own("c"), latency(&pad("src", "src")));
        assert!(own("a") > 0 && own("b") > 0 && own("c") == 3_000_000);
        let at_sink = latency(&pad("sink", "sink").peer().expect("linked"));
        let expected = ClockTime::from_nseconds(added);
        assert_eq!(at_sink, (true, source.1 + expected, source.2.map(|max| max + expected)), "{model}");
        // What the pipeline has set the sinks to.
        let configured = pipeline.latency().or_else(|| {
            let mut query = gst::query::Latency::new();
            pipeline.query(&mut query).then(|| query.result().1)
        });
        assert_eq!(configured, Some(source.1 + expected), "{model}");
        pipeline.set_state(gst::State::Null).expect("back to NULL");
    }
}

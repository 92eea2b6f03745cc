//! A stream of which nothing was found ends with one message that says why; any other one with none.

use ssm_tests::element::{Folder, messages};

/// Texts of the INFO messages up to the end of stream.
fn infos(line: &str) -> Vec<String> {
    let text = |m: gst::Message| match m.view() {
        gst::MessageView::Info(i) => Some(i.error().to_string()),
        _ => None,
    };
    messages(line).into_iter().filter_map(text).collect()
}

#[test]
fn nothing_is_told_with_its_reason() {
    let folder = Folder::new("nothing");
    let ((_, vim), (_, aum)) = (folder.model("vim", 1), folder.model("aum", 4));
    let frames = "videotestsrc num-buffers=4 ! video/x-raw,format=RGB,width=32,height=32";
    let quiet = "audiotestsrc wave=silence num-buffers=8 ! audio/x-raw,rate=16000,channels=1";
    let short = "audiotestsrc num-buffers=1 samplesperbuffer=10 ! audio/x-raw,rate=16000,channels=1";
    for (line, reason) in [
        (format!("{frames} ! ssmclassify model={vim} ! fakesink"), None),
        (format!("{frames} ! ssmclassify model={vim} threshold=1 ! fakesink"), Some("threshold=1 in 4 steps")),
        (format!("{frames} ! ssmembed model={vim} ! fakesink"), None),
        (format!("{frames} ! ssmevents ! fakesink"), Some("no event reached threshold=0.5 in ")),
        (format!("{quiet} ! ssmvad ! fakesink"), Some("no speech of threshold=0.5")),
        (format!("{quiet} ! ssmvad post-messages=false ! fakesink"), Some("no speech of threshold=0.5")),
        (format!("{quiet} ! ssmvad threshold=0 ! fakesink"), None),
        (format!("{short} ! ssmembed model=builtin:denoise ! fakesink"), None),
        (format!("{short} ! ssmdenoise ! fakesink"), None),
        (
            format!(
                "audiotestsrc num-buffers=20 ! audioconvert ! audioresample ! ssmaudiotag model={aum} threshold=1 ! fakesink"
            ),
            Some("threshold=1 in"),
        ),
        (format!("{frames} ! identity drop-probability=1 ! ssmclassify model={vim} ! fakesink"), None),
    ] {
        let infos = infos(&line);
        match reason {
            None => assert!(infos.is_empty(), "{line}: {infos:?}"),
            Some(reason) => assert!(infos.len() == 1 && infos[0].contains(reason), "{line}: {infos:?}"),
        }
    }
}

#[test]
fn a_stream_without_a_step_says_so() {
    let folder = Folder::new("no-step");
    let state = folder.file("state");
    let line = format!(
        "audiotestsrc num-buffers=1 samplesperbuffer=10 ! audio/x-raw,rate=16000,channels=1 ! ssmvad state-out={state} ! \
         fakesink"
    );
    let infos = infos(&line);
    assert!(infos.len() == 1 && infos[0].contains("160 samples at 16000 Hz, fewer came"), "{infos:?}");
}

//! Every kind of line that `ssmjson` writes is what `docs/results.schema.json` says, and what is not is refused.

use serde_json::{Value, json};
use ssm_tests::element::{Folder, run};
use ssm_tests::schema::fault;
use std::collections::BTreeMap;
use std::path::Path;

fn schema() -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/results.schema.json");
    serde_json::from_str(&std::fs::read_to_string(path).expect("the schema is there")).expect("JSON")
}

#[test]
fn every_line_is_what_the_schema_says() {
    let (schema, folder) = (schema(), Folder::new("schema"));
    let ((vim, vim_path), (_, aum)) = (folder.model("vim", 1), folder.model("aum", 4));
    let classes = vim.open(ssm_models::kernels::CpuLevel::best()).expect("it opens").info().output.len();
    let labels = folder.file("labels.txt");
    std::fs::write(&labels, "a name\n".repeat(classes)).expect("a temporary file");
    let frames = "videotestsrc num-buffers=8 ! video/x-raw,format=RGB,width=32,height=32";
    let audio = "audiotestsrc num-buffers=20 ! audioconvert ! audioresample";
    let mut seen = BTreeMap::new();
    for (line, format) in [
        (format!("{frames} ! ssmclassify model={vim_path}"), "numbers"),
        (format!("{frames} ! ssmclassify model={vim_path} labels-file={labels}"), "numbers"),
        (format!("{frames} ! ssmclassify model={vim_path} threshold=1"), "numbers"),
        (format!("{frames} ! ssmevents threshold=0 cooldown=0"), "numbers"),
        (format!("{frames} ! ssmembed model={vim_path}"), "numbers"),
        (format!("{frames} ! ssmembed model={vim_path}"), "base64"),
        (format!("{audio} ! ssmaudiotag model={aum}"), "numbers"),
        (format!("{audio} ! ssmvad"), "numbers"),
        (format!("{audio} ! ssmembed model=builtin:denoise"), "base64"),
    ] {
        let out = folder.file("lines.jsonl");
        run(&format!("{line} ! ssmjson format={format} ! filesink location={out}"));
        let text = std::fs::read_to_string(&out).expect("the file is there");
        for written in text.lines() {
            let written: Value = serde_json::from_str(written).expect("JSON");
            assert_eq!(fault(&schema, &written), None, "{line}");
            let kind = written["kind"].as_str().expect("a kind").to_owned();
            *seen.entry((kind, format)).or_insert(0) += 1;
        }
    }
    let kinds: Vec<(&str, &str)> = seen.keys().map(|(kind, format)| (kind.as_str(), *format)).collect();
    assert_eq!(
        kinds,
        [
            ("classes", "numbers"),
            ("event", "numbers"),
            ("speech", "numbers"),
            ("vector", "base64"),
            ("vector", "numbers")
        ]
    );
}

#[test]
fn what_is_not_a_line_is_refused() {
    let schema = schema();
    let good = [
        json!({"version": 1, "kind": "classes", "element": "a", "pts": 5, "duration": null, "step": 1,
            "classes": [{"index": 3, "label": "x", "score": 0.5}]}),
        json!({"version": 1, "kind": "speech", "element": "a", "pts": 5, "duration": 1, "step": 1, "speech": 1}),
        json!({"version": 1, "kind": "vector", "element": "a", "pts": null, "duration": 1, "step": 1, "vector": [-1.5]}),
        json!({"version": 1, "kind": "event", "element": "a", "pts": 5, "duration": 1, "step": 0,
            "event": {"kind": "cut", "class": 1, "score": 0.9, "start": 1, "end": 2}}),
    ];
    for line in &good {
        assert_eq!(fault(&schema, line), None);
        let fields = line.as_object().expect("an object");
        for name in fields.keys() {
            let mut less = fields.clone();
            less.remove(name);
            assert!(fault(&schema, &Value::Object(less)).is_some(), "{line} without {name}");
            let mut wrong = fields.clone();
            wrong.insert(name.clone(), json!(true));
            assert!(fault(&schema, &Value::Object(wrong)).is_some(), "{line} with another {name}");
        }
        let mut more = fields.clone();
        more.insert("extra".into(), json!(1));
        assert!(fault(&schema, &Value::Object(more)).is_some(), "{line} with more");
    }
    for (line, place, bad) in [
        (0, "/version", json!(2)),
        (0, "/pts", json!(-1)),
        (0, "/step", json!(1.5)),
        (0, "/classes/0/score", json!(1.5)),
        (0, "/classes/0/index", json!("3")),
        (0, "/classes/0/label", Value::Null),
        (1, "/speech", json!(-0.1)),
        (2, "/vector", json!([])),
        (2, "/vector/0", json!("x")),
        (3, "/event/start", Value::Null),
        (3, "/kind", json!("classes")),
    ] {
        let mut line = good[line].clone();
        *line.pointer_mut(place).expect("the place is there") = bad;
        assert!(fault(&schema, &line).is_some(), "{line}");
    }
}

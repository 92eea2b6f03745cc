"""Looks for the metas of GstAnalytics on buffers that the elements let pass. Run by matrix.sh."""

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstAnalytics", "1.0")
from gi.repository import GLib, Gst, GstAnalytics  # noqa: E402

Gst.init(None)


def buffers(line):
    pipeline = Gst.parse_launch(line + " ! appsink name=out sync=false")
    pipeline.set_state(Gst.State.PLAYING)
    out = pipeline.get_by_name("out")
    while (sample := out.emit("pull-sample")) is not None:
        yield sample.get_buffer()
    pipeline.set_state(Gst.State.NULL)


def classes(buffer):
    meta = GstAnalytics.buffer_get_analytics_relation_meta(buffer)
    found = []
    for i in range(GstAnalytics.relation_get_length(meta) if meta else 0):
        is_cls, mtd = meta.get_cls_mtd(i)
        assert is_cls, "another kind of metadata"
        n = mtd.get_length()
        found.append({GLib.quark_to_string(mtd.get_quark(k)): mtd.get_level(k) for k in range(n)})
    return found


frames = "videotestsrc num-buffers=5 ! video/x-raw,format=RGB,width=64,height=48"
seen = [classes(b) for b in buffers(f"{frames} ! ssmclassify model=builtin:shots top-k=4 name=a ! ssmclassify "
                                    "model=builtin:shots top-k=2")]
assert len(seen) == 5, seen
for first, second in seen:
    assert len(first) == 4 and len(second) == 2, (first, second)
    assert "cut" in first and abs(sum(first.values()) - 1) < 1e-4, first
    assert all(first[name] == level for name, level in second.items()), (first, second)
print("classes:", seen[0][0])

# Where no class reaches the threshold there is nothing to say.
assert all(not classes(b) for b in buffers(f"{frames} ! ssmclassify model=builtin:shots threshold=1"))

audio = "audiotestsrc num-buffers=5 samplesperbuffer=320 ! audio/x-raw,rate=16000,channels=1"
tensors = 0
for buffer in buffers(f"{audio} ! ssmembed model=builtin:denoise"):
    meta = GstAnalytics.buffer_get_tensor_meta(buffer)
    assert meta is not None and meta.num_tensors == 2, meta
    tensors += meta.num_tensors
print("tensors:", tensors)

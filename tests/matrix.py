"""Looks for the metas of GstAnalytics on buffers that the elements let pass, and gives them to GStreamer's own tensor
decoder where there is one (1.28). Run by matrix.sh."""

import json
import os
import struct
import tempfile

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstAnalytics", "1.0")
from gi.repository import GLib, Gst, GstAnalytics  # noqa: E402

Gst.init(None)


def samples(line, each=lambda pipeline, n: None):
    """What comes out of a line; `each` is called behind every sample with its number."""
    pipeline = Gst.parse_launch(line + " ! appsink name=out sync=false")
    pipeline.set_state(Gst.State.PLAYING)
    out, n = pipeline.get_by_name("out"), 0
    while (sample := out.emit("pull-sample")) is not None:
        yield sample
        each(pipeline, n)
        n += 1
    error = pipeline.get_bus().pop_filtered(Gst.MessageType.ERROR)
    pipeline.set_state(Gst.State.NULL)
    assert error is None, error.parse_error()


def buffers(line):
    return (sample.get_buffer() for sample in samples(line))


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


def probabilities(buffer):
    """The tensor of a classifier."""
    meta = GstAnalytics.buffer_get_tensor_meta(buffer)
    assert meta is not None and meta.num_tensors == 1, "one tensor for the classes"
    tensor = meta.get(0)
    assert GLib.quark_to_string(tensor.id) == "classification-generic-softmaxed-out"
    assert list(tensor.get_dims())[0] == 1 and tensor.data_type == GstAnalytics.TensorDataType.FLOAT32
    data = tensor.data.extract_dup(0, tensor.data.get_size())
    return struct.unpack(f"{len(data) // 4}f", data)


# The tensor holds all classes, whether they are told or not.
for buffer in buffers(f"{frames} ! ssmclassify model=builtin:shots top-k=1"):
    ((name, level),) = classes(buffer)[0].items()
    scores = probabilities(buffer)
    assert len(scores) == 4 and max(scores) == level and abs(sum(scores) - 1) < 1e-4, (scores, name, level)
print("classes as a tensor:", scores)


def lines(sample):
    """What `ssmjson` would say of the classes of a frame, told best first."""
    sink = Gst.parse_launch("appsrc name=in format=time ! ssmjson ! appsink name=json sync=false")
    sink.set_state(Gst.State.PLAYING)
    source = sink.get_by_name("in")
    source.emit("push-sample", sample)
    source.emit("end-of-stream")
    buffer = sink.get_by_name("json").emit("pull-sample").get_buffer()
    sink.set_state(Gst.State.NULL)
    return json.loads(buffer.extract_dup(0, buffer.get_size()))


def decodes():
    """GStreamer's decoder reads the tensor, by its caps and its data: its class is our best one."""
    blink = "videotestsrc num-buffers=25 pattern=blink ! video/x-raw,format=RGB,width=64,height=48,framerate=25/1"
    with tempfile.TemporaryDirectory() as folder:
        labels = os.path.join(folder, "labels.txt")
        with open(labels, "w") as file:
            file.write("cut\ndissolve\nfade\nwipe\n")
        named = f"classifiertensordecoder labels-file={labels}"
        for decoder, by in [(named, "label"), ("classifiertensordecoder", "index"), ("tensordecodebin", "index")]:
            best = []
            for sample in samples(f"{blink} ! ssmclassify model=builtin:shots ! {decoder}"):
                ours, decoded = classes(sample.get_buffer())
                told = lines(sample)["classes"][0]
                ((name, level),) = decoded.items()
                assert name == str(told[by]) and abs(level - told["score"]) < 1e-6, (decoder, decoded, told)
                assert next(iter(ours)) == told["label"], (ours, told)
                best.append(name)
            assert len(best) == 25 and len(set(best)) > 1, ("one class is no test", best)
            print(f"{decoder.split()[0]}: {len(best)} classes, of these", ", ".join(sorted(set(best))))

        # Another model while playing: the tensor is announced anew where it has another length.
        other = os.path.join(folder, "three.safetensors")
        with open(other, "wb") as file:
            file.write(without_the_last_class("models/builtin/shots.safetensors"))

        def reload(pipeline, n):
            if n == 5:
                pipeline.get_by_name("c").set_property("model", other)
            resets.append(pipeline.get_by_name("c").get_property("resets"))

        lengths, resets = [], []
        line = f"videotestsrc is-live=true num-buffers=100 ! {frames.split('!')[1]},framerate=50/1"
        for sample in samples(f"{line} ! ssmclassify name=c allow-reload=true model=builtin:shots", reload):
            caps = sample.get_caps().to_string().replace("\\", "")
            if meta := GstAnalytics.buffer_get_tensor_meta(sample.get_buffer()):
                announced = f"dims=(int)< 1, {list(meta.get(0).get_dims())[1]} >"
                assert announced in caps, (announced, caps)
                lengths.append(len(probabilities(sample.get_buffer())))
        assert lengths[0] == 4 and lengths[-1] == 3 and lengths == sorted(lengths, reverse=True), lengths
        assert len(lengths) >= 99, "a frame at most goes without, the one at which the models change"
        assert resets[-1] == 1, ("new caps are no new stream", resets)
        print("another model: tensors of", sorted(set(lengths)))

    # Of two classifiers the first one's tensor is announced and is there.
    two = "ssmclassify model=builtin:shots ! ssmclassify model=builtin:shots"
    for sample in samples(f"{blink} ! {two} ! {named.split()[0]}"):
        assert len(probabilities(sample.get_buffer())) == 4
    # What comes after is not asked of what comes before: elements between need not know of tensors.
    for line in [f"{blink} ! ssmclassify model=builtin:shots ! videoconvert ! video/x-raw,format=BGRx ! ssmoverlay",
                 f"{blink} ! videoconvert ! ssmclassify model=builtin:shots ! queue ! video/x-raw"]:
        assert len(list(samples(f"{line} ! classifiertensordecoder"))) == 25, line


def without_the_last_class(path):
    """The model in a file, less one of its classes."""
    with open(path, "rb") as file:
        data = file.read()
    (n,) = struct.unpack("<Q", data[:8])
    header, data = json.loads(data[8 : 8 + n]), data[8 + n :]
    config = json.loads(header["__metadata__"]["config"])
    config["head"]["classes"].pop()
    tensors, out = {"__metadata__": {"config": json.dumps(config)}}, b""
    for name, about in ((k, v) for k, v in header.items() if k != "__metadata__"):
        begin, end = about["data_offsets"]
        if name.startswith("head."):
            rows = about["shape"][0]
            end = begin + (end - begin) // rows * (rows - 1)
            about["shape"][0] = rows - 1
        tensors[name] = {**about, "data_offsets": [len(out), len(out) + end - begin]}
        out += data[begin:end]
    text = json.dumps(tensors).encode()
    return struct.pack("<Q", len(text)) + text + out


if Gst.version() >= (1, 28):
    decodes()

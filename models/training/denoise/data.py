r"""Gets the recordings and turns them into 16 kHz mono arrays in a cache folder.

    python data.py --cache CACHE --repos REPOS [--teacher MODEL]

With a teacher (a file that `ssmdenoise` of the built plugin takes, and runs here through `gst-launch-1.0`) recordings of
crowds that are not clean enough are cleaned by it and kept; without one they are left out.

Debian packages are downloaded here (``apt-get download``, any Debian or Ubuntu machine with the Debian archive in its
sources) and unpacked, never installed. REPOS is a folder that holds clones of the public repositories; they are read
blob by blob with git, so bare clones do, and a blob that a clone lacks is skipped:

    git clone --bare https://github.com/rhasspy/dataset-voice-kerstin REPOS/dataset-voice-kerstin
    git clone --bare https://github.com/rhasspy/dataset-voice-kathleen REPOS/dataset-voice-kathleen
    git clone --bare https://github.com/rhasspy/dataset-voice-nathalie REPOS/dataset-voice-nathalie
    git clone --bare https://github.com/rhasspy/dataset-voice-flemishguy REPOS/dataset-voice-flemishguy
    git clone --bare https://github.com/Picovoice/speech-to-intent-benchmark REPOS/speech-to-intent-benchmark
    git clone --bare https://github.com/Picovoice/wake-word-benchmark REPOS/wake-word-benchmark
    git clone --bare https://github.com/zhongyuchen/DSPSpeech-20 REPOS/DSPSpeech-20
    git clone --bare https://github.com/abdulkaderghandoura/arabic-speech-commands-dataset \
        REPOS/arabic-speech-commands-dataset
    git clone --bare https://github.com/Minali24/Identify-Speech-Commands REPOS/Identify-Speech-Commands
    git clone --bare https://github.com/Sakshee5/alphanumeric-audio-dataset REPOS/alphanumeric-audio-dataset
    git clone --bare https://github.com/ogunlao/yoruba_speech_project REPOS/yoruba_speech_project
    git clone --bare https://github.com/karolpiczak/ESC-10 REPOS/ESC-10
    git clone --bare https://github.com/rafaelmardojai/blanket REPOS/blanket
    git clone --bare https://github.com/Fris0uman/CDDA-Soundpacks REPOS/CDDA-Soundpacks
    git clone --bare https://github.com/jtgsystems/modern-alarm-clock REPOS/modern-alarm-clock
    git clone --bare https://github.com/mateusfg7/Noisekun REPOS/Noisekun
    git clone --bare https://github.com/DrunkenToast/gui-project REPOS/gui-project
    git clone --bare https://github.com/AntumMT/mod-sounds REPOS/mod-sounds
    git clone --bare https://github.com/IBM/MAX-Audio-Classifier REPOS/MAX-Audio-Classifier

What the cache holds afterwards, for every set: ``NAME.npy``, int16 samples at 16 kHz (full scale 32768), all clips one
behind the other; ``NAME.json``, ``{"clips": [[clip name, first sample, samples], ...]}``, where the name of a clip of a
crowd begins with its speaker and a slash if the source tells them apart. Sets whose name begins with
``train_`` may be trained on; those that begin with ``test_`` are only for evaluate.py. ``manifest.json`` beside this
file lists sources, licences and the minutes found.
"""

import argparse
import io
import json
import os
import re
import subprocess
import tempfile
from math import gcd
from pathlib import Path

import av
import numpy as np
import soundfile
from scipy.signal import resample_poly

RATE = 16_000  # Hz
HERE = Path(__file__).resolve().parent

# Where things come from. `licence` is what debian/copyright, LICENSE or the table of sounds says.
VOICES = {
    "kerstin": ("dataset-voice-kerstin", "f731271", r"verified/.*\.flac$", "CC0-1.0", 300),
    "kathleen": ("dataset-voice-kathleen", "c51cb97", r"data/.*\.wav$", "CC0-1.0", 300),
    "nathalie": ("dataset-voice-nathalie", "3b3e91f", r"verified/.*\.flac$", "CC0-1.0", 300),
    "flemishguy": ("dataset-voice-flemishguy", "2576e9c", r"wavs/.*\.wav$", "CC0-1.0", 300),
}
# Many speakers at their own microphones, or one; all of it is for training. The first group of a pattern is the speaker.
CROWDS = {
    "commands": ("Picovoice/speech-to-intent-benchmark", "47b1ca6", r"data/speech/clean/.*\.wav$", "Apache-2.0"),
    "words": ("Picovoice/wake-word-benchmark", "8491919", r"audio/(?:computer|jarvis)/.*\.wav$", "Apache-2.0"),
    "students": ("zhongyuchen/DSPSpeech-20", "8165959", r"speech_data/(\d+)/.*\.wav$", "MIT"),
    "arabic": (
        "abdulkaderghandoura/arabic-speech-commands-dataset",
        "72f3438",
        r"^dataset/.*/(\d{8})_.*\.wav$",
        "CC-BY-4.0",
    ),
    # A part of Google's Speech Commands, version 1.
    "google": (
        "Minali24/Identify-Speech-Commands",
        "2ccde63",
        r"^audio/audio/[a-z]+/([0-9a-f]+)_nohash_.*\.wav$",
        "CC-BY-4.0 (Speech Commands, Google)",
    ),
    "spelled": (
        "Sakshee5/alphanumeric-audio-dataset",
        "6c9a38e",
        r"^audio_data/(?:Addresses|Names|Numbers)/(.*)\.wav$",
        "MIT",
    ),
    "yoruba": ("ogunlao/yoruba_speech_project", "7000026", r"^recordings/.*\.wav$", "MIT"),
}
# Places and machines, mostly minutes long, and short events; each file's licence stands in a table beside them.
SOUNDS = {
    "places": [
        ("Fris0uman/CDDA-Soundpacks", "88586bb", r"^sound/CC-Sounds/environment/.*\.ogg$", "each file CC0 or CC-BY"),
        ("jtgsystems/modern-alarm-clock", "552ffc6", r"^public/sfx/.*\.mp3$", "CC0"),
        ("abdulkaderghandoura/arabic-speech-commands-dataset", "72f3438", r"^background_noise/.*\.wav$", "CC-BY-4.0"),
        (
            "mateusfg7/Noisekun",
            "d32024c",
            r"sounds/(air-plane|birds-tree|cave-drops|drops|fire|leaves|night|rain|rain-on-tent|stream-water|underwater|"
            r"waterfall|waves|playground)\.ogg$",
            "each file CC0 or CC-BY",
        ),
        ("DrunkenToast/gui-project", "52d6f58", r"^sounds/(construction|farm|leaves|owls)\.ogg$", "each file CC0 or CC-BY"),
        ("IBM/MAX-Audio-Classifier", "3c308ab", r"^samples/.*\.wav$", "each file CC0 or CC-BY"),
    ],
    # Without those of the table that are CC-BY-SA.
    "events": [
        (
            "AntumMT/mod-sounds",
            "a002ea8",
            r"^sounds/sounds_(?!duck_quack_01|ghost|giraffe|lava|loon|node_|toucan|trumpeter).*\.ogg$",
            "each file CC0, CC-BY or OGA-BY-3.0",
        ),
    ],
}
CLEAN = 40  # dB that a recording of a crowd must have between speech and pauses
CLEANABLE = 20  # dB that is enough before a teacher
FESTVOX_HELD_OUT = 60
ESC10_COMMIT = "553c8f17"
BLANKET_COMMIT = "8b1c27a"
# CC0, CC-BY or public domain; the pink and white noise loops are CC-BY-SA and made here instead.
BLANKET_TRAIN = ["birds", "boat", "fireplace", "rain", "stream", "summer-night", "waves"]
BLANKET_TEST = ["coffee-shop", "city", "train", "wind", "storm"]
DEBIAN = {
    "festvox-ru": ("0.5+dfsg-6", "BSD-like (notice in README.md)"),
    "sonic-pi-samples": ("3.2.2~repack-8", "CC0-1.0"),
    "asterisk-core-sounds-it-g722": ("1.6.1-1", "CC-BY-3.0"),
    "asterisk-core-sounds-ru-g722": ("1.6.1-1", "CC-BY-3.0"),
}
PROMPTS = 150  # prompts of each language used for the test, the longest that stay under 8 s


def to_16k(samples, rate):
    """Mono float32 at 16 kHz of ``samples`` (frames,) or (frames, channels) at ``rate`` Hz. Channels are averaged."""
    x = np.asarray(samples, dtype=np.float32)
    if x.ndim == 2:
        x = x.mean(axis=1)
    if rate != RATE:
        g = gcd(rate, RATE)
        x = resample_poly(x, RATE // g, rate // g).astype(np.float32)
    return x


class Writer:
    """Collects the clips of one set and writes them into the cache."""

    def __init__(self, cache, name):
        self.cache, self.name = cache, name
        self.clips, self.parts, self.length = [], [], 0

    def add(self, name, x):
        """One clip: float samples at 16 kHz, full scale 1. Empty clips are left out."""
        if len(x) == 0:
            return
        pcm = np.clip(np.round(x * 32768), -32768, 32767).astype(np.int16)
        self.clips.append([name, self.length, len(pcm)])
        self.parts.append(pcm)
        self.length += len(pcm)

    def close(self):
        """Writes the set; returns its minutes."""
        np.save(self.cache / f"{self.name}.npy", np.concatenate(self.parts) if self.parts else np.zeros(0, np.int16))
        (self.cache / f"{self.name}.json").write_text(json.dumps({"clips": self.clips}))
        minutes = self.length / RATE / 60
        print(f"{self.name}: {len(self.clips)} clips, {minutes:.1f} min", flush=True)
        return round(minutes, 1)


class Repository:
    """A git repository whose blobs are read singly."""

    def __init__(self, repos, name):
        self.name = name = name.rpartition("/")[2]
        places = [repos / name, repos / f"{name}.git"]
        self.path = next((p for p in places if p.is_dir()), None)
        if self.path is None:
            raise SystemExit(f"no clone of {name} in {repos}; see the head of data.py for the commands")
        self.env = {**os.environ, "GIT_NO_LAZY_FETCH": "1"}

    def files(self, commit, pattern):
        """Paths and blob names of the files of ``commit`` that match, sorted by path, numbers by value; each blob once."""
        out = subprocess.run(
            ["git", "-C", str(self.path), "ls-tree", "-r", "-z", commit], capture_output=True, check=True, env=self.env
        ).stdout
        found, seen = [], set()
        for entry in out.decode().split("\0"):
            head, _, path = entry.partition("\t")
            if path and re.search(pattern, path) and head.split()[2] not in seen:
                found.append((path, head.split()[2]))
                seen.add(head.split()[2])
        return sorted(found, key=lambda f: [int(p) if p.isdigit() else p for p in re.split(r"(\d+)", f[0])])

    def read(self, files):
        """Yields (path, bytes) of ``files``; those whose blob is missing are skipped and counted."""
        missing = 0
        for path, blob in files:
            got = subprocess.run(
                ["git", "-C", str(self.path), "cat-file", "blob", blob], capture_output=True, env=self.env
            )
            if got.returncode == 0:
                yield path, got.stdout
            else:
                missing += 1
        if missing:
            print(f"{self.name}: {missing} of {len(files)} blobs are not in this clone", flush=True)


def package(cache, name):
    """The folder of an unpacked Debian package; downloaded when it is not there yet."""
    folder = cache / "debian" / name
    if not folder.is_dir():
        store = cache / "debian"
        store.mkdir(parents=True, exist_ok=True)
        subprocess.run(["apt-get", "download", name], cwd=store, check=True)
        deb = next(store.glob(f"{name}_*.deb"))
        subprocess.run(["dpkg-deb", "-x", str(deb), str(folder)], check=True)
    return folder


def decode_g722(path):
    """Float samples (n,) of a raw G.722 file (64 kbit/s, 16 kHz)."""
    with av.open(str(path), format="g722") as file:
        parts = [frame.to_ndarray().reshape(-1) for frame in file.decode(audio=0)]
    return np.concatenate(parts).astype(np.float32) / 32768


def sound(path, data):
    """Float samples (n,) at 16 kHz of a file's bytes; None, said aloud, if it cannot be read."""
    try:
        return to_16k(*soundfile.read(io.BytesIO(data), dtype="float32"))
    except soundfile.LibsndfileError as error:
        print(f"{path}: {error}", flush=True)
        return None


def loudness(x):
    """Power in dB of the 20 ms pieces of x."""
    return 10 * np.log10((x[: len(x) // 320 * 320].reshape(-1, 320) ** 2).mean(axis=1) + 1e-12)


def spoken(x, clean=CLEAN):
    """x without the silence before and behind, or nothing if its pauses are less than `clean` dB below speech."""
    level = loudness(x)
    if not len(level) or level.max() - 10 - np.percentile(level, 10) < clean:
        return x[:0]
    loud = np.flatnonzero(level > level.max() - 45)
    return x[max(loud[0] - 3, 0) * 320 : (loud[-1] + 4) * 320]


def cleaned(teacher, sounds):
    """Each of `sounds` after the denoiser of the file `teacher`, one behind the other in a pipeline."""
    gap = np.zeros(RATE // 2, np.float32)
    stream = np.concatenate([part for x in sounds for part in (x * (0.5 / max(np.abs(x).max(), 1e-3)), gap)])
    with tempfile.TemporaryDirectory() as folder:
        before, after = Path(folder) / "before", Path(folder) / "after"
        stream.astype("<f4").tofile(before)
        form = f"format=pcm pcm-format=f32le sample-rate={RATE} num-channels=1"
        parts = [f"filesrc location={before}", f"rawaudioparse {form}", f"ssmdenoise model={teacher}", f"filesink location={after}"]
        subprocess.run(["gst-launch-1.0", "-q", *" ! ".join(parts).split()], check=True)
        out = np.fromfile(after, "<f4")
    if len(out) != len(stream):
        raise SystemExit(f"{teacher}: {len(out)} samples came out of {len(stream)}")
    starts = np.cumsum([0, *(len(x) + len(gap) for x in sounds)])
    return [out[at : at + len(x)] for at, x in zip(starts, sounds)]


def speech(cache, repos, teacher):
    """Training and held-out sentences of every voice."""
    minutes = {}
    for voice, (repo, commit, pattern, _, held_out) in VOICES.items():
        r = Repository(repos, repo)
        train, test = Writer(cache, f"train_speech_{voice}"), Writer(cache, f"test_speech_{voice}")
        files = r.files(commit, pattern)
        last = {path for path, _ in files[-held_out:]}
        # Nor is what comes last in the order of letters trained on: the numbers of the sentences have no leading zeros.
        neither = {path for path, _ in sorted(files)[-held_out:]} - last
        for path, data in r.read([f for f in files if f[0] not in neither]):
            samples, rate = soundfile.read(io.BytesIO(data), dtype="float32")
            (test if path in last else train).add(Path(path).stem, to_16k(samples, rate))
        minutes[train.name], minutes[test.name] = train.close(), test.close()
    train, test = Writer(cache, "train_speech_festvox_ru"), Writer(cache, "test_speech_festvox_ru")
    files = sorted(package(cache, "festvox-ru").rglob("*.wav"))
    for i, path in enumerate(files):
        samples, rate = soundfile.read(path, dtype="float32")
        (test if i >= len(files) - FESTVOX_HELD_OUT else train).add(path.stem, to_16k(samples, rate))
    minutes[train.name], minutes[test.name] = train.close(), test.close()
    for crowd, (repo, commit, pattern, _) in CROWDS.items():
        r, train, unclean = Repository(repos, repo), Writer(cache, f"train_speech_{crowd}"), []
        for path, data in r.read(r.files(commit, pattern)):
            name = "".join(f"{name}/" for name in re.search(pattern, path).groups()) + Path(path).stem
            decoded = sound(path, data)
            if decoded is None:
                continue
            if len(clean := spoken(decoded)):
                train.add(name, clean)
            elif teacher and len(spoken(decoded, CLEANABLE)):
                unclean.append((name, decoded))
        if unclean:
            for (name, _), x in zip(unclean, cleaned(teacher, [x for _, x in unclean])):
                train.add(name, spoken(x))
        minutes[train.name] = train.close()
    for language in ("it", "ru"):
        test = Writer(cache, f"test_speech_asterisk_{language}")
        files = package(cache, f"asterisk-core-sounds-{language}-g722").rglob("*.g722")
        # 8000 bytes are a second; the folder `silence` holds just that.
        files = [p for p in files if 12_000 < p.stat().st_size < 64_000 and p.parent.name != "silence"]
        files.sort(key=lambda p: (-p.stat().st_size, str(p)))
        for path in files[:PROMPTS]:
            test.add(path.stem, decode_g722(path))
        minutes[test.name] = test.close()
    return minutes


def noise(cache, repos):
    """Training and held-out noises."""
    minutes = {}
    train, test = Writer(cache, "train_noise_esc10"), Writer(cache, "test_noise_esc10")
    r = Repository(repos, "ESC-10")
    for path, data in r.read(r.files(ESC10_COMMIT, r"\.ogg$")):
        samples, rate = soundfile.read(io.BytesIO(data), dtype="float32")
        (test if Path(path).name.startswith("5-") else train).add(path, to_16k(samples, rate))
    minutes[train.name], minutes[test.name] = train.close(), test.close()
    train, test = Writer(cache, "train_noise_blanket"), Writer(cache, "test_noise_blanket")
    r = Repository(repos, "blanket")
    for path, data in r.read(r.files(BLANKET_COMMIT, r"resources/sounds/.*\.ogg$")):
        name = Path(path).stem
        writer = train if name in BLANKET_TRAIN else test if name in BLANKET_TEST else None
        if writer:
            samples, rate = soundfile.read(io.BytesIO(data), dtype="float32")
            writer.add(name, to_16k(samples, rate))
    minutes[train.name], minutes[test.name] = train.close(), test.close()
    for name, sources in SOUNDS.items():
        train = Writer(cache, f"train_noise_{name}")
        for repo, commit, pattern, _ in sources:
            r, before = Repository(repos, repo), train.length
            for path, data in r.read(r.files(commit, pattern)):
                decoded = sound(path, data)
                if decoded is not None:
                    train.add(Path(path).stem, decoded)
            minutes[f"{train.name} {repo}"] = round((train.length - before) / RATE / 60, 1)
        train.close()
    train = Writer(cache, "train_noise_sonic_pi")
    for path in sorted(package(cache, "sonic-pi-samples").rglob("*.flac")):
        samples, rate = soundfile.read(path, dtype="float32")
        train.add(path.stem, to_16k(samples, rate))
    minutes[train.name] = train.close()
    return minutes


def made(cache):
    """Made sounds in place of recordings, seconds of each set: enough to run the recipe, nothing to learn from."""
    rng, time = np.random.default_rng(1), np.arange(4 * RATE) / RATE
    for voice in (*VOICES, *CROWDS, "festvox_ru"):
        train = Writer(cache, f"train_speech_{voice}")
        for i in range(3):
            pitch = rng.uniform(90, 220) * (1 + 0.1 * np.sin(2 * np.pi * 2 * time))
            tones = sum(np.sin(k * 2 * np.pi * np.cumsum(pitch) / RATE) / k for k in range(1, 12))
            train.add(f"made_{i}", 0.05 * tones * np.clip(np.sin(2 * np.pi * 3 * time), 0, 1))
        train.close()
    for name in ("esc10", "blanket", "sonic_pi", *SOUNDS):
        train = Writer(cache, f"train_noise_{name}")
        train.add("made", 0.05 * rng.standard_normal(4 * RATE))
        train.close()


def manifest(minutes, teacher):
    """The list of sources, licences, minutes and what is held out, and the teacher that cleaned what was not clean."""
    git = "https://github.com/"
    sources = []
    for voice, (repo, commit, _, licence, held_out) in VOICES.items():
        sources.append(
            {
                "source": f"{git}rhasspy/{repo}",
                "version": commit,
                "licence": licence,
                "use": "speech",
                "train_minutes": minutes[f"train_speech_{voice}"],
                "test_minutes": minutes[f"test_speech_{voice}"],
                "held_out": f"last {held_out} sentences",
            }
        )
    def whole(repo, commit, licence, use, train):
        return {
            "source": f"{git}{repo}",
            "version": commit,
            "licence": licence,
            "use": use,
            "train_minutes": minutes[train],
            "test_minutes": 0,
            "held_out": "none",
        }

    for crowd, (repo, commit, _, licence) in CROWDS.items():
        sources.append(whole(repo, commit, licence, "speech", f"train_speech_{crowd}"))
    for name, repos in SOUNDS.items():
        for repo, commit, _, licence in repos:
            sources.append(whole(repo, commit, licence, "noise", f"train_noise_{name} {repo}"))
    tail = f"last {FESTVOX_HELD_OUT} sentences"
    held = {
        "festvox-ru": ("speech", "train_speech_festvox_ru", "test_speech_festvox_ru", tail),
        "asterisk-core-sounds-it-g722": ("speech", None, "test_speech_asterisk_it", "all"),
        "asterisk-core-sounds-ru-g722": ("speech", None, "test_speech_asterisk_ru", "all"),
        "sonic-pi-samples": ("noise", "train_noise_sonic_pi", None, "loop_3d_printer, vinyl_hiss (mixing.py)"),
    }
    for name, (use, train, test, out) in held.items():
        version, licence = DEBIAN[name]
        sources.append(
            {
                "source": f"Debian package {name}",
                "version": version,
                "licence": licence,
                "use": use,
                "train_minutes": minutes.get(train, 0),
                "test_minutes": minutes.get(test, 0),
                "held_out": out,
            }
        )
    sources.append(
        {
            "source": f"{git}karolpiczak/ESC-10",
            "version": ESC10_COMMIT,
            "licence": "each clip CC0 or CC-BY; set CC-BY-3.0",
            "use": "noise",
            "train_minutes": minutes["train_noise_esc10"],
            "test_minutes": minutes["test_noise_esc10"],
            "held_out": "fold 5",
        }
    )
    sources.append(
        {
            "source": f"{git}rafaelmardojai/blanket",
            "version": BLANKET_COMMIT,
            "licence": "by file: CC0 (birds, boat, stream, wind), PD (fireplace, summer-night, coffee-shop), "
            "CC-BY (rain, waves, city, storm, train)",
            "use": "noise",
            "train_minutes": minutes["train_noise_blanket"],
            "test_minutes": minutes["test_noise_blanket"],
            "held_out": ", ".join(BLANKET_TEST),
        }
    )
    return {"rate": RATE, "teacher": teacher and str(Path(*teacher.parts[-2:])), "sources": sources}


def load(cache, name):
    """A set of the cache: (int16 samples (n,), [(clip name, first sample, samples)])."""
    clips = json.loads((Path(cache) / f"{name}.json").read_text())["clips"]
    return np.load(Path(cache) / f"{name}.npy", mmap_mode="r"), [tuple(c) for c in clips]


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--cache", type=Path, required=True, help="folder for what is downloaded and prepared")
    p.add_argument("--repos", type=Path, help="folder with clones of the public repositories")
    p.add_argument("--teacher", type=Path, help="denoiser that cleans recordings which would be left out")
    p.add_argument("--made", action="store_true", help="made sounds instead, for train.py --smoke")
    args = p.parse_args()
    args.cache.mkdir(parents=True, exist_ok=True)
    if args.made:
        return made(args.cache)
    if args.repos is None:
        p.error("--repos or --made")
    minutes = {**noise(args.cache, args.repos), **speech(args.cache, args.repos, args.teacher)}
    (HERE / "manifest.json").write_text(json.dumps(manifest(minutes, args.teacher), indent=1) + "\n")


if __name__ == "__main__":
    main()

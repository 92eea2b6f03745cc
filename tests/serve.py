#!/usr/bin/env python3
"""The page of `ssm serve` in a headless Chromium: it must show scores, events and pictures of a live stream, and come back
after the server was away. Not part of `make test`; needs Debian's chromium and the PyPI package playwright:

    python3 -m venv .venv && .venv/bin/pip install playwright==1.65.2
    cargo build -p ssm-pipelines && .venv/bin/python tests/serve.py PAGE.png [VIDEO]

PAGE.png is a screenshot to look at. Without VIDEO: test pictures with cuts.
"""
import pathlib
import socket
import subprocess
import sys
import tempfile

from playwright.sync_api import expect, sync_playwright

HERE = pathlib.Path(__file__).resolve().parent.parent
PATTERNS = ["smpte", "pinwheel", "ball", "smpte", "zone-plate", "ball"]


def cuts(path):
    parts = [f"videotestsrc num-buffers=60 pattern={p} kx2=20 ky2=20 ! "
             "video/x-raw,width=480,height=270,framerate=25/1 ! all." for p in PATTERNS]
    line = " ".join(parts) + f" concat name=all ! jpegenc ! matroskamux ! filesink location={path}"
    subprocess.run(["gst-launch-1.0", "-q", *line.split()], check=True)


def serve(video, port):
    command = [HERE / "target/debug/ssm", "serve", video, "--listen", f"127.0.0.1:{port}"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    return process, process.stdout.readline().strip()


def main():
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        video = sys.argv[2] if len(sys.argv) > 2 else f"{folder}/cuts.mkv"
        if len(sys.argv) <= 2:
            cuts(video)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        server, address = serve(video, port)
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1100, "height": 620})
        complaints = []
        page.on("pageerror", lambda e: complaints.append(str(e)))
        page.on("console", lambda m: complaints.append(m.text) if m.type == "error" else None)
        try:
            page.goto(address)
            expect(page.locator("#events li").nth(2)).to_be_visible(timeout=60_000)
            expect(page.locator("#state")).to_have_text("live")
            assert page.locator(".row").count() > 0 and page.locator("#legend span").count() > 0
            assert page.locator("#picture").bounding_box()["height"] > 100, "the picture has a size"
            # The timeline has more colours than its ground.
            colours = page.evaluate("""() => { const c = document.querySelector('#timeline');
                const d = new Uint32Array(c.getContext('2d').getImageData(0, 0, c.width, c.height).data.buffer);
                return new Set(d).size; }""")
            assert colours > 10, f"{colours} colours"
            page.screenshot(path=sys.argv[1])
            assert not complaints, complaints
            events = page.locator("#events li").count()

            server.kill()
            server.wait()
            expect(page.locator("#state")).to_have_text("no connection, trying again")
            server, _ = serve(video, port)
            expect(page.locator("#state")).to_have_text("live", timeout=30_000)
            print(f"PASS: {events} events, {colours} colours, came back; {sys.argv[1]}")
        finally:
            server.kill()
            browser.close()


if __name__ == "__main__":
    main()

"""Cameras and network streams: fake ones for every way to fail, and real ones served over HTTP by the test."""

from __future__ import annotations

import socket
import threading
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from detector.errors import InputError, MissingExtraError
from detector.live import Live, LiveSettings, is_recording, live_address
from detector.sources import open_source
from detector.video import without_password
from maenas.errors import OutputError

URL = "rtsp://camera/stream"


class FakeCapture:
    """Gives as many frames as it is told, each only once the test allows it; frame k is filled with k in blue."""

    def __init__(self, frames, *, opened=True, fps=30.0, gate=None):
        self.frames, self.opened, self.fps, self.gate = frames, opened, fps, gate
        self.asked = self.released = 0

    def isOpened(self):
        return self.opened

    def read(self):
        self.asked += 1
        if self.gate is not None:
            self.gate.acquire()
        if not self.frames:
            return False, None
        pixels = np.zeros((4, 6, 3), np.uint8)
        pixels[..., 0] = self.frames.pop(0)  # BGR
        return True, pixels

    def get(self, what):
        return self.fps

    def release(self):
        self.released += 1


class FakeSource:
    """Opens one prepared capture after the other, and notes how long it was asked to wait in between."""

    def __init__(self, *captures):
        self.captures, self.used, self.pauses = list(captures), [], []

    def live(self, address=URL, **settings):
        return Live(address, settings=LiveSettings(**settings), capture=self.open, sleep=self.pauses.append)

    def open(self, address, timeout_s):
        capture = self.captures.pop(0) if self.captures else FakeCapture([], opened=False)
        self.used.append(capture)
        return capture


def blues(frames):
    return [int(frame.pixels[0, 0, 2]) for frame in frames]


def paced(*values):
    """A capture whose frames come when the test has taken the one before."""
    gate = threading.Semaphore(1)
    return FakeCapture(list(values), gate=gate), gate


def take(frames, gate, count):
    taken = []
    for _ in range(count):
        taken.append(next(frames))
        gate.release()
    return taken


def test_frames_are_rgb_and_numbered():
    capture, gate = paced(7, 8, 9)
    live = FakeSource(capture).live()
    with closing(iter(live)) as frames:
        taken = take(frames, gate, 3)
    assert blues(taken) == [7, 8, 9] and [frame.number for frame in taken] == [0, 1, 2]
    assert taken[0].pixels[0, 0].tolist() == [0, 0, 7] and taken[0].pixels.flags.c_contiguous
    assert taken[0].taken_s <= taken[1].taken_s <= taken[2].taken_s
    assert live.fps == 30.0 and capture.released >= 1


def test_a_slow_reader_gets_the_newest_frame_and_the_gap_tells():
    gate = threading.Semaphore(0)
    capture = FakeCapture(list(range(50)), gate=gate)
    with closing(iter(FakeSource(capture).live())) as frames:
        gate.release()
        assert next(frames).number == 0
        for _ in range(20):
            gate.release()
        while capture.asked < 22:  # the 21st lies ready once the next is asked for
            threading.Event().wait(0.005)
        frame = next(frames)
        assert (frame.number, blues([frame])) == (20, [20])
        gate.release()


@pytest.mark.parametrize("stated", [0.0, -1.0, float("nan"), 90000.0])
def test_a_frame_rate_that_is_none_is_replaced(stated):
    capture, gate = paced(1)
    capture.fps = stated
    live = FakeSource(capture).live()
    with closing(iter(live)) as frames:
        take(frames, gate, 1)
    assert live.fps == 25.0


def test_a_broken_stream_is_opened_again_with_growing_pauses():
    (first, gate), (last, last_gate), broken = paced(1), paced(2), FakeCapture([], opened=False)
    source, got = FakeSource(first, broken, broken, last), []
    with pytest.raises(InputError, match=r"rtsp://camera/stream: gives no more frames; 3 attempts to open it again"):
        for frame in source.live(reconnects=3):
            got.append(frame)
            (gate if len(got) == 1 else last_gate).release()
    assert [frame.number for frame in got] == [0, 1] and blues(got) == [1, 2]
    # Three pauses until the second frame, which starts the count anew, and three more until it is given up.
    assert source.pauses == [0.5, 1, 2, 0.5, 1, 2]
    assert all(capture.released for capture in source.used)


def test_a_stream_that_opens_but_gives_nothing_is_given_up_too():
    captures = [FakeCapture([1]), *(FakeCapture([]) for _ in range(9))]
    source = FakeSource(*captures)
    with pytest.raises(InputError, match="2 attempts"):
        list(source.live(reconnects=2))
    assert len(source.used) == 3


def test_pauses_have_a_limit():
    source = FakeSource(FakeCapture([1]))
    with pytest.raises(InputError, match="8 attempts"):
        list(source.live(reconnects=8))
    assert source.pauses == [0.5, 1, 2, 4, 8, 10, 10, 10]


def test_a_camera_that_is_unplugged_is_an_error_at_once():
    source = FakeSource(FakeCapture([1]), FakeCapture([2]))
    got = []
    with pytest.raises(InputError, match=r"^camera 3: gives no more frames$"):
        got.extend(source.live(3))
    assert source.pauses == []


@pytest.mark.parametrize(
    ("address", "capture", "message"),
    [
        (3, FakeCapture([], opened=False), "camera 3: cannot be opened; expected the number of a connected one"),
        (URL, FakeCapture([], opened=False), "rtsp://camera/stream: cannot be opened; expected a stream that plays"),
        ("rtsp://me:secret@host/a", FakeCapture([], opened=False), r"^rtsp://host/a: cannot be opened"),
        (3, FakeCapture([]), "camera 3: was opened but gives no frame"),
    ],
)
def test_a_source_that_never_gave_a_frame_is_one_line(address, capture, message):
    source = FakeSource(capture)
    with pytest.raises(InputError, match=message):
        next(iter(source.live(address)))
    assert source.pauses == [] and capture.released


def test_silence_is_given_up(monkeypatch):
    monkeypatch.setattr("detector.ahead.PATIENCE_S", 0.05)
    gate = threading.Semaphore(0)
    source = FakeSource(FakeCapture([1, 2], gate=gate))
    with (
        closing(iter(source.live(3, timeout_s=0.1))) as frames,
        pytest.raises(InputError, match=r"gave no frame for 0\.1 s"),
    ):
        next(frames)
    gate.release()


def test_a_stream_that_falls_silent_is_opened_again():
    class Silent(FakeCapture):
        """As FFmpeg: a read ends without a frame once its time is over, and a little later than was asked."""

        def read(self):
            if not self.frames:
                threading.Event().wait(0.5)
            return super().read()

    again, gate = paced(7)
    source = FakeSource(Silent([1]), again)
    with closing(iter(source.live(timeout_s=0.4))) as frames:
        assert blues([next(frames), next(frames)]) == [1, 7]
    gate.release()
    assert source.pauses == [0.5]


def test_an_error_of_the_decoder_reaches_the_reader():
    class Failing(FakeCapture):
        def read(self):
            raise MemoryError("no room for a frame")

    capture = Failing([1])
    with pytest.raises(MemoryError, match="no room"):
        next(iter(FakeSource(capture).live()))
    assert capture.released == 1


def test_closing_lets_go_of_the_camera():
    class Endless(FakeCapture):
        def read(self):
            self.thread = threading.current_thread()
            threading.Event().wait(0.002)
            return True, np.zeros((4, 6, 3), np.uint8)

    capture = Endless([])
    frames = iter(FakeSource(capture).live())
    next(frames)
    frames.close()
    assert capture.released == 1 and not capture.thread.is_alive()


def test_settings_are_checked():
    with pytest.raises(InputError, match="timeout_s is 0; expected more than 0"):
        LiveSettings(timeout_s=0)
    with pytest.raises(InputError, match="reconnects is -1; expected 0 or more"):
        LiveSettings(reconnects=-1)


def test_addresses():
    assert [live_address(text) for text in ("0", "12", "rtsp://a/b", "HTTP://a")] == [0, 12, "rtsp://a/b", "HTTP://a"]
    assert [live_address(text) for text in ("-1", "a", "1.5", "C:\\x", "٣")] == [None] * 5
    with pytest.raises(InputError, match=r"^ftp://host/a: is a URL of the kind ftp; expected one of rtsp, "):
        live_address("ftp://me:secret@host/a")
    recordings = ("http://a/b.mp4", "https://a/b.MKV?x=1", "rtsp://a/b.mp4#t", "http://a/b", "rtsp://a.avi/b", 3)
    assert [is_recording(address) for address in recordings] == [True, True, True, False, False, False]
    assert without_password("rtsp://a:b@c@d/e@f") == "rtsp://d/e@f"
    assert without_password("rtsp://a/b?c=d@e") == "rtsp://a/b?c=d@e"


def test_sources_of_cameras_and_urls(tmp_path, monkeypatch):
    source = open_source("0")
    assert (source.kind, source.name, source.length, source.paths, source.live.address) == (
        "live",
        "camera 0",
        None,
        (),
        0,
    )
    assert open_source(2).live.address == 2
    assert open_source("rtsp://me:secret@host/a").name == "rtsp://host/a"
    monkeypatch.chdir(tmp_path)
    np.save("0", np.zeros(3))
    (tmp_path / "0.npy").rename(tmp_path / "0")
    assert open_source("0").kind == "image"  # a file of that name comes first


def test_items_of_a_live_source():
    capture, gate = paced(5, 6)
    source = open_source(FakeSource(capture).live())
    items = iter(source)
    first = next(items)
    gate.release()
    second = next(items)
    gate.release()
    items.close()
    assert (first.name, first.frame, first.time_s, first.error, first.path) == (URL, 0, 0.0, None, None)
    assert first.image[0, 0].tolist() == [0, 0, 5] and second.frame == 1
    assert second.time_s == second.taken_s - first.taken_s >= 0 and capture.released


def test_without_opencv_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "cv2", None)
    with pytest.raises(MissingExtraError, match=r"cameras and streams needs the package cv2"):
        next(iter(Live(0)))


class Handler(BaseHTTPRequestHandler):
    """Serves what the server's `behaviour` says."""

    def do_GET(self):
        self.server.behaviour(self)

    def log_message(self, *args):
        pass


@contextmanager
def served(behaviour):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads, server.block_on_close = True, False
    server.behaviour, server.stop = behaviour, threading.Event()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/stream"
    finally:
        server.stop.set()
        server.shutdown()
        server.server_close()


def motion_jpeg(handler, count):
    """As many pictures as asked for, with growing red, as network cameras send them."""
    cv2 = pytest.importorskip("cv2")
    handler.send_response(200)
    handler.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
    handler.end_headers()
    for number in range(count):
        pixels = np.zeros((48, 64, 3), np.uint8)
        pixels[..., 2] = 40 + 20 * number
        content = cv2.imencode(".jpg", pixels)[1].tobytes()
        handler.wfile.write(b"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n" % len(content))
        handler.wfile.write(content + b"\r\n")
        handler.wfile.flush()
        handler.server.stop.wait(0.02)


def test_a_real_stream_over_http():
    pytest.importorskip("cv2")
    got = []
    with served(lambda handler: motion_jpeg(handler, 8)) as url:
        live = Live(url, settings=LiveSettings(timeout_s=20, reconnects=0))
        with pytest.raises(InputError, match=r"/stream: gives no more frames$"):
            for frame in live:
                got.append(frame)
    assert got and all(frame.pixels.shape == (48, 64, 3) for frame in got)
    reds = [float(frame.pixels[..., 0].mean()) for frame in got]
    assert reds == sorted(reds) and reds[0] > 30 and max(frame.pixels[..., 2].max() for frame in got) < 20
    numbers = [frame.number for frame in got]
    assert numbers == sorted(set(numbers)) and numbers[-1] <= 7


def test_a_url_that_never_answers():
    pytest.importorskip("cv2")
    with closing(socket.socket()) as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/stream"
        with pytest.raises(InputError, match=r"(cannot be opened|gave no frame for 0\.6 s)"):
            next(iter(Live(url, settings=LiveSettings(timeout_s=0.3))))


def test_a_url_where_nobody_listens_or_nothing_is():
    pytest.importorskip("cv2")
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(InputError, match="cannot be opened; expected a stream that plays"):
        next(iter(Live(f"rtsp://127.0.0.1:{port}/a", settings=LiveSettings(timeout_s=20))))
    with served(lambda handler: handler.send_error(404)) as url, pytest.raises(InputError, match="cannot be opened"):
        next(iter(Live(url, settings=LiveSettings(timeout_s=20))))


def test_a_camera_that_is_not_there():
    pytest.importorskip("cv2")
    with pytest.raises(InputError, match="camera 97: cannot be opened; expected the number of a connected one"):
        next(iter(open_source(97)))


def test_a_video_that_was_cut_short_is_not_kept(tmp_path):
    """As on a full disk, of which OpenCV says nothing: the index at the end is missing."""
    pytest.importorskip("cv2")
    from detector.video import VideoWriter

    writer = VideoWriter(tmp_path / "clip.mp4", fps=10, size=(48, 64))
    writer.write(np.zeros((48, 64, 3), np.uint8))
    writer._writer.release()
    writer._temporary.write_bytes(writer._temporary.read_bytes()[:200])
    with pytest.raises(OutputError, match=r"clip\.mp4: could not be written to its end; is the disk full\?"):
        writer.__exit__(None, None, None)
    assert not list(tmp_path.iterdir())


def test_a_video_file_behind_a_url_is_read_whole(tmp_path):
    pytest.importorskip("cv2")
    from detector.video import VideoWriter

    path = tmp_path / "clip.mp4"
    with VideoWriter(path, fps=10, size=(48, 64)) as writer:
        for number in range(6):
            writer.write(np.full((48, 64, 3), 40 * number, np.uint8))
    content = path.read_bytes()

    def send(handler):
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        handler.wfile.write(content)

    with served(send) as url:
        source = open_source(f"{url}/clip.mp4")
        assert (source.kind, source.fps, source.length) == ("video", 10.0, 6)
        assert [item.frame for item in source] == list(range(6))

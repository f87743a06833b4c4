"""Frames of a camera are judged as photographs are; one that is gone is waited for."""

import fractions
import threading

import numpy as np
import pytest

from modeling_anople.inspection.cameras import Camera, is_camera

from .conftest import wait_until


av = pytest.importorskip("av")


def write_film(path, picture, seconds: int = 1) -> None:
    with av.open(str(path), "w") as file:
        stream = file.add_stream("mpeg4", rate=10, options={"qscale": "1"})
        stream.width, stream.height, stream.pix_fmt = *picture.size, "yuv420p"
        stream.time_base = fractions.Fraction(1, 10)
        for _ in range(10 * seconds):
            file.mux(stream.encode(av.VideoFrame.from_ndarray(np.asarray(picture), format="rgb24")))
        file.mux(stream.encode(None))


def test_frames_are_judged_and_a_camera_that_is_gone_is_waited_for(plant, bolts, caplog, tmp_path):
    film = tmp_path / "film.mp4"
    with plant.watched(folder=f"file:{film}", every=0.01):
        wait_until(lambda: "gives no frames" in caplog.text)
        write_film(tmp_path / "unfinished.mp4", bolts[0].resize((192, 160)))
        (tmp_path / "unfinished.mp4").rename(film)
        rows = plant.wait_for(2)
    assert all(row["label"] and row["path"].startswith(str(plant.output / "frames/2")) for row in rows)
    assert "waits for" not in caplog.text and len({row["id"] for row in rows}) == len(rows)


@pytest.mark.parametrize("error", [av.error.EOFError(1, "gone"), av.FFmpegError(1, "odd"), IndexError("no video")])
def test_a_camera_outlives_whatever_happens(tmp_path, monkeypatch, caplog, error):
    stop = threading.Event()
    camera = Camera("rtsp://host/1", tmp_path, every=1, stop=stop)

    def take() -> int:
        if caplog.records:
            stop.set()  # it came back after the error
        raise error

    monkeypatch.setattr(camera, "_take", take)
    camera.run()
    assert f"rtsp://host gives no frames ({type(error).__name__}" in caplog.text


def test_a_camera_is_told_from_a_folder():
    assert [is_camera(place) for place in ("0", "12", "rtsp://me:secret@host/1")] == [True] * 3
    assert not any(is_camera(place) for place in ("inbox", "/0", "./0", "C:/inbox", "²", ""))


def test_a_password_is_in_no_log(plant, caplog):
    with plant.watched(folder="rtsp://me:secret@127.0.0.1:9/1"):
        wait_until(lambda: "rtsp://127.0.0.1 gives no frames" in caplog.text)
    assert "secret" not in caplog.text

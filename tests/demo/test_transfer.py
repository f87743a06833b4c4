"""A detector goes home as a zip file and comes back from one that is not trusted."""

import json
import stat
import zipfile
from pathlib import Path

import pytest

from demo.inspect_tab import inspect_image
from demo.session import start_session
from demo.teach_tab import teach_product
from demo.transfer import pack_detector, unpack_detector

from ..detectors import write_detector
from ..encoders import encoder_options
from .demo_app import session_of


def test_a_detector_goes_home_and_comes_back(session, start, files):
    teach_product(session, "screw", files)
    score = inspect_image(session, files[0], "screw").score
    other = session_of(start)
    assert "knows bolt, nut, screw" in unpack_detector(other, pack_detector(session))
    assert inspect_image(other, files[0], "screw").score == score
    assert start.products == ["bolt", "nut"]
    teach_product(other, "screw two", files)
    assert other.products[-1] == "screw two"


def test_a_large_clip_stays_behind(session, start, files, monkeypatch):
    monkeypatch.setattr("demo.transfer.MAX_CLIP_IN_ZIP", 0)
    teach_product(session, "screw", files)
    path = pack_detector(session)
    assert any(name.endswith("adapter.safetensors") for name in zipfile.ZipFile(path).namelist())
    other = session_of(start)
    unpack_detector(other, path)
    assert inspect_image(other, files[0], "screw").score == inspect_image(session, files[0], "screw").score


def test_a_detector_with_a_memory_encoder_goes_home_and_comes_back(
    start, files, small_clip_folder, photograph, tmp_path, monkeypatch
):
    folder = write_detector(tmp_path / "d", small_clip_folder, photograph, **encoder_options(side=42))
    own = session_of(start_session(str(folder)))
    teach_product(own, "screw", files)
    score = inspect_image(own, files[0], "screw").score
    other = session_of(start)
    unpack_detector(other, pack_detector(own))
    assert inspect_image(other, files[0], "screw").score == score
    # as an adapter it needs the encoder, which nobody fetches because a zip names it
    monkeypatch.setattr("demo.transfer.MAX_CLIP_IN_ZIP", 0)
    path = pack_detector(own)
    with pytest.raises(ValueError, match="made on a memory encoder, which the detector here has not"):
        unpack_detector(session_of(start), path)
    other = session_of(start_session(str(folder)))
    unpack_detector(other, path)
    assert inspect_image(other, files[0], "screw").score == score


def test_a_zip_that_would_look_at_endless_images_is_refused(session, start, tmp_path):
    def larger(name: str, content: bytes) -> bytes:
        return (
            json.dumps(json.loads(content) | {"image_size": 3200}).encode()
            if name.endswith("/config.json")
            else content
        )

    path = _rezip(pack_detector(session), tmp_path / "larger.zip", larger)
    with pytest.raises(ValueError, match="looks at images of more than 2048 pixels"):
        unpack_detector(session_of(start), path)


def _rezip(path: Path, target: Path, change) -> Path:
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(target, "w") as archive:
        for entry in source.infolist():
            archive.writestr(entry.filename, change(entry.filename, source.read(entry)))
    return target


def test_a_zip_that_is_not_what_it_should_be_is_refused(session, start, tmp_path):
    good = pack_detector(session)
    link = zipfile.ZipInfo("detector/config.json")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "link.zip", "w") as archive:
        archive.writestr(link, "/etc/passwd")
    with zipfile.ZipFile(tmp_path / "up.zip", "w") as archive:
        archive.writestr("../../evil.txt", "x")
    with zipfile.ZipFile(tmp_path / "rooted.zip", "w") as archive:
        archive.writestr("/evil.txt", "x")
    with zipfile.ZipFile(tmp_path / "empty.zip", "w") as archive:
        archive.writestr("readme.txt", "x")
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(5):
            archive.writestr(f"{number}.bin", b"\0" * (90 * 2**20))
    (tmp_path / "text.zip").write_text("no zip")

    def larger(name: str, content: bytes) -> bytes:
        if not name.endswith("/config.json"):
            return content
        config = json.loads(content)
        config["products"][0]["image_vectors"] = [10**9]
        return json.dumps(config).encode()

    _rezip(good, tmp_path / "larger.zip", larger)
    _rezip(good, tmp_path / "cut.zip", lambda name, content: content[: len(content) // 2])
    for name, message in (
        ("link", "holds a link"),
        ("up", "leads out of its folder"),
        ("rooted", "leads out of its folder"),
        ("empty", "holds no detector"),
        ("bomb", "too large"),
        ("text", "not a zip file"),
        ("larger", "not those that its settings describe"),
        ("cut", "holds no detector that can be loaded"),
    ):
        other = session_of(start)
        with pytest.raises(ValueError, match=message):
            unpack_detector(other, tmp_path / f"{name}.zip")
        assert other.products == ["bolt", "nut"] and not list(other.folder.iterdir()), name
    assert not (tmp_path / "evil.txt").exists() and not Path("/evil.txt").exists()


def test_code_in_a_zip_stays_there(session, start, tmp_path):
    mark = tmp_path / "ran"
    code = f"open({str(mark)!r}, 'w')\n".encode()
    path = _rezip(
        pack_detector(session), tmp_path / "code.zip", lambda name, content: code if name.endswith(".py") else content
    )
    unpack_detector(session_of(start), path)
    assert not mark.exists()

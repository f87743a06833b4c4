"""What a session holds is its own: detector, pictures, good images and a folder that goes with it."""

from pathlib import Path

from PIL import Image

from demo.inspect_tab import explain_last, inspect, inspect_image
from demo.judge_tab import add_normal_image
from demo.session import ANSWERS_KEPT, NORMAL_IMAGE_SIDE
from demo.teach_tab import teach_product
from demo.transfer import pack_detector, unpack_detector

from .demo_app import session_of


def test_the_standard_session_is_copied_only_when_products_change(start):
    one, another = session_of(start), session_of(start)
    assert one.model is another.model is start.model and one.folder != another.folder
    one.own_detector()
    assert one.model is not start.model and another.model is start.model


def test_pictures_are_files_of_the_session_and_do_not_gather(session, files):
    answers = [inspect(path, "bolt", session)[2] for path in files * 3]
    photograph, heat_map = (Path(path) for path in answers[-1])
    assert session.folder in photograph.parents and photograph.name == "photograph.webp"
    with Image.open(photograph) as one, Image.open(heat_map) as other, Image.open(files[0]) as sent:
        assert one.size == other.size == sent.size
    assert len({path for answer in answers for path in answer}) == 24
    assert len(list((session.folder / "answers").glob("*/*"))) == 2 * ANSWERS_KEPT


def test_a_session_folder_goes_with_its_session(start):
    session = session_of(start)
    folder = session.folder
    assert folder.is_dir()
    del session
    assert not folder.exists()


def test_images_added_later_are_found_at_their_place(session, files):
    add_normal_image(session, "nut", files[0])
    assert [session.normal_image("nut", index) is not None for index in range(5)] == [False, False, False, True, False]
    assert session.normal_image("nut", 3).name == "screw 0.png"
    inspect_image(session, files[0], "nut")
    assert explain_last(session).nearest_name == "screw 0.png"


def test_one_session_keeps_its_images_from_another_and_a_loaded_detector_has_none(session, start, files):
    teach_product(session, "screw", files)
    assert start.normal_images == session_of(start).normal_images == {}
    unpack_detector(session, pack_detector(session))
    assert session.normal_images == {} and not (session.folder / "normals").exists()
    inspect_image(session, files[0], "screw")
    assert explain_last(session).nearest is None


def test_a_large_image_is_kept_smaller_and_a_fit_measures_boxes_in_the_copy(session):
    session.keep_images("nut", [("large.png", Image.new("RGB", (2000, 500)))])
    (before,) = session.normal_images["nut"]
    assert before.size == (2000, 500) and Image.open(before.path).size == (NORMAL_IMAGE_SIDE, NORMAL_IMAGE_SIDE // 4)
    session.adopt(session.model, session.processor)
    assert [image.size for image in session.normal_images["nut"]] == [(NORMAL_IMAGE_SIDE, NORMAL_IMAGE_SIDE // 4)]


def test_what_was_taught_before_is_held_once_for_all_sessions(start, files):
    one, another = session_of(start), session_of(start)
    teach_product(one, "screw", files)
    teach_product(another, "screw", files)
    for product, of_one, of_another in zip(
        start.model.products, one.model.products, another.model.products, strict=False
    ):
        for name, tensor in product.named_buffers():
            assert tensor is of_one.get_buffer(name) is of_another.get_buffer(name)
    assert one.model.products[-1].bank.vectors is not another.model.products[-1].bank.vectors
    before = start.model.products[0].bank.vectors.clone()
    add_normal_image(one, "bolt", files[0])
    assert (
        start.model.products[0].bank.vectors.equal(before) and one.image_count("bolt") == start.image_count("bolt") + 1
    )

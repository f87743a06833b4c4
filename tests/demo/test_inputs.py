"""Files that people send, looked at before they are opened."""

from demo.inputs import read_image


def test_reading_gives_the_name_without_its_folder(nut):
    assert read_image(nut)["path"] == "nut.png"

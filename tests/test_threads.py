"""Images read several at a time: in their order, with the answers of one after the other."""

import threading

import pytest
import torch

from modeling_anople import AnoPLeProcessor
from modeling_anople.images_anople import act_on_each
from modeling_anople.inference_anople import OpenedImage, TiledImage, open_batches, prepare_tiles


@pytest.fixture
def four_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


def test_items_are_acted_on_at_once_and_come_in_order(four_threads):
    second = threading.Event()

    def act(number: int) -> int:
        if number == 0:
            assert second.wait(timeout=10)  # ends after the next one
        else:
            second.set()
        return 10 * number

    assert act_on_each(act, [0, 1, 2, 3, 4, 5]) == [0, 10, 20, 30, 40, 50]


def test_with_one_thread_they_are_acted_on_here():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert set(act_on_each(lambda _: threading.current_thread(), "ab")) == {threading.current_thread()}
    finally:
        torch.set_num_threads(before)


def test_an_error_is_raised_to_the_caller(four_threads):
    with pytest.raises(ZeroDivisionError):
        act_on_each(lambda number: 1 // number, [2, 1, 0, 4])


def test_batches_are_those_of_one_after_the_other(four_threads, make_processor, photograph, tmp_path):
    processor, paths = make_processor(), [tmp_path / f"{number}.png" for number in range(7)]
    for number, path in enumerate(paths):
        photograph(number, size=(40 + number, 48)).save(path)
    paths[3].write_bytes(paths[3].read_bytes()[:200])
    together = list(open_batches(processor, paths, class_names="bolt", batch_size=7))
    torch.set_num_threads(1)
    apart = list(open_batches(processor, paths, class_names="bolt", batch_size=7))
    for [batch] in (together, apart):
        assert [opened.source for opened in batch] == paths and {opened.class_name for opened in batch} == {"bolt"}
        sizes = [opened.image and opened.image.size for opened in batch]
        assert sizes == [(40 + number, 48) if number != 3 else None for number in range(7)]
        assert [number for number, opened in enumerate(batch) if opened.error] == [3] and "3.png" in batch[3].error
    assert [opened.error for opened in together[0]] == [opened.error for opened in apart[0]]
    pixels = [_pixels_of(batch, processor) for batch in (together[0], apart[0])]
    assert torch.equal(*pixels) and len(pixels[0]) == 6


def _pixels_of(batch: list[OpenedImage], processor: AnoPLeProcessor) -> torch.Tensor:
    images = [TiledImage.of(opened.image, processor, None) for opened in batch if opened.image]
    return prepare_tiles([(image, 0) for image in images])[0]


def test_photographs_of_two_sizes_are_no_batch_without_resizing(make_processor, photograph):
    pictures = [photograph(1, size=(40, 32)), photograph(2, size=(32, 32))]
    with pytest.raises(ValueError, match="are no batch: leave do_resize on"):
        make_processor()(pictures, do_resize=False, do_center_crop=False)

"""Work on several images at a time: in their order, here where one thread does it, and with the errors of each."""

import threading

import pytest
import torch

from modeling_anople.images_anople import act_on_each


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


def test_images_of_two_sizes_are_no_batch_without_resizing(make_processor, photograph):
    pictures = [photograph(1, size=(40, 32)), photograph(2, size=(32, 32))]
    with pytest.raises(ValueError, match="are no batch: leave do_resize on"):
        make_processor()(pictures, do_resize=False, do_center_crop=False)

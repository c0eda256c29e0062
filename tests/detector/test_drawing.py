"""Boxes and labels drawn on images."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("PIL.Image")
hypothesis = pytest.importorskip("hypothesis")

from hypothesis import example, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from detector import drawing  # noqa: E402
from detector.drawing import COLOURS, draw_detections, draw_note, text_colour  # noqa: E402
from detector.errors import InputError  # noqa: E402
from detector.types import Detections  # noqa: E402

NAMES = tuple(f"class {index}" for index in range(40))


def made(boxes, size, labels=None, scores=None):
    count = len(boxes)
    return Detections(
        np.array(boxes, np.float32).reshape(count, 4),
        np.array(scores or [0.5] * count, np.float32),
        np.array(labels or [0] * count),
        size,
        NAMES,
    )


def test_a_box_is_drawn_where_it_is():
    image = np.zeros((240, 320, 3), np.uint8)
    drawn = draw_detections(image, made([[100, 80, 200, 180]], (240, 320), labels=[3]))
    colour = list(COLOURS[3])
    # Pixels 100 ... 199 and 80 ... 179, one pixel wide at this size.
    for y, x in ((80, 150), (179, 150), (130, 100), (130, 199)):
        assert drawn[y, x].tolist() == colour
    for y, x in ((130, 99), (130, 200), (180, 150), (130, 101), (130, 150)):
        assert drawn[y, x].tolist() == [0, 0, 0]
    above = drawn[60:80, 100:140].reshape(-1, 3).tolist()
    assert colour in above and list(text_colour(COLOURS[3])) in above
    assert not image.any()


def test_nothing_to_draw_gives_a_copy():
    image = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    drawn = Detections.empty((40, 50)).draw(image)
    assert np.array_equal(drawn, image) and drawn is not image


def test_boxes_are_cut_at_the_borders_and_those_outside_left_out():
    image = np.zeros((200, 200, 3), np.uint8)
    drawn = draw_detections(image, made([[-50, 100, 500, 150]], (200, 200)))
    assert drawn[100, 199].tolist() == drawn[149, 0].tolist() == list(COLOURS[0])
    assert not draw_detections(image, made([[300, 300, 400, 400], [-9, 5, -1, 90]], (200, 200))).any()


def test_the_best_is_on_top():
    image = np.zeros((200, 200, 3), np.uint8)
    drawn = draw_detections(image, made([[50, 80, 150, 150]] * 2, (200, 200), labels=[1, 2], scores=[0.9, 0.3]))
    assert drawn[149, 100].tolist() == list(COLOURS[1])


def test_colours_start_again_after_the_last_class():
    image = np.zeros((100, 100, 3), np.uint8)
    drawn = draw_detections(image, made([[10, 40, 90, 90]], (100, 100), labels=[len(COLOURS) + 2]))
    assert drawn[89, 50].tolist() == list(COLOURS[2])
    assert len(set(COLOURS)) == len(COLOURS)


def test_text_reads_on_every_colour():
    assert text_colour((0, 0, 0)) == (255, 255, 255) and text_colour((255, 255, 255)) == (0, 0, 0)
    assert text_colour((0, 0, 160)) == (255, 255, 255) and text_colour((250, 220, 60)) == (0, 0, 0)


@given(
    size=st.tuples(st.integers(1, 70), st.integers(1, 120)),
    box=st.tuples(*[st.floats(-60, 160, width=32)] * 4),
    label=st.integers(0, 39),
)
@example(size=(16, 100), box=(10.0, 5.0, 90.0, 15.0), label=1)  # room for the plate neither above nor below the corner
@settings(max_examples=60)
def test_plates_and_text_stay_within_any_image(size, box, label):
    boxes = [[min(box[0], box[2]), min(box[1], box[3]), max(box[0], box[2]), max(box[1], box[3])]]
    plates, texts = [], []
    original = drawing._pillow("ImageDraw").ImageDraw

    class Spy(original):
        def rectangle(self, xy, fill=None, **options):
            if fill is not None:
                plates.append(xy)
            super().rectangle(xy, fill=fill, **options)

        def text(self, xy, text, **options):
            texts.append(self.textbbox(xy, text, font=options["font"], anchor=options["anchor"]))
            super().text(xy, text, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(drawing._pillow("ImageDraw"), "Draw", lambda canvas: Spy(canvas))
        draw_detections(np.zeros((*size, 3), np.uint8), made(boxes, size, labels=[label]))
    assert len(plates) == len(texts)
    for left, top, right, bottom in plates + [(x1, y1, x2 - 1, y2 - 1) for x1, y1, x2, y2 in texts]:
        assert left >= 0 and top >= 0 and right < size[1] and bottom < size[0]


def test_what_has_no_shape_is_a_question_mark():
    assert drawing._fitted("a\nb\ud800", 200, drawing._font(12)) == "a?b?"


def test_long_names_are_shortened():
    font = drawing._font(12)
    text = drawing._fitted("a very long name of a class", 60, font)
    assert text.endswith("...") and font.getlength(text) <= 60
    assert drawing._fitted("short", 600, font) == "short"
    assert drawing._fitted("anything", 3, font) == ""


def test_without_matplotlib_a_font_is_found_too(monkeypatch):
    monkeypatch.setattr(drawing.importlib.util, "find_spec", lambda name: None)
    assert drawing._font(14).getlength("cat 0.50") > 0


def test_an_image_of_another_size_is_refused():
    with pytest.raises(InputError, match=r"image has size \(40, 50\); expected \(50, 40\)"):
        draw_detections(np.zeros((40, 50, 3), np.uint8), Detections.empty((50, 40)))


def test_a_note_stands_in_the_upper_left_corner_and_fits():
    image = np.full((200, 300, 3), 200, np.uint8)
    noted = draw_note(image, "25.0 fps   latency ms: p50 31, p90 40, p99 55")
    changed = np.argwhere((noted != image).any(axis=2))
    assert changed.min(axis=0).tolist() == [0, 0] and changed.max(axis=0)[0] < 30
    assert noted.shape == image.shape and (image == 200).all()
    assert draw_note(image, "").tolist() == image.tolist()
    assert draw_note(np.zeros((6, 8, 3), np.uint8), "25 fps").shape == (6, 8, 3)

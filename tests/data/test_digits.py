from collections import Counter

import numpy as np

from flamingo_jax.data import digits
from flamingo_jax.text import digit_words


def test_splits_share_no_scan():
    splits = [digits.scans(split) for split in ("train", "validation", "held_out")]
    assert [len(pixels) for pixels, _ in splits] == [1200, 200, 397]
    views = [{scan.tobytes() for scan in pixels} for pixels, _ in splits]
    assert not views[0] & views[1]
    assert not (views[0] | views[1]) & views[2]
    assert all(set(targets) == set(range(10)) for _, targets in splits)


def test_poses_are_sixteen_different_views(rng):
    scan = rng.integers(0, 200, (8, 8, 3), dtype=np.uint8)
    views = {digits.posed(scan, pose).tobytes() for pose in range(digit_words.NUM_POSES)}
    assert len(views) == 16
    np.testing.assert_array_equal(digits.posed(scan, 0), scan)
    assert len({digit_words.caption(3, pose) for pose in range(digit_words.NUM_POSES)}) == 16


def test_documents_are_functions_of_their_position():
    source = digits.DigitDocuments()
    first, again = (source.document(5, np.random.default_rng(5)) for _ in range(2))
    assert first.key == again.key
    for a, b in zip(first.parts, again.parts, strict=True):
        np.testing.assert_array_equal(a, b)


def test_binding_documents_bind_each_name_to_one_class(rng):
    source = digits.DigitDocuments(binding_share=1.0, num_images=12)
    pairs = Counter()
    for position in range(200):
        parts = source.document(position, rng).parts
        names = {part.text for part in parts[1::2]}
        assert len(parts) == 24
        assert names <= set(digit_words.NAMES)
        assert len(names) <= 2
        pairs.update(names)
    assert len(pairs) == len(digit_words.NAMES)


def test_names_say_nothing_about_digits(rng):
    """Over many documents, each name goes with each digit equally often."""
    targets = digits.scans("held_out")[1]
    counts = np.zeros((10, len(digit_words.NAMES)))
    for _ in range(4000):
        _, asked, (right, _) = digits.binding_question(0, rng)
        counts[targets[asked], digit_words.NAMES.index(right)] += 1
    assert abs(counts - 20).max() < 5 * np.sqrt(20)


def test_the_curriculum_goes_from_copies_to_different_scans():
    source = digits.DigitDocuments(binding_share=1.0, copies_until=100)

    def different_scans(position: int) -> int:
        rng = np.random.default_rng(position)
        document = source.document(position, rng)
        return len({np.sort(image, axis=None).tobytes() for image in document.images})

    # A shift that cuts ink off makes a copy look like another scan, so copies are not all equal.
    assert np.mean([different_scans(p) for p in range(10)]) < 8
    assert np.mean([different_scans(p) for p in range(100, 110)]) > 11


def test_binding_questions_show_every_scan_once(rng):
    targets = digits.scans("held_out")[1]
    for shots in (0, 1, 8):
        shown, asked, (right, wrong) = digits.binding_question(shots, rng)
        scans = [scan for scan, _ in shown]
        assert len({*scans, asked}) == 2 * shots + 1
        assert Counter(name for _, name in shown) == ({right: shots, wrong: shots} if shots else {})
        assert all((targets[scan] == targets[asked]) == (name == right) for scan, name in shown)


def test_captions_are_whole_words():
    tokenizer = digit_words.tokenizer()
    ids = tokenizer.encode(digit_words.caption(7, 15)).ids
    assert tokenizer.decode(ids) == "a handwritten seven turned right mirrored inverted"
    assert tokenizer.token_to_id("</s>") not in ids

"""OpenFlamingo's label masks, told from token ids alone."""

import numpy as np


def loss_weights(
    tokens: np.ndarray, valid: np.ndarray, kind: str, *, image: int, end_of_chunk: int
) -> np.ndarray:
    """1.0 where the token of a "pair" or an "interleaved" row is to be predicted, else 0.0.

    Never counted: padding and `<image>`. In interleaved rows nor what stands before the first
    `<image>` or between an `<|endofchunk|>` and the next `<image>`.
    """
    counted = valid & (tokens != image)
    if kind == "interleaved":
        # From an <image> to the next <|endofchunk|>, that token included.
        index = np.arange(len(tokens))
        last_image = np.maximum.accumulate(np.where(tokens == image, index, -1))
        last_end = np.maximum.accumulate(np.where(tokens == end_of_chunk, index, -1))
        counted &= last_image > np.concatenate([[-1], last_end[:-1]])
    return counted.astype(np.float32)

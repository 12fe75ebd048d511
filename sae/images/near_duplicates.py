"""Near duplicates: copies of an image in another format or size, or with slight changes."""

from __future__ import annotations

import numpy as np

THUMBNAIL = (9, 8)  # columns and rows of the thumbnails that are compared
_NEAR_BITS, _NEAR_COLOURS = 3, 12  # largest differences: bits of 64, levels of 256


def near_duplicates(thumbnails: np.ndarray) -> np.ndarray:
    """Returns for each image the place of the first image that looks the same; its own place if there is none.

    Two images look the same where their thumbnails of 9 x 8 pixels differ by at most 12 of 256 levels (root mean
    square), and in at most 3 of the 64 bits that say which of two neighbours is brighter (dHash, Krawetz 2013); so do
    images that a chain of such pairs connects.

    Args:
        thumbnails: uint8 [n, 8, 9, 3].
    """
    from scipy import sparse  # here: most jobs import `images` for its names alone

    grey = thumbnails.sum(3, dtype=np.uint16)
    looks = np.packbits((grey[:, :, 1:] > grey[:, :, :-1]).reshape(-1, 64), axis=1).view(np.uint64).ravel()
    colours = thumbnails.reshape(len(thumbnails), -1)
    pairs = []
    for band in range(4):  # of two numbers that differ in 3 bits, one quarter is the same
        key = (looks >> np.uint64(16 * band)) & np.uint64(0xFFFF)
        order = np.argsort(key, kind="stable")
        for same in np.split(order, np.flatnonzero(np.diff(key[order])) + 1):
            for place, image in enumerate(same[:-1]):
                others = same[place + 1 :]
                near = others[np.bitwise_count(looks[others] ^ looks[image]) <= _NEAR_BITS]
                apart = np.sqrt(np.square(colours[near] - colours[image].astype(np.float32)).mean(1))
                near = near[apart <= _NEAR_COLOURS]
                pairs.append(np.stack([np.full(len(near), image), near], 1))
    links = np.concatenate(pairs) if pairs else np.empty((0, 2), int)
    graph = sparse.coo_array((np.ones(len(links)), (links[:, 0], links[:, 1])), (len(looks),) * 2)
    _count, label = sparse.csgraph.connected_components(graph, directed=False)
    _labels, first = np.unique(label, return_index=True)
    return first[label]

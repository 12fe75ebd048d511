"""Images: the files in a folder, the manifest that lists them, and their pixels as the model sees them."""

from sae.images.labelling import HELD_OUT, TRAIN, describe
from sae.images.manifest import COLUMNS, label, list_images, ranked, read_manifest, sample, shard, summary, used

__all__ = [
    "COLUMNS",
    "HELD_OUT",
    "TRAIN",
    "describe",
    "label",
    "list_images",
    "ranked",
    "read_manifest",
    "sample",
    "shard",
    "summary",
    "used",
]

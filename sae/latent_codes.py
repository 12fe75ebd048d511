"""Codes: the latents of one dictionary on images, written once by `measure` and read by all later rules.

docs/data.md describes the file, `codes.safetensors`, so that other programs can read it too.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse

from sae.errors import InputError
from sae.files import located, read_arrays, write_arrays

VERSION = 1
NAME = "codes.safetensors"
# Edges of the activation histograms: 24 bins, a factor of √2 each, outer bins open. Latents of a standardised SAE
# fire at about 0.1 to 30.
HISTOGRAM_EDGES = 2.0 ** np.arange(-6, 6.01, 0.5)


@dataclass(frozen=True)
class Tally:
    """Counts over all tokens of the ranked images of both splits.

    rows: int64 [2], tokens that were held out, and train tokens. fired: int64 [2, F], of these the tokens on which each
    latent fires. total: float64 [F], the sum of its activations. histogram: int64 [F, 24], its activations by
    HISTOGRAM_EDGES. by_token: int64 [F, tokens], on how many images it fires at each token. high: int64 [F], on how
    many tokens of high norm it fires; high_rows: int64 [1], how many there are.
    """

    rows: np.ndarray
    fired: np.ndarray
    total: np.ndarray
    histogram: np.ndarray
    by_token: np.ndarray
    high: np.ndarray
    high_rows: np.ndarray

    @classmethod
    def empty(cls, latents: int, tokens: int) -> Tally:
        """Returns a tally of zeros, to be counted up in place."""
        bins = len(HISTOGRAM_EDGES) - 1
        shapes = {"rows": 2, "fired": (2, latents), "total": latents, "histogram": (latents, bins)}
        shapes |= {"by_token": (latents, tokens), "high": latents, "high_rows": 1}
        return cls(**{name: np.zeros(shape, float if name == "total" else int) for name, shape in shapes.items()})


@dataclass(frozen=True)
class Codes:
    """The activations of F latents.

    Attributes:
        z: float32 [n · tokens, F], above 0 where stored; row i · tokens + t is token t of image `ids[i]`.
        ids: int64 [n], the images whose tokens are stored, ascending.
        tokens: tokens of an image, in the order of the activations; patches come last, row by row.
        images: float32 [N, F], each latent's strongest activation on each ranked image; None for a second seed.
        places: int64 [N, F], the token of that activation, the first of equal ones; an entry wherever `images` has one.
        image_ids: int64 [N], the ranked images, ascending.
        error: float64 [m], Σ‖x - x̂‖² over the tokens of each image of the held-out sample.
        tally: see `Tally`; None for a second seed.
        changes: float32 [factors, pairs, F], see `evidence.one_factor`; None for images without known factors.
    """

    z: sparse.csr_array
    ids: np.ndarray
    tokens: int
    images: sparse.csr_array | None = None
    places: sparse.csr_array | None = None
    image_ids: np.ndarray | None = None
    error: np.ndarray | None = None
    tally: Tally | None = None
    changes: np.ndarray | None = None

    @property
    def latents(self) -> int:
        """F, the size of the dictionary."""
        return self.z.shape[1]

    def entries(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns the rows (image · tokens + token), latents and values of all entries of z, three arrays [nnz]."""
        return np.repeat(np.arange(self.z.shape[0]), np.diff(self.z.indptr)), self.z.indices, self.z.data

    def of(self, ids: Sequence[int] | np.ndarray) -> Codes:
        """Returns the codes of these images alone, in the order of `ids`.

        Raises:
            InputError: the tokens of an image are not stored.
        """
        ids = np.asarray(ids, np.int64)
        place = _places(self.ids, ids)
        rows = (place[:, None] * self.tokens + np.arange(self.tokens)).ravel()
        part = replace(self, z=self.z[rows], ids=ids, error=None, tally=None)
        if self.image_ids is None or self.images is None or self.places is None:
            return part
        row = _places(self.image_ids, ids)
        return replace(part, images=self.images[row], places=self.places[row], image_ids=ids)

    def last(self, tokens: int) -> Codes:
        """Returns the codes of the last `tokens` tokens of each image, such as its patches."""
        rows = np.arange(self.z.shape[0]).reshape(-1, self.tokens)[:, -tokens:].ravel()
        return replace(self, z=self.z[rows], tokens=tokens, tally=None)

    def patch_maps(
        self, pairs: Iterable[tuple[int, int]], patches: tuple[int, int]
    ) -> dict[tuple[int, int], np.ndarray]:
        """Returns (latent, image id) -> the latent's activation on each patch, float32 [rows, columns].

        Empty if only the class token was encoded.

        Args:
            pairs: of latent and image id.
            patches: rows and columns.
        """
        maps: dict[tuple[int, int], np.ndarray] = {}
        count = patches[0] * patches[1]
        if self.tokens < count:
            return maps
        by_latent = self.z.tocsc()
        for latent, image in pairs:
            column = slice(*by_latent.indptr[latent : latent + 2])
            first = int(_places(self.ids, np.array([image]))[0]) * self.tokens
            here = slice(*np.searchsorted(by_latent.indices[column], [first, first + self.tokens]))
            values = np.zeros(self.tokens, np.float32)
            values[by_latent.indices[column][here] - first] = by_latent.data[column][here]
            maps[latent, image] = values[-count:].reshape(patches)
        return maps

    def save(self, folder: str | Path, facts: dict[str, Any]) -> None:
        """Writes codes.safetensors into `folder`.

        Args:
            facts: the provenance, for the file's metadata.
        """
        arrays = {
            "ids": self.ids,
            "tokens.indptr": self.z.indptr.astype(np.int64),
            "tokens.indices": self.z.indices.astype(np.int32, copy=False),
            "tokens.values": self.z.data,
        }
        if self.images is not None and self.places is not None and self.tally is not None:
            arrays |= {
                "image_ids": self.image_ids,
                "images.indptr": self.images.indptr.astype(np.int64),
                "images.indices": self.images.indices.astype(np.int32, copy=False),
                "images.values": self.images.data,
                "images.places": self.places.data,
                "error": self.error,
            }
            arrays |= {f"tally.{name}": value for name, value in vars(self.tally).items()}
            arrays |= {} if self.changes is None else {"changes": self.changes}
        told = {"version": VERSION, "latents": self.latents, "tokens": self.tokens, "facts": facts}
        write_arrays(Path(folder) / NAME, arrays, told)


class Growing:
    """Sparse matrices of one pattern that grow on disk row by row, so that memory does not grow with the images.

    Args:
        columns: of each matrix.
        dtypes: of the matrices' values.
    """

    def __init__(self, columns: int, *dtypes: type):
        self._columns, self._rows = columns, [np.zeros(1, np.int64)]
        kinds = map(np.dtype, (np.int32, *dtypes))
        self._files = [(tempfile.TemporaryFile(), kind) for kind in kinds]  # noqa: SIM115 -- open as long as this lives

    def add(self, *matrices: sparse.csr_array) -> None:
        """Appends the rows of these matrices, one for each dtype; the first has the pattern of all."""
        self._rows.append(np.diff(matrices[0].indptr))
        for (file, dtype), values in zip(self._files, (matrices[0].indices, *(m.data for m in matrices)), strict=True):
            with located(tempfile.gettempdir()):
                file.write(np.ascontiguousarray(values, dtype).data)

    def matrices(self) -> list[sparse.csr_array]:
        """Returns the matrices [rows, columns] so far, their entries as memory maps."""
        indptr = np.cumsum(np.concatenate(self._rows))
        arrays = []
        for file, dtype in self._files:
            with located(tempfile.gettempdir()):
                file.flush()
            arrays.append(np.memmap(file, dtype, "r", shape=indptr[-1]) if indptr[-1] else np.empty(0, dtype))
        shape = len(indptr) - 1, self._columns
        return [_matrix(values, arrays[0], indptr, shape) for values in arrays[1:]]


def codes(folder: str | Path) -> Codes:
    """Returns the codes saved in `folder` (…/codes/layer=6/k=32/method=topk/seed=0).

    Raises:
        InputError: the folder holds no codes, or codes of another version, or the file is damaged.
    """
    path = Path(folder) / NAME
    try:
        return _codes(path)
    except FileNotFoundError as error:
        raise InputError(f"{path}: no codes here") from error
    except InputError:
        raise
    except Exception as error:  # of many kinds: each means that the file is damaged
        raise InputError(f"{path}: the file is damaged: {error}; delete it and run measure again") from error


def _codes(path: Path) -> Codes:
    arrays, told = read_arrays(path, mapped=True)
    if told["version"] != VERSION:
        raise InputError(f"{path}: codes of version {told['version']}, this program reads {VERSION}; run measure again")
    latents, tokens, ids = told["latents"], told["tokens"], arrays["ids"]

    def matrix(name: str, values: str, rows: int) -> sparse.csr_array:
        made = _matrix(arrays[values], arrays[f"{name}.indices"], arrays[f"{name}.indptr"], (rows, latents))
        made.check_format()  # SciPy's compiled code trusts the places, and would write outside its memory
        return made

    z = matrix("tokens", "tokens.values", len(ids) * tokens)
    if "image_ids" not in arrays:
        return Codes(z, ids, tokens)
    image_ids = arrays["image_ids"]
    images, places = (matrix("images", f"images.{name}", len(image_ids)) for name in ("values", "places"))
    tally = Tally(**{name: arrays[f"tally.{name}"] for name in Tally.__dataclass_fields__})
    shapes = {name: array.shape for name, array in vars(Tally.empty(latents, tokens)).items()}
    if wrong := [name for name, shape in shapes.items() if vars(tally)[name].shape != shape]:
        raise ValueError(f"tally.{wrong[0]} has another shape than {shapes[wrong[0]]}")
    return Codes(z, ids, tokens, images, places, image_ids, arrays["error"], tally, arrays.get("changes"))


def _matrix(values: np.ndarray, indices: np.ndarray, indptr: np.ndarray, shape: tuple[int, int]) -> sparse.csr_array:
    # SciPy copies memory maps of int32 indices beside int64 row starts: it wants one type. Past 2³¹ entries it may.
    if indptr[-1] <= np.iinfo(np.int32).max:
        indptr = indptr.astype(np.int32)
    return sparse.csr_array((values, indices, indptr), shape)


def _places(all_ids: np.ndarray, ids: np.ndarray) -> np.ndarray:
    place = np.searchsorted(all_ids, ids)
    bad = (place >= len(all_ids)) | (all_ids[np.minimum(place, len(all_ids) - 1)] != ids)
    if bad.any():
        raise InputError(f"image {ids[bad][0]}: its tokens are not in these codes")
    return place

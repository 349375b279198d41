"""A collection of embeddings to search: which pictures resemble this text, or this picture?

Few are searched by a matrix product, many by FAISS (Douze et al. 2024, "The Faiss library",
https://arxiv.org/abs/2401.08281; package `faiss-cpu`). By itself the index stays exact; the approximate
ones, inverted lists and HNSW (Malkov and Yashunin 2016, https://arxiv.org/abs/1603.09320), are there when
asked for by name, and `recall` tells what they miss.

Shapes: N vectors, P wide; Q queries.
"""

import importlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self, get_args

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..hub.saving import atomic_write

__all__ = ["EmbeddingIndex", "Hit"]

Method = Literal["auto", "exact", "flat", "ivf", "hnsw"]
EXACT_UP_TO = 50_000  # vectors; there a matrix product takes some ten milliseconds for one query
BLAS_FROM = 4  # queries at a time; FAISS by itself begins so late that a matrix product outruns it
CHUNK = 2**24  # similarities at a time, 64 MiB
SHORTLIST = 32  # more than asked for, whose distances are taken exactly
EFFORT = {"ivf": 16, "hnsw": 128}
LINKS = 32  # of a vector in HNSW
FORMAT = "hf_mm.embedding_index"


class Hit(NamedTuple):
    """One thing found."""

    id: int | str
    score: float
    metadata: dict[str, Any] | None


class EmbeddingIndex:
    """Vectors with ids and metadata, searched by similarity.

        index = EmbeddingIndex()
        index.add(encode_images(model, processor, pictures), ids=paths)
        for hit in index.search(encode_texts(model, processor, ["a red circle"]), k=5)[0]:
            ...  # hit.id, hit.score, hit.metadata

    Args:
        similarity: "dot" (the cosine, of vectors of length 1) or "euclidean", minus the distance.
        method: "exact", a matrix product; "flat", the same by FAISS; "ivf" and "hnsw", faster and
            approximate. "auto" is "exact" up to 50,000 vectors, "flat" above.
        effort: Inverted lists to look into ("ivf", by default 16), or candidates to keep ("hnsw", 128), per
            query: more is slower and finds more.

    Raises:
        ValueError: There is no such method or similarity, or an effort without an approximate method.
    """

    def __init__(
        self,
        similarity: Literal["dot", "euclidean"] = "dot",
        method: Method = "auto",
        effort: int | None = None,
    ) -> None:
        if similarity not in ("dot", "euclidean"):
            raise ValueError(f"`similarity` is {similarity!r}; it is 'dot' or 'euclidean'.")
        if method not in get_args(Method):
            raise ValueError(f"`method` is {method!r}; there are: {', '.join(get_args(Method))}.")
        if effort is not None and (method not in EFFORT or effort < 1):
            raise ValueError(
                f"`effort`={effort} with `method`={method!r}; it is 1 or more, of 'ivf' and 'hnsw'."
            )
        self.similarity, self.method = similarity, method
        self.effort = effort if effort is not None else EFFORT.get(method)
        self.ids: list[int | str] = []
        self.metadata: list[dict[str, Any] | None] = []
        self._blocks: list[Tensor] = []
        self._known: set[int | str] = set()
        self._built: Any = None  # the FAISS index of all that is in `ids`

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def embeds(self) -> Tensor:
        """(N, P) float32, in the order in which they came."""
        if not self._blocks:
            raise ValueError("The index is empty; `add` embeddings first.")
        if len(self._blocks) > 1:
            self._blocks = [torch.cat(self._blocks)]
        return self._blocks[0]

    def add(
        self,
        embeds: Tensor | np.ndarray,
        ids: Sequence[int | str] | None = None,
        metadata: Sequence[Mapping[str, Any] | None] | None = None,
    ) -> None:
        """Add vectors; nothing is added when something is wrong.

        Args:
            embeds: (n, P).
            ids: What to return for each; by default its number in the index, from 0.
            metadata: What else to return for each; dictionaries that JSON can hold.

        Raises:
            ValueError: Counts or widths do not fit, an id is taken, a vector holds NaN or infinity.
            TypeError: An id is neither number nor text, or JSON cannot hold the metadata.
        """
        block = self._checked(embeds, "embeds")
        ids = list(range(len(self), len(self) + len(block))) if ids is None else list(ids)
        notes = [None] * len(block) if metadata is None else list(metadata)
        for name, given in (("ids", ids), ("metadata", notes)):
            if len(given) != len(block):
                raise ValueError(f"{len(given)} `{name}` for {len(block)} embeddings; give one for each.")
        self._check_ids(ids)
        for one, note in zip(ids, notes, strict=True):
            try:
                json.dumps(note)
            except TypeError as error:
                raise TypeError(f"The metadata of {one!r} cannot be stored: {error}.") from error
        self._blocks.append(block)
        self._known.update(ids)
        self.ids += ids
        self.metadata += [None if note is None else dict(note) for note in notes]
        self._built = None

    def search(self, queries: Tensor | np.ndarray, k: int = 10) -> list[list[Hit]]:
        """The k most similar to each query, the best first; all of them where there are fewer.

        Args:
            queries: (Q, P), embeddings of texts or of pictures.
            k: How many.

        Returns:
            A list of hits per query. An approximate index may find fewer than k.
        """
        scores, rows = self.nearest(queries, k)
        return [
            [Hit(self.ids[r], s, self.metadata[r]) for s, r in zip(scored, found, strict=True) if r >= 0]
            for scored, found in zip(scores.tolist(), rows.tolist(), strict=True)
        ]

    def nearest(self, queries: Tensor | np.ndarray, k: int = 10) -> tuple[Tensor, Tensor]:
        """Scores and row numbers, the best first, of the k most similar to each query.

        Returns:
            (Q, k) float32 and (Q, k) int64; k is N where that is less. What an approximate index does not
            find is row -1 with minus infinity.

        Raises:
            ValueError: The index is empty, `k` is below 1, or the queries are not of its width.
            ImportError: FAISS is needed and not installed.
        """
        queries = self._checked(queries, "queries")
        if k < 1:
            raise ValueError(f"`k` is {k}; it must be at least 1.")
        k = min(k, len(self.embeds))
        if self._method() == "exact":
            return self._exact(queries, k)
        return self._by_faiss(queries, k)

    def recall(self, queries: Tensor | np.ndarray, k: int = 10) -> float:
        """Share of the k truly most similar that `search` finds; 1 for "exact" and "flat"."""
        found, _ = self.nearest(queries, k)
        true, _ = self._exact(self._checked(queries, "queries"), found.shape[1])
        slack = 1e-5 * true.abs().clamp(min=1)[:, -1:]  # so that equals may stand for each other
        return float((found >= true[:, -1:] - slack).double().mean())

    def save(self, path: str | Path) -> None:
        """Write one file, whole or not at all: vectors, ids, metadata, and what FAISS has built.

        Args:
            path: The file, in safetensors' format.
        """
        tensors = {"embeds": self.embeds.contiguous(), "rows": _as_bytes([self.ids, self.metadata])}
        if self.method in EFFORT:
            built = self._package().serialize_index(self._faiss())
            tensors["faiss"] = torch.from_numpy(built.copy())
        fields = {"format": FORMAT, "similarity": self.similarity, "method": self.method}
        with atomic_write(path) as temporary:
            save_file(tensors, temporary, {**fields, "effort": json.dumps(self.effort)})

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: The file is broken, or something else.
        """
        if not Path(path).is_file():
            raise FileNotFoundError(f"There is no index {path}; check the path, from {Path.cwd()}.")
        try:
            with safe_open(path, "pt") as file:
                fields = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  no dictionary
        except SafetensorError as error:
            raise ValueError(f"{path} cannot be read as an index: {error}. Is it complete?") from error
        if fields.get("format") != FORMAT:
            raise ValueError(f"{path} is no index but holds {sorted(tensors)}; give what `save` wrote.")
        effort = json.loads(fields["effort"])
        index = cls(fields["similarity"], fields["method"], effort)
        ids, metadata = json.loads(tensors["rows"].numpy().tobytes())
        index.add(tensors["embeds"], ids, metadata)
        if "faiss" in tensors:
            index._built = index._with_effort(index._package().deserialize_index(tensors["faiss"].numpy()))
        return index

    def _method(self) -> str:
        if self.method != "auto":
            return self.method
        return "exact" if len(self) <= EXACT_UP_TO else "flat"

    def _exact(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        embeds, dot = self.embeds, self.similarity == "dot"
        lengths = None if dot else embeds.square().sum(dim=1) / 2
        wider = k if dot else min(k + SHORTLIST, len(embeds))
        found = []
        for part in queries.split(max(1, CHUNK // len(embeds))):
            similar = part @ embeds.T  # (Q, N)
            if lengths is not None:  # the order of minus the squared distance
                similar -= lengths
            best = similar.topk(wider, dim=1)
            found.append(tuple(best) if dot else self._by_distance(part, best.indices))
        scores, rows = map(torch.cat, zip(*found, strict=True))
        return scores[:, :k], rows[:, :k]

    def _by_distance(self, queries: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Minus the true distances of a short list, best first; differences of squares are rough."""
        found = zip(queries, rows, strict=True)
        scores = -torch.stack([(self.embeds[row.clamp(min=0)] - query).norm(dim=1) for query, row in found])
        scores = scores.masked_fill(rows < 0, -torch.inf)
        order = scores.argsort(dim=1, descending=True, stable=True)
        return scores.gather(1, order), rows.gather(1, order)

    def _by_faiss(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        options = self._package().cvar  # of the whole process
        usual = options.distance_compute_blas_threshold
        if len(queries) >= BLAS_FROM:
            options.distance_compute_blas_threshold = 0
        try:
            scores, rows = map(torch.from_numpy, self._faiss().search(queries.numpy(), k))
        finally:
            options.distance_compute_blas_threshold = usual
        if self.similarity == "euclidean":
            return self._by_distance(queries, rows)
        return scores.masked_fill(rows < 0, -torch.inf), rows

    def _faiss(self) -> Any:
        """The FAISS index, built at the first search after something was added."""
        if self._built is None:
            faiss, embeds, method = self._package(), self.embeds.numpy(), self._method()
            inner = self.similarity == "dot"
            metric = faiss.METRIC_INNER_PRODUCT if inner else faiss.METRIC_L2
            built = faiss.IndexFlat(embeds.shape[1], metric)
            if method == "ivf":
                most = len(embeds) // 39  # FAISS trains a list on as many vectors at least
                lists = max(1, min(int(4 * len(embeds) ** 0.5), most))
                built = faiss.IndexIVFFlat(built, embeds.shape[1], lists, metric)
                built.cp.spherical = inner
                built.train(embeds)
            elif method == "hnsw":
                built = faiss.IndexHNSWFlat(embeds.shape[1], LINKS, metric)
            built.add(embeds)
            self._built = self._with_effort(built)
        return self._built

    def _with_effort(self, built: Any) -> Any:
        if self.method == "ivf":
            built.nprobe = self.effort
        elif self.method == "hnsw":
            built.hnsw.efSearch = self.effort
        return built

    def _package(self) -> Any:
        try:
            return importlib.import_module("faiss")
        except ImportError as error:
            what = (
                f"More than {EXACT_UP_TO:,} vectors" if self.method == "auto" else f"`method`={self.method!r}"
            )
            raise ImportError(
                f"{what} needs FAISS: pip install 'hf-mm[search]', or take `method='exact'`, which is slower."
            ) from error

    def _checked(self, embeds: Tensor | np.ndarray, name: str) -> Tensor:
        """Vectors as float32 on the CPU, of the index's width."""
        block = torch.as_tensor(embeds).detach().cpu().float().contiguous()
        if block.ndim != 2 or not len(block):
            raise ValueError(f"`{name}` must be (rows, width) with a row at least, got {tuple(block.shape)}.")
        if self._blocks and block.shape[1] != self._blocks[0].shape[1]:
            raise ValueError(
                f"`{name}` are {block.shape[1]} wide, the index {self._blocks[0].shape[1]}; take both from "
                "one model."
            )
        broken = (~block.isfinite().all(dim=1)).nonzero()
        if len(broken):
            raise ValueError(f"`{name}` holds NaN or infinity in row {int(broken[0])}.")
        return block

    def _check_ids(self, ids: Sequence[int | str]) -> None:
        new: set[int | str] = set()
        for one in ids:
            if not isinstance(one, int | str):
                raise TypeError(f"The id {one!r} is a {type(one).__name__}; ids are whole numbers or texts.")
            if one in self._known or one in new:
                raise ValueError(f"The id {one!r} is taken; an id stands for one embedding.")
            new.add(one)


def _as_bytes(value: Any) -> Tensor:
    return torch.from_numpy(np.frombuffer(json.dumps(value).encode(), np.uint8).copy())

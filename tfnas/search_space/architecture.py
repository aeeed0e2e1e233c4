"""Architecture: which units of which group, or which input channels of which layer, are kept. No TensorFlow."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Any

import numpy as np

from tfnas.common import markup
from tfnas.common.errors import UserError, brief
from tfnas.common.schema import integer, list_of, read, to_json

_FORMAT = 1
MOST_CHANNELS = 2**24  # channels of one network that may be dropped: far above any real one, and little memory


@dataclasses.dataclass(frozen=True)
class _Layer:
    """The number of channels of a mask, and those that are kept."""

    channels: Annotated[int, integer(1, MOST_CHANNELS)]
    kept: Annotated[Sequence[int], list_of(integer(0, MOST_CHANNELS))]


@dataclasses.dataclass(frozen=True, kw_only=True)
class _File:
    """An architecture's JSON."""

    format: Annotated[int, integer(_FORMAT, _FORMAT)] = _FORMAT
    digest: str
    layers: dict[str, _Layer]


class Architecture(Mapping[str, np.ndarray]):
    """Read-only mapping from names to masks of what is kept, bool, shape (K,).

    After a search with bounds, of a group's channel units, by the group's name; after a published search, of a gated
    layer's input channels, by the layer's Keras path.

    >>> a = Architecture({"conv": [True, False, True]})
    >>> a.kept, a.total
    (2, 3)
    >>> Architecture.from_json(a.to_json()) == a
    True
    """

    def __init__(self, keep: Mapping[str, Any]):
        self._keep = {}
        for name, mask in keep.items():
            mask = np.array(mask)
            if mask.dtype != bool or mask.ndim != 1 or mask.size == 0:
                raise ValueError(
                    f"Architecture: the mask of '{name}' must be bool of shape (K,), K > 0. "
                    f"Received: dtype {mask.dtype}, shape {mask.shape}"
                )
            mask.flags.writeable = False
            self._keep[name] = mask

    def __getitem__(self, name: str) -> np.ndarray:
        return self._keep[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._keep)

    def __len__(self) -> int:
        return len(self._keep)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Architecture):
            return NotImplemented
        return list(self) == list(other) and all(np.array_equal(self[name], other[name]) for name in self)

    def __hash__(self) -> int:
        return hash(self.digest())

    def __repr__(self) -> str:
        return f"<Architecture of {len(self)} masks: {self.kept} of {self.total} channels kept>"

    def _repr_html_(self) -> str:
        shares = [float(mask.mean()) for mask in self.values()]
        # Only the graph knows which layers are removed: `tfnas.graph.channels.Flow.works`.
        words = [f"{mask.sum()} of {mask.size}" for mask in self.values()]
        lead = f"{self.kept} of {self.total} channels kept in {len(self)} masks; {shares.count(0)} keep none."
        return markup.paragraph(lead) + markup.bars(
            list(self), shares, words, "channels kept, %", "Share of channels that each mask of an architecture keeps"
        )

    @property
    def kept(self) -> int:
        """Number of channels kept, over all masks."""
        return int(sum(mask.sum() for mask in self.values()))

    @property
    def total(self) -> int:
        """Number of channels that may be dropped."""
        return sum(mask.size for mask in self.values())

    def digest(self) -> str:
        """Hex SHA-256 of names and masks."""
        sha = hashlib.sha256()
        for name, mask in self.items():
            sha.update(f"{name}:{mask.size}:".encode() + np.packbits(mask).tobytes())
        return sha.hexdigest()

    def to_json(self) -> str:
        """JSON text that `from_json` reads back; lists the indices of the kept channels."""
        layers = {name: _Layer(mask.size, np.flatnonzero(mask).tolist()) for name, mask in self.items()}
        return to_json(_File(digest=self.digest(), layers=layers))

    @classmethod
    def from_json(cls, text: str | bytes) -> Architecture:
        """Inverse of `to_json`. Raises UserError for text that is truncated, altered or not an architecture."""
        title = "architecture: not the JSON of an Architecture"
        file = read(text, _File, title)
        total = sum(layer.channels for layer in file.layers.values())
        if total > MOST_CHANNELS:
            raise UserError(f"{title} (at most {MOST_CHANNELS:,} channels expected. Received: {total:,})")
        keep = {}
        for name, layer in file.layers.items():
            mask = np.zeros(layer.channels, bool)
            try:
                mask[np.array(layer.kept, int)] = True
            except IndexError as error:
                raise UserError(f"{title} ('{name}': {error})") from None
            keep[name] = mask
        architecture = cls(keep)
        if file.digest != (digest := architecture.digest()):
            raise UserError(
                f"architecture: altered since it was written: digest {brief(file.digest[:12])} expected. Received: "
                f"'{digest[:12]}'. Restore the file, or sample again"
            )
        return architecture


class Packed(Sequence[Architecture]):
    """Many architectures of one supernet, one bit per channel; each is unpacked on access.

    >>> a, b = Architecture({"conv": [True, False, True]}), Architecture({"conv": [False, True, True]})
    >>> packed = Packed([a, b])
    >>> len(packed), packed[1] == b, packed[-2:] == [a, b]
    (2, True, True)
    """

    def __init__(self, architectures: Iterable[Architecture]):
        self._sizes: dict[str, int] = {}
        self._bits: list[bytes] = []
        for architecture in architectures:
            self._sizes = self._sizes or {name: mask.size for name, mask in architecture.items()}
            self._bits.append(np.packbits(np.concatenate(list(architecture.values()))).tobytes())

    def __len__(self) -> int:
        return len(self._bits)

    def __getitem__(self, i: Any) -> Any:
        if isinstance(i, slice):
            return [self[j] for j in range(*i.indices(len(self)))]
        bits = np.unpackbits(np.frombuffer(self._bits[i], np.uint8), count=sum(self._sizes.values())).astype(bool)
        return Architecture(
            dict(zip(self._sizes, np.split(bits, np.cumsum([*self._sizes.values()])[:-1]), strict=True))
        )


def check_architecture(architecture: object, title: str) -> None:
    """Raises UserError, naming the function `title`, for what is not an architecture."""
    if not isinstance(architecture, Architecture):
        raise UserError(
            f"{title}: architectures expected, for example from posterior.sample. Received: {brief(architecture)}"
        )

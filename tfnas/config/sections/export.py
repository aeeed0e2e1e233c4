"""Settings of the exported model."""

from __future__ import annotations

import dataclasses

from tfnas.common.errors import UserError
from tfnas.config import fields

# Formats besides the SavedModel; '_int8' is quantized after training.
FORMATS = ("litert", "litert_int8", "onnx", "onnx_int8", "openvino")
_LONGEST_NAME = 200  # bytes: file systems allow 255, and temporary files' names are longer


@dataclasses.dataclass(frozen=True)
class Export:
    """The SavedModel, and other formats of it."""

    name: str = ""  # of the served model; empty: that of the data set (`Data.short_name`)
    version: int = 1
    # Add the signature serve_uncertainty: the average of this many of sample's best candidates, with the search's
    # weights. 0: no such signature. The SavedModel grows by that many networks.
    uncertainty: int = 0
    # An image with more pixels is refused by its header, before it is decoded: a file of a few kilobytes may decode to
    # gigabytes. If data.image_size is not set, only images of the data set's own size are accepted.
    max_pixels: int = 25_000_000
    formats: tuple[str, ...] = ()  # of FORMATS, beside the SavedModel (docs/formats.md); need 'tfnas[formats]'
    calibration: int = 256  # number of training examples from which '_int8' takes the ranges of activations

    def check(self) -> None:
        """Raises UserError for a value out of range."""
        fields.at_least("export.version", self.version, 1)
        fields.at_least("export.max_pixels", self.max_pixels, 1)
        fields.require(
            self.uncertainty == 0 or self.uncertainty > 1, "export.uncertainty", self.uncertainty, "0, or 2 or more"
        )
        for name in self.formats:
            if name == "openvino_int8":
                raise UserError(
                    "config: 'export.formats' has no 'openvino_int8': OpenVINO quantizes with NNCF, which is not used "
                    "here; OpenVINO reads the file of 'onnx_int8'"
                )
            fields.one_of("export.formats", name, FORMATS)
        fields.require(len({*self.formats}) == len(self.formats), "export.formats", self.formats, "different formats")
        fields.at_least("export.calibration", self.calibration, 1)
        check_name(self.name, self.name)


def check_name(name: str, received: str) -> None:
    """Raises UserError unless `export/NAME` is inside the working directory, and not a name that another file takes."""
    fits = "/" not in name and len(name.encode(errors="replace")) <= _LONGEST_NAME
    expected = f"a name without '/', other than '.', '..' and 'results.json', of at most {_LONGEST_NAME} bytes"
    fields.require(fits and name not in (".", "..", "results.json"), "export.name", received, expected)

"""Makes portable StableHLO of XLA programs; see `benchmarks.accelerator`. Needs jaxlib, not TensorFlow."""

import lzma
import pathlib
import pickle
import re
import sys

from jax._src.interpreters import mlir
from jax._src.lib import xla_client
from jaxlib.mlir import ir
from jaxlib.mlir.dialects import stablehlo

_COPY = re.compile(r"(%\S+) = \"?mhlo\.copy\"?[( ](%[\w#]+)\)?(?: \{[^}]*\})? : (.*)")


def _portable(program: bytes) -> bytes:
    with mlir.make_ir_context():
        text = ir.Module.parse(xla_client._xla.mlir.hlo_to_stablehlo(program)).operation.get_asm(
            large_elements_limit=None, enable_debug_info=False
        )
        # StableHLO has no copy; a barrier is one that changes nothing.
        text = _COPY.sub(
            lambda k: f"{k[1]} = stablehlo.optimization_barrier {k[2]} : {k[3].split('->')[-1].strip().strip('()')}",
            text,
        )
        return stablehlo.serialize_portable_artifact(ir.Module.parse(text), stablehlo.get_minimum_version())


for name in sys.argv[1:]:
    file = pathlib.Path(name)
    program, *rest = pickle.loads(file.read_bytes())
    file.with_suffix(".stablehlo").write_bytes(
        pickle.dumps((lzma.compress(_portable(lzma.decompress(program))), *rest))
    )

"""Times portable programs on the first device of JAX, in turns; see `benchmarks.accelerator`."""

import concurrent.futures
import lzma
import pathlib
import pickle
import statistics
import sys
import time

import jax
import numpy as np
from jax._src.interpreters import mlir
from jax._src.lib import xla_client
from jaxlib.mlir.dialects import stablehlo

_ROUNDS, _STEPS, _WARM = 15, 30, 10

jax.config.update("jax_enable_x64", True)
DEVICE = jax.devices()[0]
RNG = np.random.default_rng(0)


def _value(described):
    if not isinstance(described, tuple):
        return described
    shape, dtype, mean, deviation = described
    return (mean + deviation * RNG.standard_normal(shape)).astype(dtype)


class Step:
    """One program and its state on the device."""

    def __init__(self, file):
        self.name = pathlib.Path(file).stem
        program, self._parameters, shape = pickle.loads(pathlib.Path(file).read_bytes())
        with mlir.make_ir_context() as context:
            module = stablehlo.deserialize_portable_artifact(context, lzma.decompress(program))
            devices = xla_client.DeviceList((DEVICE,))
            self._program = DEVICE.client.compile_and_load(module, devices, xla_client.CompileOptions())
        self._shape = shape

    def prepare(self):
        """Puts images, labels and state on the device."""
        images, labels = RNG.normal(size=self._shape).astype("float32"), RNG.integers(0, 10, self._shape[0])
        self._batch = [jax.device_put(x, DEVICE) for x in (images, labels.astype("int32"))]
        self._state = [jax.device_put(_value(value), DEVICE) for value, _ in self._parameters]
        self._assigned = [i for i, (_, assigned) in enumerate(self._parameters) if assigned]

    def milliseconds(self, steps):
        """Mean of so many steps."""
        start = time.perf_counter()
        for _ in range(steps):
            results = self._program.execute_sharded([*self._batch, *self._state])
            loss, *new = results.disassemble_into_single_device_arrays()
            for i, value in zip(self._assigned, new, strict=True):
                self._state[i] = value[0]
        jax.block_until_ready(loss)
        return 1e3 * (time.perf_counter() - start) / steps


def main(files):
    """Prints one table; ratios are over the first file's program."""
    print(f"jax {jax.__version__}, {DEVICE.device_kind}")
    with concurrent.futures.ThreadPoolExecutor() as pool:
        steps = list(pool.map(Step, files))
    for step in steps:
        step.prepare()
        step.milliseconds(_WARM)
    rounds = [[step.milliseconds(_STEPS) for step in steps] for _ in range(_ROUNDS)]
    print("| program | ms a step | over the first (quartiles) |\n| --- | --- | --- |")
    for i, step in enumerate(steps):
        low, middle, high = statistics.quantiles([times[i] / times[0] for times in rounds], n=4)
        milliseconds = statistics.median(times[i] for times in rounds)
        print(f"| {step.name} | {milliseconds:.2f} | {middle:.3f} ({low:.3f} to {high:.3f}) |")


main(sys.argv[1:])

"""Writes training steps of SupNet-M as XLA programs; see `benchmarks.accelerator`."""

import lzma
import pathlib
import pickle

import keras
import numpy as np
import tensorflow as tf
from absl import app, flags

import tfnas

_OUT = flags.DEFINE_string("out", None, "Folder for the programs.", required=True)
_WIDTH = flags.DEFINE_integer("width", 32, "Channels of the first stage.")
_BLOCKS = flags.DEFINE_integer("num_blocks", 1, "Blocks of a stage.")
_BATCH = flags.DEFINE_integer("batch", 128, "Images a step.")
_PRECISION = flags.DEFINE_string("precision", "float32", "Keras's dtype policy.")

_BOUNDS = {"parameters": 0.5, "multiply_adds": 0.5, "steps": 1000}
_VARIANTS = {
    "plain": None,
    "batch": {"noise": "batch", **_BOUNDS},
    "example": {"noise": "example", **_BOUNDS},
    "published": {"ell2": 50},
}
_LARGE = 64  # numbers; values of more travel as their shape and deviation


def _step(model):
    optimizer = model.optimizer
    optimizer.build(model.trainable_variables)

    def step(images, labels):
        with tf.GradientTape() as tape:
            outputs = tf.cast(model(images, training=True), tf.float32)
            loss = tf.add_n([tf.reduce_mean(model.loss.call(labels, outputs)), *model.losses])
        variables = model.trainable_variables
        optimizer.apply(tape.gradient(loss, variables), variables)
        if isinstance(model, tfnas.Supernet):
            model.update()
        return loss

    return step


def _described(value):
    if value.size <= _LARGE or not np.issubdtype(value.dtype, np.floating):
        return value
    constant = np.all(value == value.flat[0])
    return (value.shape, value.dtype.str, float(value.flat[0]) if constant else 0.0, float(value.std()))


def _lowered(step, arguments):
    """The program, and for each parameter behind the arguments its value and whether the step assigns it."""
    function = tf.function(step, jit_compile=True)
    concrete = function.get_concrete_function(*arguments)
    # Asked for the CPU's: for a GPU functions that capture variables are refused, and the program is the same.
    program = function.experimental_get_compiler_ir(*arguments)(stage="hlo_serialized")
    operations = concrete.graph.get_operations()
    assigned = {op.inputs[0].name for op in operations if op.type.startswith("Assign") and "Variable" in op.type}
    variables = {id(variable.handle): variable for variable in concrete.graph.variables}
    captured = {inner.name: variables.get(id(outer), outer) for outer, inner in concrete.graph.captures}
    names = [tensor.name for tensor in concrete.inputs[len(arguments) :]]
    return program, [(_described(captured[name].numpy()), name in assigned) for name in names]


def main(_):
    """Writes one file for each variant."""
    keras.config.set_dtype_policy(_PRECISION.value)
    folder = pathlib.Path(_OUT.value)
    folder.mkdir(parents=True, exist_ok=True)
    for name, options in _VARIANTS.items():
        keras.utils.set_random_seed(0)
        model = tfnas.supernets.multi_branch_resnet(_WIDTH.value, num_blocks=_BLOCKS.value)
        if options is not None:
            model = tfnas.gate(model, num_examples=5e5, **options)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.SGD(0.05, momentum=0.9, nesterov=True), loss, auto_scale_loss=False)
        images = tf.zeros((_BATCH.value, 32, 32, 3))
        program, parameters = _lowered(_step(model), (images, tf.zeros((_BATCH.value,), tf.int32)))
        file = folder / f"{name}_{_WIDTH.value}_{_BLOCKS.value}_{_PRECISION.value}.hlo"
        file.write_bytes(pickle.dumps((lzma.compress(program), parameters, images.shape.as_list())))
        print(f"{file}: {len(program):,} bytes", flush=True)


if __name__ == "__main__":
    app.run(main)

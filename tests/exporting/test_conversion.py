"""Other formats of an exported network: the same probabilities in their own runtimes, whole or not at all."""

import dataclasses
import re
import sys

import keras
import numpy as np
import pytest
import random_models
import tensorflow as tf
from conftest import random_weights
from ml_collections.config_flags import tuple_parser

import tfnas
from tfnas import config
from tfnas.common import schema
from tfnas.common.errors import UserError
from tfnas.data import pipeline
from tfnas.exporting import conversion
from tfnas.runs.measured import Converted
from tfnas.supernets import densenet121, enas, multi_branch_resnet, resnet50
from tfnas.tasks import network_inputs

MEAN, STD = (0.4, 0.5), (0.2, 0.3)
SETTINGS = config.Config(
    data=config.Data(mean=MEAN, std=STD), export=config.Export(formats=config.FORMATS, calibration=20)
)


def cut(model, rng, keep=(0.0, 0.6, 1.0)):
    """A network cut out at random, whole branches gone, so that there are constants and gathered channels in it."""
    random_weights(model, rng)
    supernet = tfnas.gate(model, ell2=1, num_examples=10)
    return tfnas.subnet(supernet, random_models.architecture(supernet, rng, keep))


def splits_of(shape, rng, sizes=(30, 9, 70), classes=3):
    parts = {
        name: (rng.integers(0, 256, (size, *shape), np.uint8), rng.integers(0, classes, size))
        for name, size in zip(pipeline.SPLITS, sizes, strict=True)
    }
    datasets = {name: tf.data.Dataset.from_tensor_slices(part) for name, part in parts.items()}
    sizes = {name: len(part[1]) for name, part in parts.items()}
    return pipeline.Splits(
        **datasets, sizes=sizes, inputs=network_inputs.one(shape), label_names=tuple("abc"[:classes])
    ), parts


def golden(model, images):
    """Probabilities by NumPy from the Keras model's logits."""
    logits = model.predict_on_batch(((images / 255.0 - np.array(MEAN)) / np.array(STD)).astype("float32"))
    exponentials = np.exp(logits.astype("float64") - logits.max(-1, keepdims=True))
    return exponentials / exponentials.sum(-1, keepdims=True)


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """All formats of one network: (folder, records, model, splits' arrays)."""
    keras.utils.set_random_seed(1)  # how far eight bits are off depends on the kernels
    rng = np.random.default_rng(5)
    model = cut(multi_branch_resnet(16, 1, 3, (8, 8, 2), stem_width=4), rng, keep=(0.0, 0.7, 1.0, 1.0))
    splits, parts = splits_of((8, 8, 2), rng)
    folder = tmp_path_factory.mktemp("export")
    (folder / "1").mkdir()
    with conversion.terminal.console.capture() as printed:
        records = conversion.convert(model, splits, SETTINGS, config.FORMATS, folder)
    return folder, records, model, parts, " ".join(printed.get().split())


@pytest.mark.parametrize("name", config.FORMATS)
def test_any_batch_of_raw_pixels_is_answered_as_the_keras_model_does(converted, name):
    folder, records, model, parts, _ = converted
    (record,) = [r for r in records if r.format == name]
    predict = conversion.load(name, folder / record.file)
    images, _ = parts["test"]
    for batch in (images[:1], images[:7], images, images[:1]):
        got = predict({"image": batch})
        assert got.dtype == np.float32
        difference = np.abs(got - golden(model, batch))
        if name.endswith("int8"):
            assert 1e-5 < difference.mean() < 0.05  # if they were equal, nothing would be quantized
        else:
            assert difference.max() < 1e-5


def test_records_are_what_an_independent_count_finds(converted):
    folder, records, model, parts, _ = converted
    assert [record.format for record in records] == list(config.FORMATS)
    schema.read(schema.to_json(records), tuple[Converted, ...], "records")  # what export writes is what is read
    images, labels = parts["test"]
    keras_accuracy = np.mean(golden(model, images).argmax(-1) == labels)
    for record in records:
        predict = conversion.load(record.format, folder / record.file)
        accuracy = np.mean(
            [predict({"image": image[None]})[0].argmax() == label for image, label in zip(images, labels, strict=True)]
        )
        assert record.test == pytest.approx(accuracy, abs=1e-12), record
        assert record.change == pytest.approx((accuracy - keras_accuracy), abs=1e-9)
        validation = parts["validation"][0]
        largest = np.abs(predict({"image": validation}) - golden(model, validation)).max()
        assert record.largest_difference == pytest.approx(largest, abs=1e-6)
        files = [*(folder / record.format).iterdir()]
        assert record.bytes == sum(len(file.read_bytes()) for file in files)
        assert len(files) == (2 if record.format == "openvino" else 1)


def test_what_was_compared_is_said_of_each_format(converted):
    folder, records, model, parts, printed = converted
    images = parts["validation"][0]
    expected = golden(model, images)
    for record in records:
        got = conversion.load(record.format, folder / record.file)({"image": images})
        alike = int(np.sum(got.argmax(-1) == expected.argmax(-1)))
        match = re.search(
            rf"export {record.format}: [^;]*; {alike} of 9 validation images classified like the Keras model, "
            r"probabilities within (\S+) of its",
            printed,
        )
        assert match and float(match[1]) == pytest.approx(np.abs(got - expected).max(), rel=0.06, abs=1e-6), printed


def test_eight_bits_are_smaller(converted):
    sizes = {record.format: record.bytes for record in converted[1]}
    assert sizes["litert_int8"] < 0.5 * sizes["litert"]
    assert sizes["onnx_int8"] < 0.6 * sizes["onnx"]


def test_eight_bits_are_in_the_files(converted):
    import onnx
    from ai_edge_litert.interpreter import Interpreter

    folder = converted[0]
    interpreter = Interpreter(model_path=str(folder / "litert_int8" / "model.tflite"))
    (image,), (answer,) = interpreter.get_input_details(), interpreter.get_output_details()
    assert (image["dtype"], answer["dtype"]) == (np.uint8, np.float32)
    kernels = [t for t in interpreter.get_tensor_details() if len(t["shape"]) == 4 and t["shape"][1] == 3]
    assert kernels and all(t["dtype"] == np.int8 for t in kernels)
    graph = onnx.load(folder / "onnx_int8" / "model.onnx").graph
    constants = {tensor.name: tensor.data_type for tensor in graph.initializer}
    kernels = {node.input[0]: node.output[0] for node in graph.node if node.op_type == "DequantizeLinear"}
    read = {node.input[1] for node in graph.node if node.op_type == "Conv"}
    assert read and {constants[name] for name, output in kernels.items() if output in read} == {onnx.TensorProto.INT8}


def test_openvino_reports_nothing_home(converted):
    import openvino.tools.ovc

    assert type(openvino.tools.ovc.telemetry).__module__ == "openvino.tools.ovc.telemetry_stub"


def test_openvino_reads_what_onnx_quantized(converted):
    folder, _, model, parts, _ = converted
    images = parts["test"][0][:5]
    got = conversion.load("openvino", folder / "onnx_int8" / "model.onnx")({"image": images})
    np.testing.assert_allclose(got, golden(model, images), atol=0.1)
    by_onnx = conversion.load("onnx_int8", folder / "onnx_int8" / "model.onnx")({"image": images})
    # Each rounds sums in its own way: on one processor they have differed by 0.059.
    np.testing.assert_allclose(got, by_onnx, atol=0.1)


@pytest.mark.slow
@pytest.mark.parametrize(
    "build, shape",
    [(enas, (8, 8, 2)), (resnet50, (16, 16, 2)), (densenet121, (32, 32, 2))],
)
def test_every_super_network_converts(build, shape, tmp_path, rng):
    rates = (0.0, 0.0, 0.6) if build is enas else (0.0, 0.6, 1.0)  # of its ten branches a cell, most
    model = cut(build(8 if build is resnet50 else 4, 1, 3, shape), rng, rates)
    splits, _ = splits_of(shape, rng, sizes=(5, 3, 4))
    floats = [name for name in config.FORMATS if not name.endswith("int8")]
    # The largest one takes long enough without.
    records = conversion.convert(model, splits, SETTINGS, floats if build is enas else config.FORMATS, tmp_path)
    differences = {r.format: r.largest_difference for r in records}
    assert max(differences[name] for name in floats) < 1e-5


def tiny(shape=(4, 4, 2)):
    image = keras.Input(shape, name="image")
    return keras.Model(image, keras.layers.Dense(3, name="classifier")(keras.layers.Flatten()(image)))


def test_what_formats_are_compared_with_is_computed_on_the_cpu_in_full_precision(rng):
    network = conversion._Network(tiny(), splits_of((4, 4, 2), rng)[0], SETTINGS)
    operations = network._exact.get_concrete_function().graph.get_operations()
    (product,) = [operation for operation in operations if operation.type == "MatMul"]
    assert product.device.endswith("CPU:0")
    network._exact = lambda pixels: tf.constant(tf.config.experimental.tensor_float_32_execution_enabled())
    assert not network.answers(np.zeros((1, 4, 4, 2), np.uint8))
    assert tf.config.experimental.tensor_float_32_execution_enabled()


def test_calibration_sees_training_images_of_the_networks_size(rng):
    # Of larger images, sorted by class as a folder's are: the value of every pixel says which image it is.
    images = np.broadcast_to(np.arange(200, dtype=np.uint8)[:, None, None, None], (200, 6, 5, 2))
    train = tf.data.Dataset.from_tensor_slices((images, np.arange(200) // 67))
    splits = dataclasses.replace(splits_of((4, 4, 2), rng)[0], train=train, sizes={"train": 200})
    settings = config.Config(
        data=config.Data(mean=MEAN, std=STD, image_size=4, random_resized_crop=True),
        export=config.Export(calibration=30),
    )
    network = conversion._Network(tiny(), splits, settings)
    network.calibrate()
    assert network.calibration["image"].shape == (30, 4, 4, 2) and network.calibration["image"].dtype == np.uint8
    drawn = network.calibration["image"][:, 0, 0, 0]
    assert len({*drawn}) == 30 and {*(drawn // 67)} == {0, 1, 2}
    again = conversion._Network(tiny(), splits, settings)
    again.calibrate()
    np.testing.assert_array_equal(again.calibration["image"], network.calibration["image"])


def test_a_format_that_cannot_be_converted_is_named(tmp_path, rng, monkeypatch):
    splits, _ = splits_of((4, 4, 2), rng)

    def fails(network, file):
        raise ValueError("no kernel for it\nat all")

    monkeypatch.setattr(conversion, "_write_onnx", fails)
    with pytest.raises(UserError, match="cannot be converted to 'onnx': .*no kernel for it"):
        conversion.convert(tiny(), splits, SETTINGS, ("litert", "onnx"), tmp_path)


def test_a_format_that_answers_otherwise_is_refused(tmp_path, rng, monkeypatch):
    splits, _ = splits_of((4, 4, 2), rng)
    load = conversion._load_litert
    monkeypatch.setattr(conversion, "_load_litert", lambda file: lambda images: load(file)(images) + np.float32(2e-4))
    with pytest.raises(UserError, match="'litert' differs by 2.0e-04 .* leave 'litert' out"):
        conversion.convert(tiny(), splits, SETTINGS, ("litert",), tmp_path)


@pytest.mark.parametrize("text", ["litert,onnx_int8", "('litert', 'onnx_int8')", " litert, onnx_int8"])
def test_formats_on_the_command_line_need_no_quotation_marks(text):
    parsed = tuple_parser.TupleParser().parse(text)  # what the flag does
    assert config.parse_value("export.formats", text) == ("litert", "onnx_int8")
    assert config.from_config_dict({"export": {"formats": parsed}}).export.formats == ("litert", "onnx_int8")


def test_missing_packages_are_named_with_the_extra(tmp_path, rng, monkeypatch):
    for package in ("tf2onnx", "openvino"):
        monkeypatch.setitem(sys.modules, package, None)
    conversion.require(("litert", "litert_int8"))
    with pytest.raises(UserError, match=r"onnx_int8 needs tf2onnx, not installed: pip install 'tfnas\[formats\]'"):
        conversion.require(("litert", "onnx_int8"))
    with pytest.raises(UserError, match="needs openvino, tf2onnx, not"):
        conversion.convert(tiny(), splits_of((4, 4, 2), rng)[0], SETTINGS, ("openvino",), tmp_path)
    assert not [*tmp_path.iterdir()]

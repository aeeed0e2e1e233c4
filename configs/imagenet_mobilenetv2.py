"""MobileNetV2 on ImageNet, shrunk to 70 % from the weights of Keras: 3.5 M parameters, 301 M multiply-adds in full.

    tfnas run --config=configs/imagenet_mobilenetv2.py --workdir=runs/mobilenetv2 --config.data.data_dir=DIR

DIR holds imagenet2012 as tensorflow-datasets prepares it. Keras downloads the weights on first use. 40 epochs of 1.23 M
images: GPU days; never run in full by this project.
"""

from tfnas.config import load_file


def mobilenet(input_shape, num_classes):
    """Returns Keras's MobileNetV2 with its weights, giving logits."""
    import keras

    return keras.applications.MobileNetV2(input_shape, weights="imagenet", classifier_activation=None)


def get_config():
    """Few epochs at a small rate: the weights are trained."""
    config = load_file("base/imagenet_paper.py", beside=__file__)
    config.data.update(mean=(0.5,), std=(0.5,))  # pixels from -1 to 1
    config.supernet.source = "imagenet_mobilenetv2:mobilenet"
    config.search.update(
        epochs=5,
        example_multiplier=10.0,
        warmup_epochs=0,
        schedule="one_cosine",
        learning_rate=0.03,
        batch_size=256,
        importance="curvature",
        parameters=0.7,
        multiply_adds=0.7,
    )
    config.sample.rank_by = "loss"
    config.retrain.update(epochs=35, batch_size=256, weight_decay=4e-4, distill=0.5)
    return config

"""VGG-19 with batch normalization for small images (arXiv 1409.1556), a common testbed of pruning."""

import keras

_CONVOLUTIONS = (2, 2, 4, 4, 4)  # of each stage; the last two are equally wide


def vgg19(
    width: int = 64,
    num_classes: int = 100,
    input_shape: tuple[int, int, int] = (32, 32, 3),
) -> keras.Model:
    """Five stages of 3x3 convolutions with batch normalization, pooled in between; returns logits.

    The classifier is one dense layer, as in all work on CIFAR, not the paper's three. 20,081,188 trainable parameters
    and 398,182,400 multiply-adds for 100 classes and 3 channels of 32 x 32.

    Args:
        width: channels of the first stage; doubled up to the fourth.
        num_classes: units of the classifier.
        input_shape: (height, width, channels), height and width at least 16.

    Returns:
        A functional model from `(batch, *input_shape)` to logits (batch, num_classes).

    Raises:
        ValueError: if the width is not positive, or the image cannot be halved four times.
    """
    if width < 1:
        raise ValueError(f"vgg19: width must be positive. Received: {width}")
    if len(input_shape) != 3 or not all(input_shape) or min(input_shape[:2]) < 16:
        raise ValueError(
            "vgg19: input_shape must be (height, width, channels), height and width at least 16. "
            f"Received: {tuple(input_shape)}"
        )
    x = image = keras.Input(input_shape, name="image")
    for stage, count in enumerate(_CONVOLUTIONS):
        if stage:
            x = keras.layers.MaxPooling2D(name=f"stage{stage}_pool")(x)
        for i in range(count):
            name, filters = f"stage{stage + 1}_%s{i + 1}", width * 2 ** min(stage, 3)
            x = keras.layers.Conv2D(
                filters, 3, padding="same", use_bias=False, kernel_initializer="he_normal", name=name % "conv"
            )(x)
            x = keras.layers.BatchNormalization(name=name % "bn")(x)
            x = keras.layers.ReLU(name=name % "relu")(x)
    x = keras.layers.GlobalAveragePooling2D(name="head_pool")(x)
    logits = keras.layers.Dense(num_classes, name="classifier")(x)
    return keras.Model(image, logits, name="vgg19")

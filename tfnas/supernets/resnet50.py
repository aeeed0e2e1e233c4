"""SupNet-R-50: ResNet-50 with four parallel convolutions in place of every 3x3 (arXiv 1906.09557)."""

import keras

_PUBLISHED_BLOCKS = (3, 4, 6, 3)
# (name, kernel size, dilation); with dilation 2, a 3x3 kernel covers 5x5 pixels and a 5x5 covers 9x9.
_BRANCHES = (("1x1", 1, 1), ("3x3", 3, 1), ("3x3_dilated", 3, 2), ("5x5_dilated", 5, 2))


def resnet50(
    width: int = 64,
    num_blocks: int = 0,
    num_classes: int = 1000,
    input_shape: tuple[int, int, int] = (224, 224, 3),
) -> keras.Model:
    """ResNet-50 (arXiv 1512.03385) whose 3x3 convolutions are four parallel ones, concatenated; returns logits.

    The four are 1x1, 3x3, 3x3 dilated to 5x5 and 5x5 dilated to 9x9, each with a quarter of the maps. A stage's stride
    is in its first 1x1 convolution, as in the ResNet paper: a convolution cannot have both stride and dilation, and
    this way all four see every pixel of their input.

    Trainable parameters for 1,000 classes and 3 channels: 28,071,976, of which ResNet-50 has 25,557,032 and the four
    convolutions add 2 width^2 in every block. The paper's table says 44.0 M, which does not follow from its text; this
    network follows the text.

    Args:
        width: channels of the first stage's inner convolutions, divisible by 4; doubled in each of the next three.
        num_blocks: blocks in each of the four stages; 0 means 3, 4, 6 and 3, as published.
        num_classes: units of the classifier.
        input_shape: (height, width, channels).

    Returns:
        A functional model from `(batch, *input_shape)` to logits (batch, num_classes).

    Raises:
        ValueError: if the width is not divisible by 4, num_blocks is negative or input_shape is not three positive
            sizes.
    """
    if width % 4 or width < 4:
        raise ValueError(f"resnet50: width must be positive and divisible by 4. Received: {width}")
    if num_blocks < 0:
        raise ValueError(f"resnet50: num_blocks must be at least 0. Received: {num_blocks}")
    if len(input_shape) != 3 or not all(input_shape):
        raise ValueError(f"resnet50: input_shape must be (height, width, channels). Received: {tuple(input_shape)}")
    image = keras.Input(input_shape, name="image")
    x = _conv(image, width, 7, "stem_conv", strides=2)
    x = keras.layers.BatchNormalization(name="stem_bn")(x)
    x = keras.layers.ReLU(name="stem_relu")(x)
    x = keras.layers.MaxPooling2D(3, 2, padding="same", name="stem_pool")(x)
    for stage, count in enumerate([num_blocks] * 4 if num_blocks else _PUBLISHED_BLOCKS):
        for block in range(count):
            strides = 2 if stage > 0 and block == 0 else 1
            x = _block(x, width * 2**stage, strides, f"stage{stage + 1}_block{block + 1}")
    x = keras.layers.GlobalAveragePooling2D(name="head_pool")(x)
    logits = keras.layers.Dense(num_classes, name="classifier")(x)
    return keras.Model(image, logits, name="resnet50")


def _conv(x, filters: int, size: int, name: str, strides: int = 1, dilation: int = 1):
    return keras.layers.Conv2D(
        filters,
        size,
        strides,
        padding="same",
        dilation_rate=dilation,
        use_bias=False,
        kernel_initializer="he_normal",
        name=name,
    )(x)


def _block(x, width: int, strides: int, name: str):
    skip = x
    if strides != 1 or x.shape[-1] != 4 * width:
        skip = _conv(x, 4 * width, 1, f"{name}_skip_conv", strides)
        skip = keras.layers.BatchNormalization(name=f"{name}_skip_bn")(skip)
    x = _conv(x, width, 1, f"{name}_conv1", strides)
    x = keras.layers.BatchNormalization(name=f"{name}_bn1")(x)
    x = keras.layers.ReLU(name=f"{name}_relu1")(x)
    branches = [
        _conv(x, width // 4, size, f"{name}_conv2_{branch}", dilation=dilation) for branch, size, dilation in _BRANCHES
    ]
    x = keras.layers.Concatenate(name=f"{name}_concat")(branches)
    x = keras.layers.BatchNormalization(name=f"{name}_bn2")(x)
    x = keras.layers.ReLU(name=f"{name}_relu2")(x)
    x = _conv(x, 4 * width, 1, f"{name}_conv3")
    x = keras.layers.BatchNormalization(name=f"{name}_bn3")(x)
    x = keras.layers.Add(name=f"{name}_add")([skip, x])
    return keras.layers.ReLU(name=f"{name}_relu")(x)

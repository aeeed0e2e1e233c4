"""ResNet-56 and its relatives for small images (arXiv 1512.03385, section 4.2), a common testbed of pruning."""

import keras


def resnet_cifar(
    width: int = 16,
    num_blocks: int = 9,
    num_classes: int = 10,
    input_shape: tuple[int, int, int] = (32, 32, 3),
) -> keras.Model:
    """Three stages of `num_blocks` blocks, `width`, 2 `width` and 4 `width` channels wide; returns logits.

    6 `num_blocks` + 2 layers deep: ResNet-20 with 3 blocks a stage, ResNet-56 with 9. Where a stage begins, the skip
    has no weights: it takes every other pixel, with zeros for the channels that it lacks (the paper's option A). These
    zeros hold the streams at their width: channels inside of blocks vanish, as in the published comparisons.

    ResNet-56 for 10 classes and 3 channels has 853,018 trainable parameters and 125,485,696 multiply-adds.

    Args:
        width: channels of the first stage, even.
        num_blocks: blocks in each of the three stages.
        num_classes: units of the classifier.
        input_shape: (height, width, channels).

    Returns:
        A functional model from `(batch, *input_shape)` to logits (batch, num_classes).

    Raises:
        ValueError: if the width is not even and positive, there is no block, or input_shape is not three sizes.
    """
    if width % 2 or width < 2:
        raise ValueError(f"resnet_cifar: width must be even and positive. Received: {width}")
    if num_blocks < 1:
        raise ValueError(f"resnet_cifar: num_blocks must be at least 1. Received: {num_blocks}")
    if len(input_shape) != 3 or not all(input_shape):
        raise ValueError(f"resnet_cifar: input_shape must be (height, width, channels). Received: {tuple(input_shape)}")
    image = keras.Input(input_shape, name="image")
    x = _conv(image, width, 1, "stem")
    x = keras.layers.ReLU(name="stem_relu")(x)
    for stage in range(3):
        for block in range(num_blocks):
            strides = 2 if stage > 0 and block == 0 else 1
            x = _block(x, width * 2**stage, strides, f"stage{stage + 1}_block{block + 1}")
    x = keras.layers.GlobalAveragePooling2D(name="head_pool")(x)
    logits = keras.layers.Dense(num_classes, name="classifier")(x)
    return keras.Model(image, logits, name="resnet_cifar")


def _conv(x, filters: int, strides: int, name: str):
    x = keras.layers.Conv2D(
        filters, 3, strides, padding="same", use_bias=False, kernel_initializer="he_normal", name=f"{name}_conv"
    )(x)
    return keras.layers.BatchNormalization(name=f"{name}_bn")(x)


def _block(x, width: int, strides: int, name: str):
    y = keras.layers.ReLU(name=f"{name}_relu1")(_conv(x, width, strides, f"{name}_1"))
    y = _conv(y, width, 1, f"{name}_2")
    if strides > 1:
        lacking = (width - x.shape[-1]) // 2
        x = keras.ops.pad(x[:, ::strides, ::strides], ((0, 0), (0, 0), (0, 0), (lacking, lacking)))
    x = keras.layers.Add(name=f"{name}_add")([x, y])
    return keras.layers.ReLU(name=f"{name}_relu2")(x)

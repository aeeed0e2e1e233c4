"""SupNet-M and SupNet-MI: a residual network with a skip and two residual paths in every block (arXiv 1906.09557)."""

import keras


def multi_branch_resnet(
    width: int = 96,
    num_blocks: int = 4,
    num_classes: int = 10,
    input_shape: tuple[int, int, int] = (32, 32, 3),
    stem_width: int = 16,
) -> keras.Model:
    """Three stages of `num_blocks` blocks, `width`, 2 `width` and 4 `width` channels wide; returns logits.

    It is "shake-shake 26 2x96d" (arXiv 1705.07485) without the shake noise. A block adds to its skip two paths of
    ReLU-Conv3x3-BN-ReLU-Conv3x3-BN. Where width or size changes, the skip is ReLU and two concatenated halves, each
    subsampling and a Conv1x1, the second half shifted by one pixel down and right, then BN.

    Trainable parameters for 10 classes and 3 channels: 26,192,922 at width 96 (SupNet-M), 72,695,194 at width 160
    (SupNet-MI).

    Args:
        width: channels of the first stage, even.
        num_blocks: blocks in each of the three stages.
        num_classes: units of the classifier.
        input_shape: (height, width, channels); height and width divisible by 4.
        stem_width: channels of the first convolution.

    Returns:
        A functional model from `(batch, *input_shape)` to logits (batch, num_classes).

    Raises:
        ValueError: if the width is odd or the image cannot be halved twice.
    """
    if width % 2 or width < 2:
        raise ValueError(f"multi_branch_resnet: width must be even and positive. Received: {width}")
    if len(input_shape) != 3 or not all(input_shape) or input_shape[0] % 4 or input_shape[1] % 4:
        raise ValueError(
            "multi_branch_resnet: input_shape must be (height, width, channels) with height and width divisible "
            f"by 4. Received: {tuple(input_shape)}"
        )
    image = keras.Input(input_shape, name="image")
    x = _conv(stem_width, 3, 1, "stem_conv")(image)
    x = keras.layers.BatchNormalization(name="stem_bn")(x)
    for stage in range(3):
        for block in range(num_blocks):
            strides = 2 if stage > 0 and block == 0 else 1
            x = _block(x, width * 2**stage, strides, f"stage{stage + 1}_block{block + 1}")
    x = keras.layers.ReLU(name="head_relu")(x)
    x = keras.layers.GlobalAveragePooling2D(name="head_pool")(x)
    logits = keras.layers.Dense(num_classes, name="classifier")(x)
    return keras.Model(image, logits, name="multi_branch_resnet")


def _conv(filters: int, size: int, strides: int, name: str) -> keras.layers.Conv2D:
    # Without a bias, because a normalization follows; He initialization, as usual in residual networks.
    return keras.layers.Conv2D(
        filters, size, strides, padding="same", use_bias=False, kernel_initializer="he_normal", name=name
    )


def _block(x, width: int, strides: int, name: str):
    changes = strides != 1 or x.shape[-1] != width
    skip = _skip(x, width, strides, f"{name}_skip") if changes else x
    paths = [_path(x, width, strides, f"{name}_path{i}") for i in (1, 2)]
    return keras.layers.Add(name=f"{name}_add")([skip, *paths])


def _path(x, width: int, strides: int, name: str):
    for i, step in ((1, strides), (2, 1)):
        x = keras.layers.ReLU(name=f"{name}_relu{i}")(x)
        x = _conv(width, 3, step, f"{name}_conv{i}")(x)
        x = keras.layers.BatchNormalization(name=f"{name}_bn{i}")(x)
    return x


def _skip(x, width: int, strides: int, name: str):
    x = keras.layers.ReLU(name=f"{name}_relu")(x)
    # At stride 1, both halves read the same pixels.
    shifted = keras.layers.Cropping2D(((1, 0), (1, 0)), name=f"{name}_shift")(x) if strides > 1 else x
    halves = []
    for half, source in (("a", x), ("b", shifted)):
        if strides > 1:
            source = keras.layers.AveragePooling2D(1, strides, name=f"{name}_pool_{half}")(source)
        halves.append(_conv(width // 2, 1, 1, f"{name}_conv_{half}")(source))
    x = keras.layers.Concatenate(name=f"{name}_concat")(halves)
    return keras.layers.BatchNormalization(name=f"{name}_bn")(x)

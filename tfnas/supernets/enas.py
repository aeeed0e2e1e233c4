"""SupNet-E and SupNet-EI: the micro-cell network that ENAS published (arXiv 1906.09557)."""

import keras

# Five nodes of (input x, operation on x, input y, operation on y); a node is the sum of both. Inputs 0 and 1 are the
# two previous cells, 2 is the first node, and so on.
NORMAL_CELL = ((0, 2, 0, 0), (0, 4, 0, 1), (0, 4, 1, 1), (1, 0, 0, 1), (0, 2, 1, 1))
REDUCTION_CELL = ((1, 0, 1, 0), (0, 3, 0, 2), (1, 1, 3, 1), (1, 0, 0, 4), (0, 3, 1, 1))
_SEPARABLE_3, _SEPARABLE_5, _AVERAGE, _MAXIMUM, _IDENTITY = range(5)


def enas(
    width: int = 36,
    num_blocks: int = 5,
    num_classes: int = 10,
    input_shape: tuple[int, int, int] = (32, 32, 3),
    drop_path: float = 0.0,
) -> keras.Model:
    """Three stages of `num_blocks` normal cells, with reduction cells in between (arXiv 1802.03268); returns logits.

    A reduction halves the image and doubles the width. A cell reads the two cells before it, each converted to its
    width and size by ReLU-Conv1x1-BN (or ReLU and a factorized reduction: two halves, each subsampling and a Conv1x1,
    the second half shifted by one pixel down and right, concatenated, BN), and the closer one through a second
    ReLU-Conv1x1-BN. It concatenates the nodes that no other node reads. A separable convolution is applied twice:
    ReLU-depthwise-pointwise-BN, ReLU-depthwise-pointwise-BN.

    With drop-path, training drops a node's branch for some of the examples, and divides it by the keep probability for
    the others; identities are kept. The rate of cell i of n is drop_path * i / n.

    Unlike the published network, this one has no auxiliary head, its drop-path rate is constant during training
    instead of growing from 0, and its classifier has a bias.

    Trainable parameters for 10 classes and 3 channels: 3,894,382 at width 36 (SupNet-E), 14,784,562 at width 72
    (SupNet-EI).

    Args:
        width: channels of every node in the first stage; the first convolution has three times as many.
        num_blocks: normal cells in each of the three stages.
        num_classes: units of the classifier.
        input_shape: (height, width, channels); height and width divisible by 4.
        drop_path: rate of the last cell, in [0, 1); 0.4 at the end of the published training. 0 adds no layers.

    Returns:
        A functional model from `(batch, *input_shape)` to logits (batch, num_classes).

    Raises:
        ValueError: if width or num_blocks is not positive, drop_path is out of range, or the image cannot be
            halved twice.
    """
    for argument, value in (("width", width), ("num_blocks", num_blocks)):
        if value < 1:
            raise ValueError(f"enas: {argument} must be positive. Received: {value}")
    if not 0 <= drop_path < 1:
        raise ValueError(f"enas: drop_path must be in [0, 1). Received: {drop_path}")
    if len(input_shape) != 3 or not all(input_shape) or input_shape[0] % 4 or input_shape[1] % 4:
        raise ValueError(
            "enas: input_shape must be (height, width, channels) with height and width divisible by 4. "
            f"Received: {tuple(input_shape)}"
        )
    image = keras.Input(input_shape, name="image")
    x = keras.layers.Conv2D(
        3 * width, 3, padding="same", use_bias=False, kernel_initializer="he_normal", name="stem_conv"
    )(image)
    x = keras.layers.BatchNormalization(name="stem_bn")(x)
    before, x = x, x
    number, count = 0, 3 * num_blocks + 2
    for stage in range(3):
        for reduces in [True] * (stage > 0) + [False] * num_blocks:
            number += 1
            rate = drop_path * number / count
            before, x = x, _cell(before, x, width * 2**stage, reduces, rate, f"cell{number}")
    x = keras.layers.ReLU(name="head_relu")(x)
    x = keras.layers.GlobalAveragePooling2D(name="head_pool")(x)
    logits = keras.layers.Dense(num_classes, name="classifier")(x)
    return keras.Model(image, logits, name="enas")


def _cell(before, x, width: int, reduces: bool, drop_path: float, name: str):
    if before.shape[1] != x.shape[1]:
        before = keras.layers.ReLU(name=f"{name}_input0_relu")(before)
        before = _factorized_reduction(before, width, f"{name}_input0")
    elif before.shape[-1] != width:
        before = _conv1x1(before, width, f"{name}_input0")
    if x.shape[-1] != width:
        x = _conv1x1(x, width, f"{name}_input1")
    tensors = [before, _conv1x1(x, width, f"{name}_base")]
    code = REDUCTION_CELL if reduces else NORMAL_CELL
    for i, (x_from, x_operation, y_from, y_operation) in enumerate(code, 1):
        branches = []
        for branch, source, operation in (("x", x_from, x_operation), ("y", y_from, y_operation)):
            strides = 2 if reduces and source < 2 else 1
            title = f"{name}_node{i}_{branch}"
            path = _operation(tensors[source], operation, width, strides, title)
            if drop_path and operation != _IDENTITY:
                # One draw per example, for all of its pixels and channels.
                path = keras.layers.Dropout(drop_path, noise_shape=(None, 1, 1, 1), name=f"{title}_droppath")(path)
            branches.append(path)
        tensors.append(keras.layers.Add(name=f"{name}_node{i}_add")(branches))
    used = {source for node in code for source in (node[0], node[2])}
    return keras.layers.Concatenate(name=f"{name}_concat")([t for i, t in enumerate(tensors) if i not in used])


def _operation(x, operation: int, width: int, strides: int, name: str):
    if operation == _AVERAGE:
        return keras.layers.AveragePooling2D(3, strides, padding="same", name=f"{name}_avgpool")(x)
    if operation == _MAXIMUM:
        return keras.layers.MaxPooling2D(3, strides, padding="same", name=f"{name}_maxpool")(x)
    if operation == _IDENTITY:
        if strides > 1:
            return _factorized_reduction(x, width, f"{name}_identity")
        return keras.layers.Identity(name=f"{name}_identity")(x)
    size = {_SEPARABLE_3: 3, _SEPARABLE_5: 5}[operation]
    for i, step in ((1, strides), (2, 1)):
        x = keras.layers.ReLU(name=f"{name}_relu{i}")(x)
        x = keras.layers.SeparableConv2D(
            width,
            size,
            step,
            padding="same",
            use_bias=False,
            depthwise_initializer="he_normal",
            pointwise_initializer="he_normal",
            name=f"{name}_sepconv{i}",
        )(x)
        x = keras.layers.BatchNormalization(name=f"{name}_bn{i}")(x)
    return x


def _conv1x1(x, width: int, name: str):
    x = keras.layers.ReLU(name=f"{name}_relu")(x)
    x = keras.layers.Conv2D(width, 1, use_bias=False, kernel_initializer="he_normal", name=f"{name}_conv")(x)
    return keras.layers.BatchNormalization(name=f"{name}_bn")(x)


def _factorized_reduction(x, width: int, name: str):
    # The published version pads a row and a column of zeros below and right; with even sizes, they are never read.
    shifted = keras.layers.Cropping2D(((1, 0), (1, 0)), name=f"{name}_shift")(x)
    halves = []
    for half, source in (("a", x), ("b", shifted)):
        source = keras.layers.AveragePooling2D(1, 2, name=f"{name}_pool_{half}")(source)
        halves.append(
            keras.layers.Conv2D(
                width // 2, 1, use_bias=False, kernel_initializer="he_normal", name=f"{name}_conv_{half}"
            )(source)
        )
    x = keras.layers.Concatenate(name=f"{name}_concat")(halves)
    return keras.layers.BatchNormalization(name=f"{name}_bn")(x)

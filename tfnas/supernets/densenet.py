"""SupNet-D-121: DenseNet-121, and its 3-D form for video (arXiv 1906.09557)."""

import keras

_PUBLISHED_BLOCKS = (6, 12, 24, 16)


def densenet121(
    width: int = 32,
    num_blocks: int = 0,
    num_classes: int = 1000,
    input_shape: tuple[int, int, int] = (224, 224, 3),
) -> keras.Model:
    """DenseNet-121 (arXiv 1608.06993): in each of four blocks, a layer reads all layers before it; returns logits.

    A layer is BN-ReLU-Conv1x1-BN-ReLU-Conv3x3 on the concatenation of the block's input and all its earlier layers, so
    that a gate can treat each of these sources separately. Between blocks, BN-ReLU-Conv1x1 halves the channels and
    average pooling halves the image. Layers carry torchvision's names, '_' for '.': denseblock1_denselayer1_conv1,
    transition1_conv.

    Trainable parameters for 1,000 classes and 3 channels: 7,978,856, including 6,860,800 in the 119 convolutions other
    than the stem.

    Args:
        width: growth rate: channels that each layer adds. The stem has twice, a layer's Conv1x1 four times as many.
        num_blocks: layers in each of the four blocks; 0 means 6, 12, 24 and 16, as published.
        num_classes: units of the classifier.
        input_shape: (height, width, channels); height and width at least 32.

    Returns:
        A functional model from `(batch, *input_shape)` to logits (batch, num_classes).

    Raises:
        ValueError: if width is not positive, num_blocks is negative or the image cannot be halved five times.
    """
    if len(input_shape) != 3 or not all(input_shape) or min(input_shape[:2]) < 32:
        raise ValueError(
            "densenet121: input_shape must be (height, width, channels) with height and width at least 32. "
            f"Received: {tuple(input_shape)}"
        )
    return _densenet(width, num_blocks, num_classes, input_shape, "densenet121")


def densenet121_3d(
    width: int = 32,
    num_blocks: int = 0,
    num_classes: int = 174,
    input_shape: tuple[int, int, int, int] = (16, 112, 112, 3),
) -> keras.Model:
    """DenseNet-121 for video: a 3x1x1 convolution over time before each 1x3x3 one over space; returns logits.

    The paper's supplement says only this about the network that it searches on Something-Something v1 (174 classes).
    The rest is chosen so that DenseNet-121 is the special case for still images: the convolution over time keeps the
    number of channels, and if its middle tap is the identity and its others are zero, the logits of a still video equal
    those of the 2-D network with the same weights. There is no normalization between the two convolutions. The 1x1
    convolutions become 1x1x1. The stem (1x7x7, stride 1x2x2, then max pooling 1x3x3, stride 1x2x2) does not change the
    number of frames; the three average poolings between blocks are 2x2x2, so 16 frames are reduced to 2.

    Trainable parameters for 174 classes and 3 channels: 9,983,022. The paper does not state a number.

    Args:
        width: growth rate: channels that each layer adds. The stem has twice, a layer's Conv1x1x1 four times as many.
        num_blocks: layers in each of the four blocks; 0 means 6, 12, 24 and 16, as published.
        num_classes: units of the classifier.
        input_shape: (frames, height, width, channels); at least 8 frames, height and width at least 32.

    Returns:
        A functional model from `(batch, *input_shape)` to logits (batch, num_classes).

    Raises:
        ValueError: if width is not positive, num_blocks is negative or the video cannot be halved as often as needed.
    """
    if len(input_shape) != 4 or not all(input_shape) or input_shape[0] < 8 or min(input_shape[1:3]) < 32:
        raise ValueError(
            "densenet121_3d: input_shape must be (frames, height, width, channels) with at least 8 frames, height and "
            f"width at least 32. Received: {tuple(input_shape)}"
        )
    return _densenet(width, num_blocks, num_classes, input_shape, "densenet121_3d")


def _densenet(width: int, num_blocks: int, num_classes: int, input_shape: tuple[int, ...], name: str) -> keras.Model:
    if width < 1:
        raise ValueError(f"{name}: width must be positive. Received: {width}")
    if num_blocks < 0:
        raise ValueError(f"{name}: num_blocks must be at least 0. Received: {num_blocks}")
    image = keras.Input(input_shape, name="image")
    x = _conv(image, 2 * width, 7, "stem_conv", strides=2)
    x = _bn_relu(x, "stem_bn", "stem_relu")
    x = _max_pool(x, "stem_pool")
    counts = [num_blocks] * 4 if num_blocks else _PUBLISHED_BLOCKS
    for block, count in enumerate(counts, 1):
        for i in range(1, count + 1):
            new = _layer(x, width, f"denseblock{block}_denselayer{i}")
            x = keras.layers.Concatenate(name=f"denseblock{block}_denselayer{i}_concat")([x, new])
        if block < len(counts):
            x = _bn_relu(x, f"transition{block}_bn", f"transition{block}_relu")
            x = _conv(x, x.shape[-1] // 2, 1, f"transition{block}_conv")
            x = _halved(x, f"transition{block}_pool")
    x = _bn_relu(x, "head_bn", "head_relu")
    pool = keras.layers.GlobalAveragePooling3D if _is_video(x) else keras.layers.GlobalAveragePooling2D
    x = pool(name="head_pool")(x)
    logits = keras.layers.Dense(num_classes, name="classifier")(x)
    return keras.Model(image, logits, name=name)


def _layer(x, width: int, name: str):
    x = _bn_relu(x, f"{name}_bn1", f"{name}_relu1")
    x = _conv(x, 4 * width, 1, f"{name}_conv1")
    x = _bn_relu(x, f"{name}_bn2", f"{name}_relu2")
    if _is_video(x):
        x = keras.layers.Conv3D(
            4 * width,
            (3, 1, 1),
            padding="same",
            use_bias=False,
            kernel_initializer="he_normal",
            name=f"{name}_conv2_time",
        )(x)
    return _conv(x, width, 3, f"{name}_conv2")


def _is_video(x) -> bool:
    return len(x.shape) == 5


def _bn_relu(x, bn: str, relu: str):
    return keras.layers.ReLU(name=relu)(keras.layers.BatchNormalization(name=bn)(x))


def _conv(x, filters: int, size: int, name: str, strides: int = 1):
    """A convolution over space, of one frame where there are several."""
    options = {"padding": "same", "use_bias": False, "kernel_initializer": "he_normal", "name": name}
    if _is_video(x):
        return keras.layers.Conv3D(filters, (1, size, size), (1, strides, strides), **options)(x)
    return keras.layers.Conv2D(filters, size, strides, **options)(x)


def _max_pool(x, name: str):
    if _is_video(x):
        return keras.layers.MaxPooling3D((1, 3, 3), (1, 2, 2), padding="same", name=name)(x)
    return keras.layers.MaxPooling2D(3, 2, padding="same", name=name)(x)


def _halved(x, name: str):
    pool = keras.layers.AveragePooling3D if _is_video(x) else keras.layers.AveragePooling2D
    return pool(2, name=name)(x)

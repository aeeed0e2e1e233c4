"""One small network, written in every way that Keras has, for `tests/test_model_kinds.py`."""


def _body(layers):
    return [
        layers.Conv2D(8, 3, padding="same", name="stem"),
        layers.ReLU(name="stem_relu"),
        layers.MaxPooling2D(2, name="pool"),
        layers.Conv2D(8, 3, padding="same", use_bias=False, name="path"),
        layers.BatchNormalization(name="path_bn"),
        layers.ReLU(name="path_relu"),
    ]


def _head(layers, num_classes):
    return [
        layers.Conv2D(12, 3, padding="same", name="last"),
        layers.GlobalAveragePooling2D(name="mean"),
        layers.Dense(num_classes, name="classifier"),
    ]


def sequential(input_shape, num_classes):
    import keras  # here, so that the command line answers before TensorFlow is loaded

    return keras.Sequential([keras.Input(input_shape), *_body(keras.layers), *_head(keras.layers, num_classes)])


def built(input_shape, num_classes):
    import keras

    model = keras.Sequential([*_body(keras.layers), *_head(keras.layers, num_classes)])
    model.build((None, *input_shape))
    return model


def nested(input_shape, num_classes):
    import keras

    image = keras.Input(input_shape, name="image")
    inner = x = keras.Input(input_shape)
    for layer in _body(keras.layers):
        x = layer(x)
    x = keras.Model(inner, x, name="body")(image)
    return keras.Model(image, keras.Sequential(_head(keras.layers, num_classes), name="head")(x))


def sequential_of_models(input_shape, num_classes):
    import keras

    inner = x = keras.Input(input_shape)
    for layer in _body(keras.layers):
        x = layer(x)
    body = keras.Model(inner, x, name="body")
    head = keras.Sequential(_head(keras.layers, num_classes), name="head")
    return keras.Sequential([keras.Input(input_shape), body, head])

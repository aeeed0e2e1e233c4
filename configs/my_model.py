"""Your own model on your own images: copy this file, and change what is marked.

    tfnas preview --config=configs/my_model.py --workdir=runs/my_model --config.data.folder=DIR
    tfnas run --config=configs/my_model.py --workdir=runs/my_model --config.data.folder=DIR

DIR has one folder of .jpg or .png files per class: DIR/CLASS/*.jpg. docs/your_model.md says what else it may be.
"""

import pathlib

from tfnas.config import Config, Data, Retrain, Sample, Search, Supernet, to_config_dict


def small_cnn(input_shape, num_classes):
    """The model to make smaller: change it. What it may contain is in docs/your_model.md."""
    import keras  # here, so that the command line answers before TensorFlow is loaded

    def conv(x, filters, name):
        x = keras.layers.Conv2D(filters, 3, padding="same", use_bias=False, name=name)(x)
        x = keras.layers.BatchNormalization(name=f"{name}_bn")(x)
        return keras.layers.ReLU(name=f"{name}_relu")(x)

    image = keras.Input(input_shape, name="image")
    x = conv(image, 16, "stem")  # reads the picture itself
    for i, filters in enumerate((24, 48)):
        skip = conv(x, filters, f"stage{i}_conv1")
        x = conv(skip, filters, f"stage{i}_conv2")
        x = keras.layers.Add(name=f"stage{i}_add")([skip, x])
        x = keras.layers.MaxPooling2D(2, name=f"stage{i}_pool")(x)
    x = keras.layers.GlobalAveragePooling2D(name="pool")(x)
    # Logits: no softmax.
    return keras.Model(image, keras.layers.Dense(num_classes, name="classifier")(x))


def get_config():
    """Settings of the run; the command line overrides single ones, as --config.search.epochs=40."""
    return to_config_dict(
        Config(
            data=Data(
                name="",
                folder="",  # change: your folder, or give it on the command line
                train="train[:70%]",
                validation="train[70%:85%]",  # ranks the candidates
                test="train[85%:]",  # read only at the very end
                image_size=32,  # change: what your model is for
                mean=(0.5,),  # change: what `tfnas preview` prints
                std=(0.25,),
                flip=False,  # change: True where an image and its mirror image are of the same class
                pad_crop=2,
            ),
            supernet=Supernet(source=f"{pathlib.Path(__file__).stem}:small_cnn"),
            # change: the size you want, as shares of your model's
            search=Search(epochs=20, batch_size=50, learning_rate=0.1, parameters=0.5, multiply_adds=0.5),
            sample=Sample(num_candidates=200, num_random=50),
            # change: baselines=("norm", "curvature") also trains networks to compare with, each as long as this one
            retrain=Retrain(epochs=40, batch_size=50),
        )
    )

"""The paper's SupNet-D-121 on ImageNet (arXiv 1906.09557, table 8): 24.8 / 7.5 % top-1 / top-5 error, 6.6 M parameters.

    tfnas run --config=configs/imagenet_densenet121.py --workdir=runs/densenet121 --config.data.data_dir=DIR

The 6.6 M are those kept of 6.86 M in the gated convolutions; the full network has 7.98 M. 180 epochs of 1.23 M images:
GPU days; never run in full by this project.

The paper gives ell2 = 100, and the released script passes just that to a weight term without eq. 15's factor 1/2: twice
the weight term of eq. 15. So ell2 is 200 here. The released code searches from pretrained weights, trains on all of the
training split, and ranks the candidates on the validation split, on which the error is then reported. Here the search
starts from random weights; the candidates are ranked on the last 50,000 images of the training split, which are not
trained on, so N = 1 x 1,231,167; and ImageNet's validation split is the test split. There is no retraining.
"""

from tfnas.config import load_file


def get_config():
    """Settings of the paper."""
    config = load_file("base/imagenet_paper.py", beside=__file__)
    config.supernet.update(name="densenet121", width=32)
    config.search.update(epochs=180, boundaries=(90.0, 140.0, 160.0), batch_size=300, ell2=200.0)
    config.retrain.batch_size = 300
    return config

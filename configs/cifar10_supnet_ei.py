"""The paper's SupNet-EI on CIFAR-10 (arXiv 1906.09557, table 3): 2.56 % test error with 10.8 M of 15.3 M parameters.

    tfnas run --config=configs/cifar10_supnet_ei.py --workdir=runs/supnet_ei --config.data.data_dir=DIR

The published 15.3 M count an auxiliary head; without it, as built here, there are 14.78 M. The batch of 144 is ENAS's.
630 epochs are six cosines, 10, 20, 40, 80, 160 and 320 epochs long. GPU days; never run in full by this project.

The paper gives ell2 = 0.1, and the released script passes just that to a weight term without eq. 15's factor 1/2: twice
the weight term of eq. 15. So ell2 is 0.2 here. The released code trains on all 50,000 images and ranks the candidates
on the test split; here they are ranked on the last 5,000 images of the training split, which are not trained on, so
N = 10 x 45,000. There is no retraining. docs/reproducing.md lists what else differs from the released network and its
training.
"""

from tfnas.config import load_file


def get_config():
    """Those of SupNet-E, with twice the channels."""
    config = load_file("cifar10_supnet_e.py", beside=__file__)
    config.supernet.width = 72
    return config

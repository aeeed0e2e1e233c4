"""ResNet-56 on CIFAR-10 at 2.1 times fewer multiply-adds: 853,018 parameters and 125.5 M multiply-adds in full.

    tfnas run --config=configs/cifar10_resnet56.py --workdir=runs/resnet56 --config.data.data_dir=DIR

Never run in full by this project. Published test accuracies at about this cost: L1 norm 92.93 %, scale of batch
normalization 93.29 %, GReg 93.55 %, ResRep 93.71 %, group sparsity by a learned norm 93.77 %, CHIP 94.16 % at 65.9 M.
Most of these report the best epoch on test; here validation chooses, test is read once, of the last epoch, and 5,000 of
the training images are held out. Beside the network found, the full one and two that other importances choose are
trained as long. Take the mean of three seeds (--config.seed=0, 1, 2; a working directory each).
"""

from tfnas.config import load_file


def get_config():
    """Settings of the published comparisons, but for what is held out."""
    config = load_file("base/cifar_testbed.py", beside=__file__)
    config.supernet.update(name="resnet_cifar", width=16, num_blocks=9)
    config.search.update(parameters=0.5, multiply_adds=0.475)
    return config

"""Super-networks as plain Keras builders that know nothing of tfnas."""

from tfnas.supernets.multi_branch_resnet import multi_branch_resnet as multi_branch_resnet

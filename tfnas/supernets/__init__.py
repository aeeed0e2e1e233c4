"""Super-networks as plain Keras builders that know nothing of tfnas."""

from tfnas.supernets.densenet import densenet121 as densenet121
from tfnas.supernets.densenet import densenet121_3d as densenet121_3d
from tfnas.supernets.enas import enas as enas
from tfnas.supernets.multi_branch_resnet import multi_branch_resnet as multi_branch_resnet
from tfnas.supernets.resnet50 import resnet50 as resnet50

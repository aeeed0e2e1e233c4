"""The paper's supernets and common testbeds: plain Keras builders, independent of the rest of tfnas.

densenet.py             DenseNet-121, and its 3-D form
enas.py                 SupNet-E and SupNet-EI: ENAS cells with several operations per node
multi_branch_resnet.py  SupNet-M and SupNet-MI: residual blocks with several branches
resnet50.py             ResNet-50
resnet_cifar.py         ResNet-56 and others for small images
vgg19.py                VGG-19 for small images
"""

from tfnas.supernets.densenet import densenet121 as densenet121
from tfnas.supernets.densenet import densenet121_3d as densenet121_3d
from tfnas.supernets.enas import enas as enas
from tfnas.supernets.multi_branch_resnet import multi_branch_resnet as multi_branch_resnet
from tfnas.supernets.resnet50 import resnet50 as resnet50
from tfnas.supernets.resnet_cifar import resnet_cifar as resnet_cifar
from tfnas.supernets.vgg19 import vgg19 as vgg19

import numpy as np
import pytest

from tfnas.channels import Graph
from tfnas.costs import cost
from tfnas.supernets import multi_branch_resnet


@pytest.mark.parametrize("width, parameters", [(96, 26_192_922), (160, 72_695_194)])
def test_published_sizes(width, parameters):
    """SupNet-M's 26.2 M and SupNet-MI's 72.7 M."""
    model = multi_branch_resnet(width)
    assert sum(np.prod(v.shape) for v in model.trainable_variables) == parameters
    assert cost(Graph(model)).parameters == parameters
    assert model.output_shape == (None, 10)


def test_any_smaller_size():
    model = multi_branch_resnet(width=4, num_blocks=2, num_classes=5, input_shape=(12, 8, 3), stem_width=2)
    assert model.output_shape == (None, 5)
    assert model.get_layer("stage3_block2_add").output.shape == (None, 3, 2, 16)


@pytest.mark.parametrize("arguments", [{"width": 5}, {"input_shape": (30, 30, 3)}, {"input_shape": (8, 8)}])
def test_impossible_sizes_are_refused(arguments):
    with pytest.raises(ValueError, match="multi_branch_resnet: .* Received: "):
        multi_branch_resnet(**arguments)

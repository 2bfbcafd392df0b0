"""Audio tagging: frontend, backbone, head."""

from components.models.tagger.cnn6 import Cnn6
from components.models.tagger.conv_net import ConvNet
from components.models.tagger.head import PoolingHead
from components.models.tagger.tagger import Tagger, TaggerOutput

__all__ = ["Cnn6", "ConvNet", "PoolingHead", "Tagger", "TaggerOutput"]

"""Settings: their defaults, checks and rendering. No TensorFlow.

fields.py    the value of one setting: of its type, read from text, checked
settings.py  frozen dataclasses: every setting, its default, its check
reading.py   settings from config files and the command line, and back to mappings
"""

from tfnas.config.reading import check_key as check_key
from tfnas.config.reading import from_config_dict as from_config_dict
from tfnas.config.reading import keys_named as keys_named
from tfnas.config.reading import known_keys as known_keys
from tfnas.config.reading import load_file as load_file
from tfnas.config.reading import parse_value as parse_value
from tfnas.config.reading import to_config_dict as to_config_dict
from tfnas.config.reading import to_dict as to_dict
from tfnas.config.settings import BUILDERS as BUILDERS
from tfnas.config.settings import FIRST_GATES as FIRST_GATES
from tfnas.config.settings import FORMATS as FORMATS
from tfnas.config.settings import TUNED as TUNED
from tfnas.config.settings import Config as Config
from tfnas.config.settings import Data as Data
from tfnas.config.settings import Evaluate as Evaluate
from tfnas.config.settings import Export as Export
from tfnas.config.settings import Retrain as Retrain
from tfnas.config.settings import Sample as Sample
from tfnas.config.settings import Search as Search
from tfnas.config.settings import Supernet as Supernet
from tfnas.config.settings import Training as Training
from tfnas.config.settings import Tune as Tune

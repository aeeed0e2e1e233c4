"""Settings: their defaults, checks and reading. No TensorFlow.

fields.py    the value of one setting: of its type, read from text, checked
sections/    every setting, its default and its check: a frozen dataclass for each section of a config
settings.py  Config: all sections, and the checks that involve several of them
reading.py   settings from config files and the command line, and back to mappings
templates/   the files that `tfnas init` writes
starting.py  writes config files to start from
"""

from tfnas.config.reading import check_key as check_key
from tfnas.config.reading import from_config_dict as from_config_dict
from tfnas.config.reading import keys_named as keys_named
from tfnas.config.reading import known_keys as known_keys
from tfnas.config.reading import load_file as load_file
from tfnas.config.reading import parse_value as parse_value
from tfnas.config.reading import to_config_dict as to_config_dict
from tfnas.config.reading import to_dict as to_dict
from tfnas.config.sections.data import Data as Data
from tfnas.config.sections.evaluate import Evaluate as Evaluate
from tfnas.config.sections.export import FORMATS as FORMATS
from tfnas.config.sections.export import Export as Export
from tfnas.config.sections.retrain import Retrain as Retrain
from tfnas.config.sections.sample import Sample as Sample
from tfnas.config.sections.search import FLOOR as FLOOR
from tfnas.config.sections.search import IMPORTANCES as IMPORTANCES
from tfnas.config.sections.search import INITIAL_DROP as INITIAL_DROP
from tfnas.config.sections.search import PUBLISHED_INITIAL_DROP as PUBLISHED_INITIAL_DROP
from tfnas.config.sections.search import Search as Search
from tfnas.config.sections.supernet import BUILDERS as BUILDERS
from tfnas.config.sections.supernet import Supernet as Supernet
from tfnas.config.sections.training import Training as Training
from tfnas.config.sections.tune import TUNED as TUNED
from tfnas.config.sections.tune import Tune as Tune
from tfnas.config.settings import Config as Config

"""python -m dense_retrieval.run: from a corpus to a tuned student and a table that says whether it helped."""

import json
import logging
import os
import shutil
from functools import cached_property
from pathlib import Path
from typing import Any

import hydra
import numpy as np
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import OmegaConf

from dense_retrieval.config import CONF, Config, one_line_errors

"""Before torch is loaded: tests share their cores with others."""

from utils.launch import use_cores_considerately

use_cores_considerately()

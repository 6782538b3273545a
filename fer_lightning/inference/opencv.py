"""Import OpenCV, with its logging silenced."""

import os
from types import ModuleType

from fer_lightning.errors import UserError

REMEDY = 'pip install -e ".[photo]".'


def opencv() -> ModuleType:
    """Import OpenCV.

    Raises:
        UserError: OpenCV is not installed.
    """
    # OpenCV and its FFmpeg would also print to stderr what is raised as a UserError elsewhere.
    os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    try:
        import cv2
    except ImportError as error:
        raise UserError(f"Reading videos needs OpenCV: {REMEDY}") from error
    return cv2

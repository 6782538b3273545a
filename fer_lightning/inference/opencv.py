"""Import OpenCV, with its logging silenced."""

import os
from types import ModuleType

from fer_lightning.arguments import first_line
from fer_lightning.errors import UserError


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
        raise UserError(f'Videos need OpenCV ({first_line(error)}): pip install -e ".[photo]"') from error
    return cv2

"""Train and test a network on FER-2013: python train.py --help."""

import sys

from fer_lightning.commands.train import main

if __name__ == "__main__":
    sys.exit(main())

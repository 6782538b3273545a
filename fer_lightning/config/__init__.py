"""The command line and conf/. This package and hydra_plugins/ are the only code that uses Hydra."""

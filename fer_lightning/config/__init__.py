"""The command line and conf/: the only room that knows Hydra."""

"""Subcommands of ``fer-lightning``, one module each.

A module's docstring is the command's help, its first line the summary. ``configure`` adds the arguments to a parser
and ``run`` does the work; all that is slow to import is imported in ``run``.
"""

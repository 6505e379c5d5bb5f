"""The commands: flags, progress, messages, exit codes. The only place that prints or reads the
environment. Text goes to stderr; stdout carries only what was asked for.
"""
